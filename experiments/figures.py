"""Pictures of finished runs, from what their folders keep: nothing is trained or evaluated here.

    python -m experiments.figures weights runs/digits runs/digits_euler     theta(t), ContinuousNet Fig. 8
    python -m experiments.figures training runs/digits runs/digits_euler    progress of training, Fig. 7
    python -m experiments.figures swap runs/digits runs/digits_euler        solver swaps, Fig. 9

Written into --out, by default pictures/ in the first run's folder. `swap` draws what evaluate_solvers measured.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from experiments import evaluate_solvers, models
from experiments.config import Config
from experiments.run import RunError, read_manifest, read_metrics
from ode_nets.weights import PiecewiseConstant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_DRAWN = 12
"""Weights in a panel; more are a thicket."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which picture of which runs."""

    figure: Annotated[Literal["weights", "training", "swap"], tyro.conf.Positional]
    """What to draw."""
    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of one run or more, drawn together; `weights` compares the first two."""
    out: Path | None = None
    """Folder of the picture."""
    block: str = ""
    """Block whose weights are drawn; default: the last."""

    def __post_init__(self) -> None:
        if not self.run_dirs:
            raise ValueError("run_dirs=(): expected the folder of at least one run")


def config_of(folder: Path) -> Config:
    """The config of a run.

    Raises:
      RunError: if there is no run.
    """
    record = read_manifest(folder)
    if record is None:
        raise RunError(f"there is no run in {folder}: it has no manifest.json")
    return Config.from_json(record["config"])


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------------------------------------------------
# Fig. 8: weights over depth
# ---------------------------------------------------------------------------------------------------------


def read_snapshots(folder: Path, block: str) -> tuple[str, list[np.ndarray]]:
    """Name of a block (the last for ""), and some of its weights at the end of each level, `[M, n_weights]`.

    Raises:
      RunError: if the run kept none, or has no such block.
    """
    levels = sorted((folder / "snapshots").glob("level_*.npz"), key=lambda path: int(path.stem[6:]))
    if not levels:
        raise RunError(f"{folder} holds no snapshots: train it to its end, or to its first refinement")
    loaded = [dict(np.load(path)) for path in levels]
    if not loaded[0] or (block and block not in loaded[0]):
        raise RunError(f"block={block!r}: the blocks of {folder} are {', '.join(loaded[0]) or 'none'}")
    block = block or sorted(loaded[0])[-1]
    return block, [level[block] for level in loaded]


def roughness(coefficients: np.ndarray, config: Config) -> float:
    """How far a weight moves from one of its M intervals to the next, as a share of the weights' spread.

    The root mean square of theta(t_{k+1}) - theta(t_k) over k and weights, divided by the standard deviation
    over weights; t_k are the interval midpoints. 0 where theta is constant in depth, 1.4 where intervals
    have nothing to do with each other.
    """
    m = len(coefficients)
    values = models.BASES[config.basis](m).evaluate(PiecewiseConstant(m).nodes()) @ coefficients
    return float(np.sqrt(np.mean(np.diff(values, axis=0) ** 2)) / values.std()) if m > 1 else 0.0


def draw_theta(axes: Axes, coefficients: np.ndarray, config: Config) -> None:
    """A few weights as functions of depth-time."""
    m = len(coefficients)
    basis = models.BASES[config.basis](m)
    for k in range(min(N_DRAWN, coefficients.shape[1])):
        style = {"color": f"C{k % 10}", "lw": 1.3}
        if isinstance(basis, PiecewiseConstant):
            axes.stairs(coefficients[:, k], np.linspace(0, 1, m + 1), baseline=None, **style)
        else:
            t = np.linspace(0, 1, 401)
            axes.plot(t, basis.evaluate(t) @ coefficients[:, k], **style)
    axes.axhline(0, color="0.8", lw=0.6, zorder=0)
    axes.set_xlim(0, 1)
    _plain(axes)


def draw_weights(folders: list[Path], block: str = "") -> Figure:
    """ContinuousNet Fig. 8: weights at the end of each level (left), and of two runs at their end (right)."""
    from matplotlib.figure import Figure

    block, levels = read_snapshots(folders[0], block)
    configs = [config_of(folder) for folder in folders[:2]]
    finals = [read_snapshots(folder, block)[1][-1] for folder in folders[:2]]
    figure = Figure(figsize=(9 if len(folders) > 1 else 5, 1.2 + 1.5 * max(len(levels), 2)), layout="constrained")
    halves = figure.subfigures(1, len(folders[:2]))
    left = np.atleast_1d(halves)[0]
    panels = np.atleast_1d(left.subplots(len(levels), 1, sharex=True, sharey=True))
    for axes, coefficients in zip(panels, levels, strict=True):
        draw_theta(axes, coefficients, configs[0])
        axes.set_title(f"M = {len(coefficients)}", fontsize=9, loc="left", pad=3)
        axes.set_ylabel("weight")
    panels[-1].set_xlabel("depth-time t")
    left.suptitle(f"{folders[0].name}, {block}: end of each level", fontsize=10)
    if len(folders) > 1:
        right = halves[1]
        panels = right.subplots(2, 1, sharex=True, sharey=True)
        for axes, folder, coefficients, config in zip(panels, folders, finals, configs, strict=False):
            draw_theta(axes, coefficients, config)
            rough = roughness(coefficients, config)
            axes.set_title(
                f"{folder.name} ({config.scheme}): step to step {rough:.2f} of the spread",
                fontsize=9, loc="left", pad=3,
            )  # fmt: skip
            axes.set_ylabel("weight")
        panels[-1].set_xlabel("depth-time t")
        right.suptitle(f"at the end, {block}", fontsize=10)
    return figure


# ---------------------------------------------------------------------------------------------------------
# Fig. 7: progress of training
# ---------------------------------------------------------------------------------------------------------


def draw_training(folders: list[Path]) -> Figure:
    """ContinuousNet Fig. 7: seconds an epoch, validation accuracy and training loss; refinements as lines.

    Raises:
      RunError: for a run without a finished epoch.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    seconds, accuracy, loss = figure.subplots(3, 1, sharex=True)
    for k, folder in enumerate(folders):
        records, config, color = read_metrics(folder), config_of(folder), f"C{k}"
        if not records:
            raise RunError(f"{folder} holds no finished epoch yet")
        epochs = np.array([record["epoch"] for record in records])
        label = f"{folder.name} ({config.scheme})"
        seconds.plot(epochs, [record["seconds"] for record in records], color=color, marker=".", lw=1, label=label)
        which = "validation" if "validation_accuracy" in records[0] else "train"
        values = [100 * record[f"{which}_accuracy"] for record in records]
        accuracy.plot(epochs, values, color=color, marker=".", lw=1)
        losses = np.array([record["train_loss"] for record in records])
        loss.plot(epochs, losses, color=color, marker=".", lw=1)
        levels = np.array([record["level"] for record in records])
        for epoch in epochs[1:][np.diff(levels) > 0]:
            for axes in (seconds, accuracy, loss):
                axes.axvline(epoch - 0.5, color=color, ls=":", lw=1)
        accuracy.set_ylabel(f"{which} accuracy [%]")
    seconds.set_ylabel("seconds an epoch")
    seconds.set_ylim(bottom=0)
    loss.set_ylabel("training loss")
    loss.set_yscale("log")
    loss.set_xlabel("epoch (dotted: M and $N_t$ doubled)")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    seconds.legend(frameon=False, fontsize=9)
    for axes in (seconds, accuracy, loss):
        _plain(axes)
    return figure


