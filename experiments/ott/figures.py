"""Table 1 and the pictures of what `experiments.ott` has measured; nothing is trained here.

    python -m experiments.ott.figures                         everything in runs/ott; seconds
    python -m experiments.ott.figures --folder results/ott    another folder

Reads grid_*.json, adapt_*.json and tolerance_*.json, and writes beside them grid_<task>.png (Ott Figs 1, 3, 4, 17
to 19), trajectories_<task>.png (Figs 1 and 22), adapt_<task>.png (Figs 5 and 6), tolerance_<task>.png (Figs 20 and
21) and data.png (Fig. 2).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.records.command import command_line
from experiments.records.pictures import below, plain_ticks
from experiments.records.tables import show
from ode_nets import Direct, FixedStep, solve
from ode_nets.problems import landscape, spheres

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
MARKS = {"euler": "o", "midpoint": "x", "rk4": "^"}
CLASSES = ("#08519c", "#d95f0e", "#238b45")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw."""

    folder: Path = Path("runs/ott")
    """Where the results lie and the pictures go."""


def read(folder: Path, what: str) -> dict[str, Row]:
    """Records of a kind, by task."""
    return {path.stem.split("_", 1)[1]: json.loads(path.read_text()) for path in sorted(folder.glob(f"{what}_*.json"))}


def rows_of(record: Row, scheme: str) -> list[Row]:
    """Rows of a training scheme in a finished grid, from few to many steps."""
    rows = (row for row in record["rows"].values() if row["scheme"] == scheme and "trained" in row)
    return sorted(rows, key=lambda row: row["n_steps"])


def trained_rows(record: Row, scheme: str) -> list[Row]:
    """Those of them with a seed that trained."""
    return [row for row in rows_of(record, scheme) if any(row["trained"])]


def mean_of(row: Row, key: str) -> float:
    """Mean test accuracy, in percent, over the seeds that trained."""
    return 100 * float(np.mean(np.array(row["test"][key])[np.array(row["trained"])]))


def draw_grid(record: Row) -> Figure:
    """Ott Figs 3, 4, 17-19: accuracy against steps of the test solver, a color a number of training steps.

    A panel a training scheme, of the rows with a seed that trained; a record without one has no picture.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found = {scheme: rows for scheme in ("euler", "rk4") if (rows := trained_rows(record, scheme))}
    figure = Figure(figsize=(5.5 * len(found), 4.8), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (scheme, rows) in zip(panels, found.items(), strict=True):
        for i, row in enumerate(rows):
            color = colormaps["viridis"](i / max(len(rows) - 1, 1) * 0.9)
            for tested in dict.fromkeys(key.split()[0] for key in row["test"]):
                counts = [int(key.split()[1]) for key in row["test"] if key.split()[0] == tested]
                values = [mean_of(row, f"{tested} {n}") for n in counts]
                axes.plot(counts, values, color=color, marker=MARKS[tested], ms=4, lw=0.6, alpha=0.55)
            own = mean_of(row, f"{scheme} {row['n_steps']}")
            verdict = "" if row["passed"] else " (tied)"
            style = {"color": color, "marker": "o", "ms": 9, "mec": "k", "ls": "none"}
            axes.plot([row["n_steps"]], [own], **style, label=f"{row['n_steps']}{verdict}")
        axes.set_xscale("log", base=2)
        plain_ticks(axes.xaxis)
        axes.set_xlabel("steps of the test solver")
        axes.set_title(f"trained with {scheme}; ringed: as trained", fontsize=10)
        below(axes, title="training steps", title_fontsize=8, ncols=5)
        _bare(axes)
    panels[0].set_ylabel("test accuracy [%]")
    figure.suptitle(f"{record['settings']['task']}: o Euler, x midpoint, triangle RK4", fontsize=10)
    return figure


def draw_trajectories(record: Row, kept: Any) -> Figure:
    """Ott Fig. 1 a, b (coarse and fine Euler, first seed) and Fig. 22 (all seeds at the finest); dots are starts."""
    from matplotlib.figure import Figure

    rows = {row["n_steps"]: row for row in rows_of(record, "euler")}
    counts = sorted(rows)
    coarse = min((n for n in counts if n >= 8), default=counts[-1])
    shown = [(coarse, 0), *((counts[-1], seed) for seed in range(min(5, record["settings"]["seeds"])))]
    n_rows, n_columns = -(-len(shown) // 3), min(3, len(shown))
    figure = Figure(figsize=(4 * n_columns, 3.5 * n_rows), layout="constrained")
    labels, panels = kept["y"], figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, (n, seed) in zip(panels.flat, shown, strict=False):
        for states, label in zip(kept[f"euler {n}"][seed], labels, strict=False):
            axes.plot(*states.T, color=CLASSES[label], lw=0.7)
            axes.plot(*states[0], ".", color=CLASSES[label], ms=4)
        axes.set_title(f"Euler, {n} steps, seed {seed}: {rows[n]['crossings'][seed]} crossings", fontsize=9)
        axes.set_xlabel("$x_1$")
        axes.set_ylabel("$x_2$")
        _bare(axes)
    return figure


def draw_adaptation(record: Row) -> Figure:
    """Ott Figs 5 and 6: steps (top) and accuracy (bottom) over training, a column a controller, a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(record["rows"]), 5.2), layout="constrained")
    panels = figure.subplots(2, len(record["rows"]), sharex=True, sharey="row", squeeze=False)
    for column, (name, row) in zip(panels.T, record["rows"].items(), strict=True):
        time = [at["iteration"] for at in row["course"]]
        for seed in range(len(row["n_steps"])):
            color = f"C{seed}"
            column[0].plot(time, [at["n_steps"][seed] for at in row["course"]], color=color, lw=1)
            column[1].plot(time, [100 * at["euler"][seed] for at in row["course"]], color=color, lw=1)
            for scheme in ("midpoint", "rk4"):
                values = [100 * at[scheme][seed] for at in row["course"]]
                column[1].plot(time, values, MARKS[scheme], color=color, ms=3, alpha=0.5)
        halved = np.mean(row["n_shrunk"])
        title = f"{name}\n{np.mean(row['nfe_per_iteration']):.1f} NFE, {halved:.1f} halvings a seed"
        column[0].set_title(title, fontsize=9)
        column[0].set_yscale("log", base=2)
        plain_ticks(column[0].yaxis)
        column[1].set_xlabel("iteration")
        for axes in column:
            _bare(axes)
    panels[0, 0].set_ylabel("steps")
    panels[1, 0].set_ylabel("test accuracy [%]")
    figure.suptitle(f"{record['settings']['task']}: line Euler, x midpoint, triangle RK4; a color a seed", fontsize=10)
    return figure


