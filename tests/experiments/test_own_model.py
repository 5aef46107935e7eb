"""A user with a network of their own, by commands alone: trained, killed, resumed, swapped, compressed, used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
from experiments.images import data
from experiments.records.files import read_manifest, read_metrics

ROOT = Path(__file__).parents[2]
MODULE = '''
from typing import Any

import flax.linen as nn
import ode_nets as on


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, t, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x) + t)
        return nn.Dense(8)(nn.tanh(x))


class Net(nn.Module):
    n_classes: int
    width: int = 8
    basis: on.Basis = on.PiecewiseConstant(2)
    solver: Any = on.FixedStep("midpoint", 2)
    gradient: on.GradientMethod = on.Checkpointed()
    momentum: float = 0.9

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(self.width)(images.reshape(images.shape[0], -1))
        x = on.OdeBlock(Unit(), self.basis, self.solver, self.gradient, momentum=self.momentum)(x, train)
        return nn.Dense(self.n_classes)(x)


def make(n_classes, width):
    return Net(n_classes, width)
'''
TRAIN = [
    *("train", "digits", "--model", "my_package.my_module:make", "--model.args", "width=8", "--refine-epochs", "2"),
    *("--limit", "320", "--batch-size", "32", "--epochs", "4", "--crop-pad", "0", "--no-flip"),
    *("--optimizer", "adamw", "--learning-rate", "0.02", "--warmup-epochs", "1", "--schedule", "cosine", "--quiet"),
    *("--checkpoint-seconds", "0"),
]
TIMES = ("seconds", "images_per_second", "train_seconds")


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


@pytest.mark.slow
def test_an_own_network_is_trained_killed_resumed_bitwise_swapped_compressed_and_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(MODULE)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))

    def start(*arguments):
        command = [sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    def run(*arguments):
        process = start(*arguments)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    # Killed in an epoch after the refinement, and resumed by the folder alone, it is the run that nothing happened to.
    run(*TRAIN, "--run-dir", "runs/whole")
    process, stop = start(*TRAIN, "--run-dir", "runs/killed"), time.monotonic() + 120
    latest = tmp_path / "runs" / "killed" / "checkpoints" / "latest"
    while time.monotonic() < stop and not any(p.name.isdigit() and int(p.name) > 21 for p in latest.glob("*")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert read_manifest(killed)["status"] == "running"
    run("train", "--resume", "runs/killed", "--quiet")
    assert len(read_manifest(killed)["resumed"]) == 1
    ours, theirs = experiments.load(killed), experiments.load(whole)
    assert ours.net == theirs.net
    assert (ours.net.basis.n_basis, ours.net.solver.n_steps) == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert [*map(without_times, read_metrics(killed))] == [*map(without_times, read_metrics(whole))]
    results, others = (read_manifest(folder)["results"] for folder in (killed, whole))
    assert without_times(results) == without_times(others)
    assert results["test_accuracy"] > 0.5

    # Other solvers, fewer coefficients.
    run("evaluate_solvers", "runs/killed", "--schemes", "midpoint", "rk4", "--n-steps", "2", "4")
    rows = json.loads((killed / "swap" / "swap.json").read_text())["rows"]
    own = next(row for row in rows if (row["scheme"], row["n_steps"]) == ("midpoint", 4))
    assert (own["accuracy"], own["nfe"]) == (results["test_accuracy"], 8)
    run("compress", "runs/killed", "--basis", "legendre", "--n-basis", "2", "--scheme", "midpoint", "--n-steps", "2")
    small = experiments.load(killed / "compressed" / "legendre-2-midpoint-2")
    assert str(small.net.basis) == "Legendre(n_basis=2)"
    images = data.load("digits")
    hits = small.predict(images.x_test).argmax(1) == images.y_test
    assert hits.mean() == read_manifest(killed / "compressed" / "legendre-2-midpoint-2")["results"]["test_accuracy"]
