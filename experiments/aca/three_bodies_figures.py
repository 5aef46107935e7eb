"""The pictures of `three_bodies` (ACA Figs 8, 13-23): functions from numbers to a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUTH, FITTED, AHEAD = "#3182bd", "#fdae6b", "#d94801"


def _draw_path(axes: Any, t: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """One body, `[n, 3]`: truth, and the prediction over the span of training and beyond it."""
    axes.plot(*truth.T, color=TRUTH, lw=1.6, alpha=0.7, label="truth")
    seen = t <= 1
    axes.plot(*predicted[seen].T, color=FITTED, ls="--", lw=1.4, label="prediction, t below 1")
    axes.plot(*predicted[~seen].T, color=AHEAD, ls="--", lw=1.4, label="prediction, 1 to 2")
    axes.scatter(*truth[0], color="k", s=12)
    axes.tick_params(labelsize=6, pad=-2)
    # A prediction that has left is cut: the truth sets the frame.
    low, high = truth.min(0), truth.max(0)
    margin = 0.25 * (high - low).max()
    for set_limits, a, b in zip(
        (axes.set_xlim, axes.set_ylim, axes.set_zlim), low - margin, high + margin, strict=True
    ):
        set_limits(a, b)
    inside = np.all((predicted >= low - margin) & (predicted <= high + margin), axis=-1)
    for line in axes.lines[1:3]:
        part = inside[seen] if line is axes.lines[1] else inside[~seen]
        line.set_data_3d(*(np.where(part, values, np.nan) for values in line.get_data_3d()))


def draw_models(t: np.ndarray, truth: np.ndarray, predicted: Mapping[str, np.ndarray]) -> Figure:
    """ACA Figs 8, 13-23: a row a model, a column a body.

    Args:
      t: times, `[n]`.
      truth: `[n, bodies, 3]`.
      predicted: by title, likewise.
    """
    from matplotlib.figure import Figure

    n_bodies = truth.shape[1]
    figure = Figure(figsize=(3 * n_bodies, 0.4 + 2.8 * len(predicted)), layout="constrained")
    kind = {"projection": "3d"}
    panels = figure.subplots(len(predicted), n_bodies, squeeze=False, subplot_kw=kind)
    for row, (title, r) in zip(panels, predicted.items(), strict=True):
        for body, axes in enumerate(row):
            _draw_path(axes, t, truth[:, body], r[:, body])
            axes.set_title(f"{title}, body {body + 1}", fontsize=8, pad=0)
            for set_label, name in ((axes.set_xlabel, "x"), (axes.set_ylabel, "y"), (axes.set_zlabel, "z")):
                set_label(name, fontsize=7, labelpad=-8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def draw_masses(curves: Mapping[str, np.ndarray], masses: np.ndarray) -> Figure:
    """Masses over epochs, a panel a gradient method, a line a seed; the true ones are dotted.

    Args:
      curves: by method, `[seeds, epochs, bodies]`.
      masses: `[bodies]`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 2.6 * len(curves), 2.8), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        for body in range(curve.shape[-1]):
            label = f"body {body + 1}" if axes is panels[0] else None
            axes.plot(curve[0, :, body], color=f"C{body}", lw=1, label=label)
            axes.plot(curve[1:, :, body].T, color=f"C{body}", lw=1)
            axes.axhline(masses[body], color=f"C{body}", ls=":", lw=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mass")
    panels[0].legend(frameon=False, fontsize=8)
    return figure
