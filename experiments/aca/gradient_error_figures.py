"""The pictures of `gradient_error`: functions from rows to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
STYLES: dict[str, dict[str, Any]] = {
    "Direct": {"color": "#9ecae1", "lw": 7, "solid_capstyle": "round"},
    "Checkpointed": {"color": "#3182bd", "lw": 3.5},
    "ACA": {"color": "black", "lw": 1.2, "marker": "o", "ms": 3.5},
    "Backsolve": {"color": "#d95f0e", "lw": 1.5, "marker": "s", "ms": 4},
    "Naive": {"color": "#756bb1", "lw": 1.5, "marker": "^", "ms": 4.5, "ls": "--"},
}


def draw(rows: Sequence[Row]) -> Figure:
    """The toy problem: a panel a rate (down) and precision (across); methods that agree lie on top of each other."""
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(row["k"] for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(8.6, 1.3 + 2.5 * len(rates)), layout="constrained")
    panels = figure.subplots(len(rates), len(dtypes), sharex=True, sharey="row", squeeze=False)
    for i, k in enumerate(rates):
        for j, dtype in enumerate(dtypes):
            axes = panels[i, j]
            of_panel = [row for row in rows if (row["k"], row["dtype"]) == (k, dtype)]
            for name, style in STYLES.items():
                # An error of exactly zero has no place on a logarithmic axis.
                chosen = [row for row in of_panel if row["method"] == name]
                points = [(row["T"], row["relative_error"] or float("nan")) for row in chosen]
                axes.semilogy(*zip(*points, strict=True), label=name, **style)
            rejected = max(row["n_rejected"] for row in of_panel)
            said = f"at most {rejected} rejected" if rejected else "no trial is rejected"
            axes.set_title(f"k = {k:g}, {dtype}: {said}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        panels[i, 0].set_ylabel("relative error of dL/dz(0)")
    for axes in panels[-1]:
        axes.set_xlabel("end time T")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw_rejecting(errors: Sequence[Row], costs: Sequence[Row]) -> Figure:
    """Where trials are rejected: errors against the tolerance (above), depth of the graph and memory (below)."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row["case"] for row in errors))
    figure = Figure(figsize=(3.2 * max(2, len(cases)), 5.6), layout="constrained")
    panels = figure.subplots(2, len(cases), height_ratios=(2.2, 1), squeeze=False)
    for case, above, below in zip(cases, *panels, strict=True):
        of_case = [row for row in errors if row["case"] == case]
        for name in dict.fromkeys(row["method"] for row in of_case):
            chosen = [row for row in of_case if row["method"] == name]
            points = [row["error"] or float("nan") for row in chosen]
            above.loglog([row["tolerance"] for row in chosen], points, label=name, **STYLES[name])
        shares = [row["n_rejected"] / (row["n_accepted"] + row["n_rejected"]) for row in of_case]
        least, most = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
        above.set_title(f"{of_case[0]['title']}\n{least} to {most} % of trials rejected", fontsize=10)
        # Errors that say no more than that a gradient is useless would take all the room.
        above.set_ylim(top=min(above.get_ylim()[1], 1e4))
        above.set_xlabel("tolerance")
        chosen = [row for row in costs if row["case"] == case][::-1]
        colors = [STYLES[row["method"]]["color"] for row in chosen]
        bars = below.barh(range(len(chosen)), [row["backward_vjps"] for row in chosen], 0.7, color=colors)
        memory = [f" {row['temporary_bytes'] / 1024:.0f} KiB" for row in chosen]
        below.bar_label(bars, memory, fontsize=8)
        below.margins(x=0.3)
        below.set_yticks(range(len(chosen)), [row["method"] for row in chosen], fontsize=8)
        below.set_xlabel(f"depth [vjps] at {chosen[0]['tolerance']:.0e}")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="both" if axes is above else "x", alpha=0.25)
            axes.set_axisbelow(True)
    panels[0, 0].set_ylabel("relative error of the gradient")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return figure
