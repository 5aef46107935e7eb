"""What ties a network to its solver: twins that differ in one setting alone, trained from ten seeds each.

    python -m experiments.tied
    python -m experiments.tied --rows rk4 euler --seeds 0 1 2

All have four coefficients and four steps a block at the end of training: `rk4` is the config `digits`, refined while it
trains; `euler` is its twin under Euler; `rk4_whole` has its four coefficients and steps from the first epoch on, as has
`euler_whole`, the config `digits_euler`, which is a ResNet; and the first and the last come again with half of the eps
and with weight decay. The weights are then evaluated under Euler, midpoint and RK4
at 4, 5, 6, 8 and 11 steps, on the 359 test images, and what is asked is how many points of accuracy the worst of these
loses. Seeds draw initial weights, order and augmentation; all see the same images.

Prints a line a run and the table, and writes tied.json and tied.png into --out; finished runs are not repeated. On two
cores a run takes 20 s to a minute under Euler and one to three minutes under RK4; all eighty 90 minutes.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import configs
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, destination, expand
from experiments.records.rows import Row, Rows
from experiments.records.tables import show
from experiments.training.config import Config
from experiments.training.manifestations import evaluate_grid, make_batches
from experiments.training.progress import NonFiniteError, read
from experiments.training.steps import REFINED, init_state, train_steps
from experiments.training.task import Task, variables_of
from ode_nets import remanifest
from ode_nets.remanifest import Manifestation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = tuple(Manifestation(scheme, n) for scheme in ("euler", "midpoint", "rk4") for n in (4, 5, 6, 8, 11))
"""What the weights are evaluated under; a manifestation of four steps is that of training."""


DIGITS, DIGITS_EULER = configs.CONFIGS["digits"], configs.CONFIGS["digits_euler"]


def _with(config: Config, scheme: str | None = None, epsilon: float | None = None, **settings: Any) -> Config:
    changes = {"scheme": scheme, "epsilon": epsilon}
    model: Any = dataclasses.replace(config.model, **{name: v for name, v in changes.items() if v is not None})
    return dataclasses.replace(config, model=model, **settings)


ROWS: dict[str, Config] = {
    "rk4": DIGITS,
    "euler": _with(DIGITS, scheme="euler"),
    "rk4_whole": _with(DIGITS_EULER, scheme="rk4"),
    "euler_whole": DIGITS_EULER,
    "rk4_half_epsilon": _with(DIGITS, epsilon=2.0),
    "euler_whole_half_epsilon": _with(DIGITS_EULER, epsilon=2.0),
    "rk4_weight_decay": _with(DIGITS, weight_decay=5e-4),
    "euler_whole_weight_decay": _with(DIGITS_EULER, weight_decay=5e-4),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Settings by name."""
    seeds: tuple[int, ...] = tuple(range(10))
    """A run each."""
    out: Path | None = None
    """Folder of the results; default runs/tied."""
    record: bool = False
    """Write into results/tied, which git keeps, instead."""
    overwrite: bool = False
    """Start anew."""

    def __post_init__(self) -> None:
        expand(self, "out")
        check_settings(
            self,
            ("rows", bool(self.rows) and set(self.rows) <= set(ROWS), f"some of {', '.join(ROWS)}"),
            ("seeds", bool(self.seeds) and min(self.seeds) >= 0, "at least one number of at least 0"),
        )


@lru_cache(1)
def prepared(name: str) -> tuple[Task, list[Any], Any]:
    """The task of a row, what starts a run of each level, and what draws an epoch's order: compiled once for all."""
    task = Task(ROWS[name], 1, feed="whole")
    image = jnp.zeros((1, *task.images.shape[1:]))
    return task, [jax.jit(partial(init_state, net, task.optimizer, image)) for net in task.nets], jax.jit(task.order_of)


def trained(name: str, seed: int) -> tuple[Task, Any]:
    """A run of a row from its beginning to its end: the task, and its last state.

    Raises:
      NonFiniteError: if it leaves the finite numbers.
    """
    task, starts, order_of = prepared(name)
    config, level, at = task.config, 0, np.int32(seed)
    state = starts[0](at)
    for epoch in range(config.epochs):
        while level < config.level(epoch):
            state = state | remanifest.refine(task.nets[level], {part: state[part] for part in REFINED})[1]
            level += 1
        images = (task.images, task.labels, order_of(at, np.int32(epoch)), task.scaling, at)
        state, metrics = train_steps(
            config, task.nets[level], task.optimizer, state, *images, n_steps=np.int32(task.steps_per_epoch)
        )
    read(metrics)
    return task, state


