"""The pictures of `pendulum` (ContinuousNet Figs 3, 4a, 4b): functions from numbers to a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.records.pictures import below, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"euler": "#d95f0e", "midpoint": "#3182bd", "rk4": "#238b45"}


STYLES = (
    {"color": "0.7", "lw": 5},
    {"color": "k", "lw": 0.9},
    {"color": COLORS["euler"], "ls": "--"},
    {"color": COLORS["rk4"], "lw": 1.2},
)


def draw_trajectories(curves: Mapping[float, tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> Figure:
    """ContinuousNet Fig. 3: angle and velocity over time, one row a step size.

    Args:
      curves: by step size: times `[n]`, and by name states `[n, 2]`: the exact ones, the numerical, two networks'.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.5 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 2, sharex=True, sharey="col", squeeze=False)
    for row, (dt, (t, by_name)) in zip(panels, curves.items(), strict=True):
        for i, axes in enumerate(row):
            for (name, x), style in zip(by_name.items(), STYLES, strict=True):
                axes.plot(t, x[:, i], label=name, **style)
            axes.set_title(f"{('angle', 'velocity')[i]} at $\\Delta t$ = {dt:g}", fontsize=10)
            axes.set_ylim(*((-6, 6) if i == 0 else (-9, 9)))
            _bare(axes)
    for axes in panels[-1]:
        axes.set_xlabel("t")
    panels[0, 0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def draw_convergence(
    ratios: Sequence[float], errors: Mapping[str, np.ndarray], exact: Mapping[str, Sequence[float]]
) -> Figure:
    """ContinuousNet Fig. 4: errors under the training scheme (a) and after substitution (b); bands span the seeds.

    Args:
      ratios: dt / dt_data, falling.
      errors: by "trained>run", `[seeds, n]`.
      exact: of the numerical schemes, `[n]`, euler, midpoint and rk4.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        for (scheme, values), ls in zip(exact.items(), (":", "--", "-"), strict=True):
            axes.loglog(ratios, values, color="k", lw=0.9, ls=ls, label=f"numerical {scheme}")
        axes.axvline(1, color="0.8", lw=0.8, zorder=0)
        axes.set_xlabel(r"$\Delta t / \Delta t_{data}$")
        axes.set_ylim(1e-10, 30)
        _bare(axes)
    marks = {"euler": "o", "midpoint": "s", "rk4": "^"}
    for key, values in errors.items():
        trained, scheme = key.split(">")
        axes = left if trained == scheme else right
        if trained != scheme == "euler":
            continue
        values = np.where(np.isfinite(values), values, np.nan)
        label = f"ODE-Net({trained})" + ("" if trained == scheme else f" in {scheme}")
        middle = np.nanmedian(values, axis=0)
        axes.loglog(ratios, middle, color=COLORS[trained], marker=marks[scheme], ms=3.5, lw=1.2, label=label)
        axes.fill_between(ratios, np.nanmin(values, 0), np.nanmax(values, 0), color=COLORS[trained], alpha=0.2, lw=0)
    left.set_ylabel("E at T, median and range of seeds")
    left.set_title("(a) under the scheme of training", fontsize=10)
    right.set_title("(b) put into another scheme", fontsize=10)
    for axes in (left, right):
        plain_ticks(axes.xaxis)
        below(axes, ncols=2)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
