"""Intraclass correlation against a published example, and runs side by side against runs one after another."""

import dataclasses
import io
import json
from functools import partial

import numpy as np
import pytest
from rich.console import Console

import experiments.aca.reliability
from experiments.aca.reliability import (
    Options,
    compare,
    icc,
    lanes_that_fit,
    make_programs,
    print_report,
    reliability,
    report,
    stored_predictions,
)
from experiments.records.files import RunError
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings, ResNetSettings
from experiments.training.steps import dataset_of
from experiments.training.task import Task

CONFIG = Config(
    limit=32, batch_size=16, crop_pad=1, flip=False, model=ResNetSettings(widths=(2,)), epochs=2,
    decay_epochs=(), learning_rate=0.05,
)  # fmt: skip
# Shrout & Fleiss 1979, Table 2: six subjects, four judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])


def test_the_published_example():
    got = icc(JUDGES)
    # Table 4 there has ICC(1,1) = .17 and ICC(1,4) = .44; the intervals are those of R's psych on the same data.
    np.testing.assert_allclose([got["icc1"], got["icc1k"]], [0.17, 0.44], atol=0.005)
    np.testing.assert_allclose(got["icc1_interval"], [-0.13, 0.72], atol=0.005)
    np.testing.assert_allclose(got["icc1k_interval"], [-0.88, 0.91], atol=0.005)
    # Mean squares of that paper's Table 3, 11.24 between and 6.26 within.
    np.testing.assert_allclose(got["icc1"], (11.24 - 6.26) / (11.24 + 3 * 6.26), atol=1e-3)


def test_runs_that_agree_and_runs_that_do_not():
    rng = np.random.default_rng(0)
    same = np.tile(rng.integers(0, 10, (50, 1)), 3)
    assert icc(same)["icc1"] == icc(same)["icc1k"] == 1.0
    assert abs(icc(rng.integers(0, 10, (4000, 3)))["icc1"]) < 0.05
    # Spearman-Brown: the reliability of a mean of k.
    values = icc(JUDGES)
    np.testing.assert_allclose(values["icc1k"], 4 * values["icc1"] / (1 + 3 * values["icc1"]))


def test_misclassified_images_are_those_that_some_run_got_wrong():
    labels = np.array([0, 1, 2, 3, 4])
    predictions = np.array([[0, 1, 2, 3, 0], [0, 1, 2, 4, 1]])
    got = report(predictions, labels)
    assert got["test_accuracy"] == [0.8, 0.6]
    assert (got["all"]["n_images"], got["wrong"]["n_images"]) == (5, 2)
    assert got["wrong"]["icc1"] == icc(predictions[:, 3:].T)["icc1"]


def test_two_networks_are_compared_on_the_same_images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)

    def runs(share):
        wrong = rng.random((4, 400)) < share
        return np.where(wrong, rng.integers(0, 10, (4, 400)), labels)

    steady, shaky = runs(0.1), runs(0.4)
    got = compare(steady, shaky, labels, n_resamples=50)
    assert got["all"]["icc1"] == report(steady, labels)["all"]["icc1"] - report(shaky, labels)["all"]["icc1"]
    low, high = got["all"]["icc1_interval"]
    assert 0 < low < got["all"]["icc1"] < high
    same = compare(steady, steady, labels, n_resamples=5)
    assert same["wrong"]["icc1_interval"] == [0.0, 0.0]


def test_runs_to_compare_with_must_be_there(tmp_path):
    with pytest.raises(RunError, match="holds no predictions"):
        stored_predictions(tmp_path)


@pytest.mark.slow
def test_side_by_side_and_one_after_another_are_the_same_runs_and_none_is_repeated(tmp_path):
    quiet = Console(file=io.StringIO())
    alone, together = (
        reliability(CONFIG, Options(n_runs=2, lanes=lanes), tmp_path / str(lanes), quiet) for lanes in (1, 2)
    )
    np.testing.assert_allclose(alone["test_accuracy"], together["test_accuracy"], atol=0.02)
    assert alone["test_accuracy"][0] != alone["test_accuracy"][1]
    # A third run is there already, and says 0 to everything.
    first, third = (tmp_path / "1" / f"predictions_{seed}.npy" for seed in (0, 2))
    np.save(third, np.zeros_like(np.load(first)))
    before = first.stat().st_mtime_ns
    more = reliability(CONFIG, Options(n_runs=3, lanes=1), tmp_path / "1", quiet)
    assert first.stat().st_mtime_ns == before
    assert more["test_accuracy"] == [*alone["test_accuracy"], (dataset_of(CONFIG).y_test == 0).mean()]
    assert json.loads((tmp_path / "1" / "reliability.json").read_text())["seeds"] == [0, 1, 2]
    shown = io.StringIO()
    print_report(more, Console(file=shown, width=200))
    assert f"ICC1 {more['all']['icc1']:.3f}" in shown.getvalue()
    for changes, says in (
        ({"seed": 7}, "another config"),
        ({"model": ContinuousNetSettings(), "refine_epochs": (1,)}, "refine_epochs"),
        ({"model": ContinuousNetSettings(), "adapt": "step"}, "adapt='step'"),
        ({"ema_decay": 0.9}, "ema_decay=0.9"),
    ):
        with pytest.raises(RunError, match=says):
            reliability(dataclasses.replace(CONFIG, **changes), Options(n_runs=2), tmp_path / "1", quiet)


@pytest.mark.slow
@pytest.mark.parametrize(("gibibytes", "fits"), [(8.0, 3), (0.0, 1)])
def test_as_many_lanes_are_taken_as_fit_into_memory(gibibytes, fits, monkeypatch):
    task = Task(CONFIG, 1)
    monkeypatch.setattr(experiments.aca.reliability, "memory_bound", lambda _: int(gibibytes * 2**30))
    assert lanes_that_fit(task, partial(make_programs, task), 3) == fits