def draw_tolerances(record: Row) -> Figure:
    """Ott Figs 20 and 21: accuracy against the test tolerance, ringed at the training tolerance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, scheme in zip(panels, ("fehlberg21", "dopri5"), strict=True):
        for i, row in enumerate(r for r in record["rows"].values() if r["scheme"] == scheme):
            x = [float(key) for key in row["test"]]
            y = [100 * np.mean(values) for values in row["test"].values()]
            label = f"{row['tolerance']:g} ({np.mean(row['nfe']):.0f} NFE)"
            axes.plot(x, y, color=f"C{i}", marker=".", lw=1)
            own = int(np.argmin(np.abs(np.log(np.array(x) / row["tolerance"]))))
            axes.plot([x[own]], [y[own]], "o", color=f"C{i}", ms=9, mec="k", label=label)
        axes.set_xscale("log")
        axes.set_xlabel("test tolerance")
        axes.set_title(scheme, fontsize=10)
        axes.legend(frameon=False, fontsize=8, title="training tolerance", title_fontsize=8)
        _bare(axes)
    panels[0].set_ylabel("test accuracy [%]")
    return figure


def draw_data() -> Figure:
    """Ott Fig. 2: the landscape, its classes and some exact motions (also Fig. 22 a), and the spheres."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.5), layout="constrained")
    potential, classes, motions, shells = figure.subplots(1, 4)
    x = np.linspace(-1.15, 2.1, 300)
    potential.plot(x, landscape.POTENTIAL(x[:, None]), color="0.3")
    for place, color in zip(landscape.minima(landscape.POTENTIAL)[:, 0], CLASSES, strict=True):
        potential.plot(place, landscape.POTENTIAL(np.array([place])), "o", color=color)
    potential.set_xlabel("x")
    potential.set_title("V(x) and its minima", fontsize=10)
    starts, labels = landscape.generate(jax.random.key(0), 2000)
    classes.scatter(*starts.T, c=[CLASSES[k] for k in labels], s=3)
    classes.set_title("where a start (x, v) comes to rest", fontsize=10)
    some, t = starts[:40], jnp.linspace(0.0, 30.0, 601)
    move = lambda t, x, gamma: landscape.field(t, x, (landscape.POTENTIAL, gamma))
    solver = FixedStep("rk4", 600)
    states = solve(move, some, landscape.FRICTION, solver=solver, gradient=Direct(), t1=30.0, ts=np.asarray(t)).x
    for k in range(len(some)):
        motions.plot(*states[:, k].T, color=CLASSES[int(labels[k])], lw=0.5)
    motions.set_title("the true motions", fontsize=10)
    points, labels = spheres.generate(jax.random.key(0), 1000, 2)
    shells.scatter(*points.T, c=[CLASSES[k] for k in labels], s=3)
    shells.set_aspect("equal")
    shells.set_title("spheres in the plane", fontsize=10)
    for axes in (potential, classes, motions, shells):
        _bare(axes)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def print_table(grids: dict[str, Row], adaptations: dict[str, Row], console: Console) -> None:
    """Ott table 1, measured and the paper's.

    Of a grid the field evaluations that bracket the critical step, by our test and by the paper's, and the best
    accuracy of the rows that pass, with the seeds that trained, of which it is the mean; of an algorithm the field
    evaluations of all training, its checks included, and the accuracy of all seeds.
    """
    table = Table(title="Field evaluations and accuracy of models that are ODEs (Ott table 1)", title_justify="left")
    for column in ("task", "how", "NFE", "accuracy [%]", "paper's NFE", "paper's [%]", "iterations (paper's)"):
        table.add_column(column)
    for task, record in grids.items():
        paper, iterations = record["paper"], iterations_of(record)
        for name, bracket in record.get("critical_nfe", {}).items():
            scheme, by = name.split(",")[0], "passed_gap" if "alone" in name else "passed"
            if not rows_of(record, scheme):
                continue
            passed = [row for row in rows_of(record, scheme) if row[by]]
            best = max(passed, key=lambda row: row["accuracy"], default=None)
            accuracy = "-"
            if best:
                seeds = f"{sum(best['trained'])} of {len(best['trained'])}"
                accuracy = f"{100 * best['accuracy']:.1f} ± {100 * best['spread']:.1f} ({seeds})"
            theirs = ("-".join(map(str, paper["critical"] or ())), str(paper["accuracy"] or ""))
            shown = theirs if scheme == "euler" else ("", "")
            nfe = " to ".join("-" if n is None else str(n) for n in bracket)
            table.add_row(task, f"grid, {name}", nfe, accuracy, *shown, iterations)
    for task, record in adaptations.items():
        nfe, percent = record["paper"]["adapted"] or ("", "")
        for name, row in record["rows"].items():
            accuracy = f"{100 * np.mean(row['accuracy']):.1f} ± {100 * np.std(row['accuracy']):.1f}"
            shown = ("", "") if "ours" in name else (str(nfe), str(percent))
            own = f"{np.mean(row['nfe_per_iteration']):.1f}"
            table.add_row(task, name, own, accuracy, *shown, iterations_of(record))
    show(table, console)


