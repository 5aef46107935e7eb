"""A finished run that goes on for longer, and one that trains where output and interpreter are against it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.records.files import RunError, read_manifest, read_metrics
from experiments.train import Options, train
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings
from experiments.training.run import load_run

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    limit=16, batch_size=8, crop_pad=0, flip=False, model=ContinuousNetSettings(widths=(2,)), epochs=1,
    refine_epochs=(), decay_epochs=(2,),
)  # fmt: skip
LONGER = dataclasses.replace(CONFIG, epochs=3)


@pytest.mark.slow
def test_a_run_that_goes_on_for_longer_is_the_one_that_was_started_with_so_many_epochs(tmp_path):
    first = train(CONFIG, Options(quiet=True), tmp_path / "run")
    results = train(LONGER, Options(quiet=True, resume=True), tmp_path / "run")
    whole = train(LONGER, Options(quiet=True), tmp_path / "whole")
    assert [record["epoch"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3]
    assert results["test_loss"] == whole["test_loss"]
    (_, _, ours, _), (_, _, theirs, _) = (load_run(tmp_path / name) for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    manifest = read_manifest(tmp_path / "run")
    assert Config.from_json(manifest["config"]) == LONGER
    assert manifest["extended"] == [{"epochs": 1, "results": first}]
    assert manifest["data"]["arrays"]["x_train"]["shape"] == [16, 8, 8, 1]
    with pytest.raises(RunError, match="epochs was 3, is 1"):
        train(CONFIG, Options(quiet=True, resume=True), tmp_path / "run")


@pytest.mark.slow
def test_a_run_trains_to_its_end_without_docstrings_or_anybody_who_reads_what_it_prints(tmp_path):
    command = [sys.executable, "-OO", "-m", "experiments.train", "digits", "--limit", "32", "--batch-size", "8"]
    command += ["--model.widths", "2", "--epochs", "2", "--refine-epochs", "--decay-epochs", "--run-dir"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0, errors
    assert read_manifest(tmp_path / "run")["status"] == "finished"