def measure(name: str, seed: int) -> tuple[Row, dict[str, np.ndarray]]:
    """One run: accuracy and loss as trained, and under every solver of the grid; or why it did not train."""
    began = time.perf_counter()
    try:
        task, state = trained(name, seed)
    except NonFiniteError as error:
        failed = {"row": name, "seed": seed, "failed": str(error), "said": "not trained, as it left the finite numbers"}
        return failed | {"seconds": time.perf_counter() - began}, {}
    batches, n_images = make_batches(task.dataset, "test")
    rows, _ = evaluate_grid(task.nets[-1], variables_of(state), list(GRID), batches, n_images)
    model: Any = ROWS[name].model
    own = next(row for row in rows if (row["scheme"], row["n_steps"]) == (model.scheme, 4))
    worst = min(rows, key=lambda row: row["accuracy"])
    lost = 100 * (own["accuracy"] - worst["accuracy"])
    kept = [{key: row[key] for key in ("scheme", "n_steps", "accuracy", "loss", "diverged")} for row in rows]
    said = f"{100 * own['accuracy']:.2f} %, loses up to {lost:.2f} points ({worst['scheme']}, N_t = {worst['n_steps']})"
    row = {"row": name, "seed": seed, "accuracy": own["accuracy"], "loss": own["loss"], "lost": lost, "grid": kept}
    return row | {"n_images": n_images, "said": said, "seconds": time.perf_counter() - began}, {}


def summary(rows: dict[str, Row]) -> dict[str, Any]:
    """Median, least and most of each setting over the seeds that trained, in percent, and how many did not."""
    found: dict[str, Any] = {}
    for name in ROWS:
        every = [row for row in rows.values() if row["row"] == name]
        runs = [row for row in every if "failed" not in row]
        if every:
            found[name] = {"n_seeds": len(runs), "n_failed": len(every) - len(runs)}
        if runs:
            accuracy, lost = [100 * row["accuracy"] for row in runs], [row["lost"] for row in runs]
            found[name]["accuracy"] = [statistics.median(accuracy), min(accuracy), max(accuracy)]
            found[name]["lost"] = [statistics.median(lost), min(lost), max(lost)]
    return found


def draw(rows: dict[str, Row]) -> Figure:
    """Points lost, a dot a seed, a line a setting."""
    from matplotlib.figure import Figure

    runs = [row for row in rows.values() if "failed" not in row]
    names = [name for name in ROWS if any(row["row"] == name for row in runs)]
    figure = Figure(figsize=(7, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for y, name in enumerate(names):
        lost = [row["lost"] for row in runs if row["row"] == name]
        color = "C1" if name.startswith("euler") else "C0"
        axes.plot(lost, [y] * len(lost), "o", color=color, alpha=0.6)
        axes.plot(statistics.median(lost), y, "|", color="black", markersize=16)
    axes.set(xscale="symlog", xlabel="points of test accuracy lost under the worst other solver, N_t of at least 4")
    axes.set_xlim(left=-0.1)
    axes.set_yticks(range(len(names)), labels=[name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set_xticks([0, 1, 10, 100], labels=["0", "1", "10", "100"])
    return figure


def tied(options: Options, folder: Path, console: Console) -> dict[str, Any]:
    """All runs and their summary, written into a folder."""
    settings = {"grid": [str(at) for at in GRID], "configs": {name: config.to_json() for name, config in ROWS.items()}}
    head = {"experiment": "tied", "settings": settings, "environment": environment()}
    rows = Rows.open(folder / "tied.json", head, options.overwrite)
    for name in options.rows:
        for seed in options.seeds:
            rows.fill(f"{name}, seed {seed}", partial(measure, name, seed), console)
    found = summary(rows.rows)
    rows.write({"summary": found})
    draw(rows.rows).savefig(folder / "tied.png", dpi=150)
    return found


def main() -> None:
    """The command line."""
    options, console = command_line(Options, "python -m experiments.tied", __doc__), Console(highlight=False)
    try:
        folder = destination("tied", options.out, options.record)
        found = tied(options, folder, console)
    except (RunError, NonFiniteError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    table = Table("", "seeds", "failed", "accuracy, %", "points lost", title="how much a network is tied to its solver")
    for name, row in found.items():
        spread = (
            f"{row[k][0]:.2f} ({row[k][1]:.2f} to {row[k][2]:.2f})" if k in row else "-" for k in ("accuracy", "lost")
        )
        table.add_row(name, str(row["n_seeds"]), str(row["n_failed"]), *spread)
    show(table, console)
    print(f"written: {folder}/tied.json, {folder}/tied.png")


if __name__ == "__main__":
    main()