# ---------------------------------------------------------------------------------------------------------
# The front of experiments.compress
# ---------------------------------------------------------------------------------------------------------


def draw_front(rows: list[dict[str, Any]], front: list[dict[str, Any]], chosen: dict[str, Any]) -> Figure:
    """Accuracy against field evaluations: every candidate, the front, the trained one (first) and the chosen."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for k, basis in enumerate(dict.fromkeys(row["basis"] for row in rows)):
        some = [row for row in rows if row["basis"] == basis]
        axes.scatter(
            [row["nfe"] for row in some], [100 * row["accuracy"] for row in some],
            s=[12 + 8 * np.log2(row["n_basis"]) for row in some],
            color=f"C{k}", alpha=0.55, lw=0, label=basis.replace("_", " "),
        )  # fmt: skip
    steps = [(row["nfe"], 100 * row["accuracy"]) for row in front]
    axes.step(*zip(*steps, strict=True), where="post", color="0.3", lw=1, label="front")
    for row, marker, name in ((rows[0], "*", "trained"), (chosen, "o", "chosen")):
        basis = row["basis"].replace("_", " ")
        label = f"{name}: {basis}, M={row['n_basis']}, {row['scheme']}, $N_t$={row['n_steps']}"
        at = row["nfe"], 100 * row["accuracy"]
        axes.scatter(*at, s=130, marker=marker, facecolor="none", edgecolor="k", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    # Candidates that fell apart would press the front into a line.
    low, high = min(100 * row["accuracy"] for row in front), max(100 * row["accuracy"] for row in rows)
    margin = max(1.0, 0.15 * (high - low))
    axes.set_ylim(low - 3 * margin, high + margin)
    axes.set_xlabel("field evaluations a forward pass")
    axes.set_ylabel("validation accuracy [%]")
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def draw(options: Options) -> Path:
    """Draw one picture; where it was written."""
    folders = list(options.run_dirs)
    if options.figure == "weights":
        figure = draw_weights(folders, options.block)
    elif options.figure == "training":
        figure = draw_training(folders)
    else:
        figure = evaluate_solvers.draw([evaluate_solvers.read_swap(folder) for folder in folders])
    path = (options.out or folders[0] / "pictures") / f"{options.figure}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def main() -> None:
    """The command line."""
    try:
        options = tyro.cli(Options, prog="python -m experiments.figures", description=__doc__)
        print(f"written: {draw(options)}")
    except (RunError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