def iterations_of(record: Row) -> str:
    """Iterations of training, and the paper's."""
    return f"{record['used']['iterations']} ({record['paper']['iterations']})"


def draw_all(folder: Path, console: Console) -> None:
    """Draw what a folder holds, and print table 1.

    Raises:
      FileNotFoundError: where it holds nothing.
    """
    grids, adaptations, tolerances = (read(folder, what) for what in ("grid", "adapt", "tolerance"))
    if not (grids or adaptations or tolerances):
        raise FileNotFoundError(f"{folder} holds no results; run experiments.ott first, or name another --folder")
    drawn: dict[str, Figure] = {"data": draw_data()}
    trained = {t: record for t, record in grids.items() if any(trained_rows(record, s) for s in ("euler", "rk4"))}
    drawn |= {f"grid_{task}": draw_grid(record) for task, record in trained.items()}
    for task, record in grids.items():
        if (path := folder / f"grid_{task}.npz").exists():
            with np.load(path) as kept:
                # Arrays are written row by row, what is drawn of them when a grid is whole.
                if any(name.startswith("euler") for name in kept.files) and rows_of(record, "euler"):
                    drawn[f"trajectories_{task}"] = draw_trajectories(record, kept)
    drawn |= {f"adapt_{task}": draw_adaptation(record) for task, record in adaptations.items()}
    drawn |= {f"tolerance_{task}": draw_tolerances(record) for task, record in tolerances.items()}
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=100)
    print_table(grids, adaptations, console)
    print(f"written: {folder}/" + ", ".join(f"{name}.png" for name in drawn))


def main() -> None:
    """The command line."""
    try:
        draw_all(command_line(Options, "python -m experiments.ott.figures", __doc__).folder, Console(highlight=False))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
