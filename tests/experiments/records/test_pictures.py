"""Pictures: ticks as one writes numbers, curves that nothing covers, and as many panels as there is to show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.ott import figures
from experiments.records import pictures
from experiments.records.swaps import Swapped
from ode_nets.remanifest import Manifestation

RESULTS = Path(__file__).parents[3] / "results"


def labels(axis):
    axis.figure.draw_without_rendering()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    low, high = sorted(axis.get_view_interval())
    return [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]


@pytest.mark.parametrize(
    ("low", "high", "base", "shown"),
    [
        (1.6, 2.1, 10, {"1.8", "2"}),
        (1.0, 90.0, 10, {"1", "2", "5", "10", "20", "50"}),
        (0.1, 200.0, 10, {"0.1", "1", "10", "100"}),
        (1, 32, 2, {"1", "2", "4", "8", "16", "32"}),
        (1, 1024, 2, {"1", "4", "16", "64", "256", "1,024"}),
    ],
)
def test_ticks_of_logarithmic_axes_are_plain(low, high, base, shown):
    axes = Figure().subplots()
    axes.plot([1, 2], [low, high])
    axes.set_yscale("log", base=base)
    axes.set_ylim(low, high)
    pictures.plain_ticks(axes.yaxis)
    found = set(labels(axes.yaxis))
    assert shown <= found if base == 10 else shown == found
    assert not [text for text in found if "times" in text or "^" in text]


def metrics():
    return json.loads((RESULTS / "cifar10_small" / "run.json").read_text())["metrics"]


def test_the_validation_loss_is_drawn_beside_the_training_loss():
    records = metrics()
    *_, loss = pictures.draw_training([("run", records)]).axes
    curves = {line.get_linestyle(): line.get_ydata() for line in loss.lines if len(line.get_ydata()) == len(records)}
    np.testing.assert_array_equal(curves["-"], [record["train_loss"] for record in records])
    np.testing.assert_array_equal(curves["--"], [record["validation_loss"] for record in records])
    assert "validation" in loss.get_ylabel()


def test_equal_curves_are_told_apart_and_legends_cover_none():
    record = json.loads((RESULTS / "quickstart" / "digits.json").read_text())
    trained = Manifestation(record["trained"]["scheme"], record["trained"]["n_steps"])
    figure = pictures.draw_swap([Swapped(name, trained, record["rows"], record) for name in ("one", "two")])
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y1 <= frame.y0
    left = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert left[0].get_linewidth() > left[1].get_linewidth()


def test_trajectories_have_as_many_panels_as_there_are_networks():
    record = json.loads((RESULTS / "ott" / "grid_spheres2.json").read_text())
    record["settings"]["seeds"] = 2
    n = max(row["n_steps"] for row in figures.rows_of(record, "euler"))
    states = np.zeros((2, 3, 5, 2))
    kept = {"y": np.zeros(3, int)} | {f"euler {k}": states for k in (8, n)}
    drawn = figures.draw_trajectories(record, kept)
    assert len([axes for axes in drawn.axes if axes.axison]) == 3
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn.axes if axes.axison)
