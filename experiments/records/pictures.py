"""What the figures of the papers look like: functions from numbers to a picture, without files.

Matplotlib is imported when a picture is drawn. Each run keeps one color in all panels of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ode_nets.weights import Basis, PiecewiseConstant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from experiments.records.swaps import Swapped

Row = dict[str, Any]
N_DRAWN = 12
"""Weights in a panel; more are a thicket."""


def plain_ticks(axis: Axis) -> None:
    """Numbers as one writes them on a logarithmic axis, with 2 and 5 between the powers of ten of a short one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if axis.get_transform().base == 2:  # type: ignore[attr-defined]
        powers = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
        axis.set_major_locator(FixedLocator(powers[:: -(-len(powers) // 8)]))
    else:
        decades = np.log10(high / low)
        # So short that powers of ten, and even 2 and 5 between them, may all lie outside.
        subs = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if decades < 0.6 else (1, 2, 5) if decades < 2 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if 1e-4 < value < 1e6 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def apart(k: int) -> dict[str, Any]:
    """The stroke of the k-th of some curves: each later one is thinner, so that it covers no equal one."""
    return {"lw": max(1.0, 3.4 - 0.9 * k), "ms": max(3.0, 7.0 - 1.3 * k)}


def below(axes: Axes, **options: Any) -> None:
    """A legend below the axes, where it covers no curve."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False, "fontsize": 8}
    axes.legend(**place | options)


def _bare(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------------------------------------------------
# Fig. 9: solver swaps
# ---------------------------------------------------------------------------------------------------------


def draw_swap(swaps: Sequence[Swapped]) -> Figure:
    """ContinuousNet Fig. 9: error against N_t, each run under its own scheme (left) and under others (right).

    A vertical dotted line marks a run's own N_t, a horizontal one its error there, and a cross where some images
    diverged, which count as errors.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    strokes, marks = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v")
    for k, swapped in enumerate(swaps):
        color, own = f"C{k}", swapped.own
        label = f"{swapped.name} (trained: {swapped.trained.scheme}, $N_t$={swapped.trained.n_steps})"
        left.plot(*swapped.error(swapped.trained.scheme), color=color, marker="o", label=label, **apart(k))
        for axes in (left, right):
            axes.axvline(swapped.trained.n_steps, color=color, ls=(2 * k, (1, 3)), lw=1.2)
            axes.axhline(100 * (1 - own["accuracy"]), color=color, lw=0.8, alpha=0.6)
        for row in swapped.rows:
            if row["diverged"]:
                axes = left if row["scheme"] == swapped.trained.scheme else right
                axes.plot(row["n_steps"], 100 * (1 - row["accuracy"]), "x", color="black", ms=8, zorder=5)
        others = [s for s in dict.fromkeys(row["scheme"] for row in swapped.rows) if s != swapped.trained.scheme]
        for i, scheme in enumerate(others):
            style = {"ls": strokes[i % 4], "marker": marks[i % 5]} | apart(i)
            label = f"{swapped.name} under {scheme}"
            right.plot(*swapped.error(scheme), color=color, label=label, **style)
    # Errors of one and of ninety percent are to be read off the same axis.
    if all(row["accuracy"] < 1 for swapped in swaps for row in swapped.rows):
        left.set_yscale("log")
        plain_ticks(left.yaxis)
    for axes, title in ((left, "its own scheme, other step counts"), (right, "other schemes")):
        axes.set_xlabel("steps a block, $N_t$")
        axes.set_title(title, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        below(axes, ncols=1 if axes is left else 2)
    left.set_ylabel(f"{swaps[0].record['split']} error [%]")
    _bare(left, right)
    return figure


# ---------------------------------------------------------------------------------------------------------
# Fig. 8: weights over depth
# ---------------------------------------------------------------------------------------------------------


def roughness(basis: Basis, coefficients: np.ndarray) -> float:
    """How far weights move from one of M equal intervals to the next, as a share of their spread.

        rms_k,w(theta_w(t_{k+1}) - theta_w(t_k)) / std_k,w(theta_w(t_k)),  t_k the midpoints

    0 where theta is constant in depth, 1.4 where intervals have nothing to do with each other.

    Args:
      basis: of theta.
      coefficients: `[M, n_weights]`.
    """
    values = basis.evaluate(PiecewiseConstant(basis.n_basis).nodes()) @ coefficients
    steps = np.diff(values, axis=0)
    return float(np.sqrt(np.mean(steps**2)) / values.std()) if len(steps) else 0.0


def draw_theta(axes: Axes, basis: Basis, coefficients: np.ndarray, title: str) -> None:
    """A few weights as functions of depth-time."""
    for k in range(min(N_DRAWN, coefficients.shape[1])):
        style = {"color": f"C{k % 10}", "lw": 1.3}
        if isinstance(basis, PiecewiseConstant):
            edges = np.linspace(0, 1, basis.n_basis + 1)
            axes.stairs(coefficients[:, k], edges, baseline=None, **style)
        else:
            t = np.linspace(0, 1, 401)
            axes.plot(t, basis.evaluate(t) @ coefficients[:, k], **style)
    axes.axhline(0, color="0.8", lw=0.6, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylabel("weight")
    axes.set_title(title, fontsize=9, loc="left", pad=3)
    _bare(axes)


def draw_weights(
    levels: Sequence[tuple[Basis, np.ndarray]],
    finals: Sequence[tuple[str, Basis, np.ndarray]],
    block: str,
) -> Figure:
    """ContinuousNet Fig. 8: a few weights of a block at the end of each level (left) and of training (right).

    Args:
      levels: basis and coefficients `[M, n_weights]` of the first run at each level.
      finals: name, basis and coefficients of each run at its end; one run has no right half.
      block: name of the block.
    """
    from matplotlib.figure import Figure

    compare = len(finals) > 1
    rows = max(len(levels), len(finals) if compare else 1)
    figure = Figure(figsize=(9 if compare else 5, 1.0 + 1.4 * max(rows, 2)), layout="constrained")
    halves = np.atleast_1d(figure.subfigures(1, 1 + compare))
    left = np.atleast_1d(halves[0].subplots(len(levels), 1, sharex=True, sharey=True))
    for axes, (basis, coefficients) in zip(left, levels, strict=True):
        draw_theta(axes, basis, coefficients, f"M = {basis.n_basis}")
    halves[0].suptitle(f"{finals[0][0]}: {block} at the end of each level", fontsize=10)
    last = [left[-1]]
    if compare:
        right = halves[1].subplots(len(finals), 1, sharex=True, sharey=True)
        for axes, (name, basis, coefficients) in zip(right, finals, strict=True):
            rough = f"interval to interval {roughness(basis, coefficients):.2f} of the spread"
            draw_theta(axes, basis, coefficients, f"{name}: {rough}")
        halves[1].suptitle(f"{block} at the end of training", fontsize=10)
        last.append(right[-1])
    for axes in last:
        axes.set_xlabel("depth-time t")
    return figure


# ---------------------------------------------------------------------------------------------------------
# Fig. 7: progress of training
# ---------------------------------------------------------------------------------------------------------


def draw_training(runs: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """ContinuousNet Fig. 7: seconds an epoch, accuracy and losses; refinements as dotted lines.

    Args:
      runs: name and metrics of each run, a dict an epoch as `train` logs them.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    seconds, accuracy, loss = panels = figure.subplots(3, 1, sharex=True)
    held_out = all("validation_accuracy" in records[0] for _, records in runs)
    which = "validation" if held_out else "train"
    for k, (name, records) in enumerate(runs):
        columns = {key: np.array([record[key] for record in records]) for key in records[0]}
        style = {"color": f"C{k}", "marker": "."} | apart(k + 1)
        seconds.plot(columns["epoch"], columns["seconds"], label=name, **style)
        accuracy.plot(columns["epoch"], 100 * columns[f"{which}_accuracy"], **style)
        loss.plot(columns["epoch"], columns["train_loss"], **style)
        if "validation_loss" in columns:
            loss.plot(columns["epoch"], columns["validation_loss"], ls="--", mfc="none", **style)
        for epoch in columns["epoch"][1:][np.diff(columns["level"]) > 0]:
            for axes in panels:
                axes.axvline(epoch - 0.5, color=f"C{k}", ls=":", lw=1)
    seconds.set_ylabel("seconds an epoch")
    seconds.set_ylim(bottom=0)
    accuracy.set_ylabel(f"{which} accuracy [%]")
    loss.set_ylabel("loss (dashed: validation)" if held_out else "training loss")
    loss.set_yscale("log")
    plain_ticks(loss.yaxis)
    loss.set_xlabel("epoch (dotted: M and $N_t$ doubled)")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    _bare(*panels)
    return figure


# ---------------------------------------------------------------------------------------------------------
# The front of experiments.compress
# ---------------------------------------------------------------------------------------------------------


def draw_front(rows: Sequence[Row], front: Sequence[Row], chosen: Row) -> Figure:
    """Accuracy against field evaluations: all candidates, the trained first; the front; the one chosen."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()

    def place(some: Sequence[Row]) -> tuple[list[int], list[float]]:
        return [row["nfe"] for row in some], [100 * row["accuracy"] for row in some]

    for k, name in enumerate(dict.fromkeys(row["basis"] for row in rows)):
        some = [row for row in rows if row["basis"] == name]
        sizes = [12 + 8 * np.log2(row["n_basis"]) for row in some]
        label = name.replace("_", " ")
        axes.scatter(*place(some), s=sizes, color=f"C{k}", alpha=0.55, lw=0, label=label)
    axes.step(*place(front), where="post", color="0.3", lw=1, label="front")
    for row, marker, name in ((rows[0], "*", "trained"), (chosen, "o", "chosen")):
        basis = f"{row['basis'].replace('_', ' ')}, M={row['n_basis']}"
        label = f"{name}: {basis}, {row['scheme']}, $N_t$={row['n_steps']}"
        axes.scatter(*place([row]), s=130, marker=marker, facecolor="none", edgecolor="k", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    # Candidates that fell apart would press the front into a line.
    low, high = min(place([*front, rows[0], chosen])[1]), max(place(rows)[1])
    margin = max(1.0, 0.15 * (high - low))
    axes.set_ylim(low - 3 * margin, high + margin)
    axes.set_xlabel("field evaluations a forward pass")
    axes.set_ylabel("validation accuracy [%]")
    below(axes, ncols=2)
    _bare(axes)
    return figure
