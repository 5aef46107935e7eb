"""Evaluate the weights of a run under other solvers: a grid of (scheme, N_t) in one compiled program.

    python -m experiments.evaluate_solvers runs/digits
    python -m experiments.evaluate_solvers runs/digits --twin runs/digits_euler --n-steps 4 5 6 7 8
    python -m experiments.evaluate_solvers runs/cifar10 --schemes euler rk4_38 --n-steps 6 11 32

Prints accuracy, loss, field evaluations and seconds of every manifestation, and writes them into RUN_DIR/swap
as swap.csv and swap.json, beside the two panels of ContinuousNet Fig. 9 in swap.png. `--n-steps` defaults to a
range around the step count that the run was trained with, most of which does not divide its number of
intervals. The seconds are those of the program, without reading and scaling images. An image whose logits are
not finite counts as a miss and in `diverged`; a manifestation with any has no loss.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

from experiments import data, pictures
from experiments.config import Config
from experiments.environment import environment
from experiments.run import RunError, load_run, write_json
from experiments.swaps import Row, Swapped
from experiments.train import padded_batches
from ode_nets import remanifest
from ode_nets.integrate import FixedStep
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import SCHEMES

PyTree = Any
Batches = Callable[[], Iterator[tuple[jax.Array, jax.Array]]]
MAX_BATCH_SIZE = 250


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which of its checkpoints."""
    schemes: tuple[str, ...] = ("euler", "midpoint", "rk4", "rk4_38")
    """Runge-Kutta schemes."""
    n_steps: tuple[int, ...] = ()
    """Steps a block; default: a range around the run's own."""
    split: Literal["test", "validation"] = "test"
    """Images to evaluate on."""
    lanes: int | None = None
    """Solvers side by side; default 1 on a CPU, and elsewhere as many as --memory-gib allows."""
    memory_gib: float | None = None
    """Temporary memory that lanes may take; default half of the device's, or 4."""
    twin: Path | None = None
    """Folder of a second run, evaluated in the same way and drawn beside the first."""

    def __post_init__(self) -> None:
        for name, good, allowed in (
            (
                "schemes",
                bool(self.schemes) and set(self.schemes) <= set(SCHEMES),
                f"some of {', '.join(SCHEMES)}",
            ),
            ("n_steps", all(n >= 1 for n in self.n_steps), "numbers of at least 1"),
            ("lanes", self.lanes is None or self.lanes >= 1, "at least 1"),
            ("memory_gib", self.memory_gib is None or self.memory_gib > 0, "more than 0"),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")


# ---------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------


def score(logits: jax.Array, labels: jax.Array) -> PyTree:
    """Summed cross-entropy, hits, and images that diverged of a batch; images with label -1 are padding."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    # The largest of many NaN is the first, so that what diverged would pass for class 0.
    real, finite = labels >= 0, jnp.isfinite(logits).all(-1)
    return {
        "loss": jnp.sum(jnp.where(real, loss, 0.0)),
        "hits": jnp.sum(real & finite & (logits.argmax(-1) == labels)),
        "diverged": jnp.sum(real & ~finite),
    }


def default_steps(trained: int) -> tuple[int, ...]:
    """Step counts below, at and above the trained one, half of them no divisor or multiple of it."""
    ratios = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.5, 1.75, 2, 3, 4)
    return tuple(sorted({max(1, round(trained * ratio)) for ratio in ratios}))


def loaded(folder: Path, which: str) -> tuple[Config, nn.Module, PyTree, dict[str, Any]]:
    """`load_run`, of a network with a solver to swap."""
    config, net, variables, notes = load_run(folder, which)
    if not isinstance(getattr(net, "solver", None), FixedStep):
        raise RunError(f"the run in {folder} is a {type(net).__name__}: it has no fixed-step solver to exchange")
    return config, net, variables, notes


def dataset_of(config: Config) -> data.Dataset:
    """The images of a run, split as it saw them."""
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        limit=config.limit,
    )


def make_batches(dataset: data.Dataset, split: str, most: int | None = None) -> tuple[Batches, int]:
    """Batches of a split as `remanifest.run_swap` takes them, scaled and of one shape; the number of images.

    Args:
      dataset, split: which images; most: the first so many alone.

    Raises:
      RunError: if the split holds no images.
    """
    images, labels = getattr(dataset, f"x_{split}")[:most], getattr(dataset, f"y_{split}")[:most]
    if not len(images):
        raise RunError(f"the run has no {split} images: it was trained with validation_fraction=0")
    n_batches = -(-len(images) // MAX_BATCH_SIZE)
    batch_size = -(-len(images) // n_batches)
    scale = jax.jit(data.normalize)

    def batches() -> Iterator[tuple[jax.Array, jax.Array]]:
        for x, y in padded_batches(images, labels, batch_size):
            yield scale(x, dataset.mean, dataset.std), jnp.asarray(y)

    return batches, len(images)


def memory_bound(memory_gib: float | None) -> int:
    """Bytes that the lanes of a swap may take."""
    stats = jax.devices()[0].memory_stats() or {}
    half = stats.get("bytes_limit", 8 * 2**30) // 2
    return half if memory_gib is None else int(memory_gib * 2**30)


def evaluate_grid(
    net: nn.Module,
    variables: PyTree,
    grid: list[Manifestation],
    batches: Batches,
    n_images: int,
    lanes: int | None = None,
    memory_gib: float | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """One row a manifestation on a uniform grid, and what the program was.

    `lanes=None` takes one lane on a CPU, where lanes side by side cost more than one after another, and
    elsewhere as many as the compiled program's temporary memory allows.
    """
    if lanes is None and jax.default_backend() == "cpu":
        lanes = 1
    solvers = [FixedStep(at.scheme, at.counted) for at in grid]
    start = time.perf_counter()
    example = next(iter(batches()))
    bound = memory_bound(memory_gib)
    swap = remanifest.compile_swap(net, variables, example, score, solvers, lanes=lanes, bytes_available=bound)
    compile_seconds = time.perf_counter() - start
    scores, seconds = remanifest.run_swap(swap, variables, solvers, batches, time.perf_counter)
    blocks = len(net.widths)
    rows = [
        {
            "scheme": at.scheme,
            "n_steps": at.n_steps,
            "accuracy": int(sums["hits"]) / n_images,
            "loss": None if sums["diverged"] else float(sums["loss"]) / n_images,
            "diverged": int(sums["diverged"]),
            "nfe": remanifest.nfe(solver, blocks),
            "seconds": taken,
        }
        for at, solver, sums, taken in zip(grid, solvers, scores, seconds, strict=True)
    ]
    program = {
        "lanes": swap.lanes,
        "temporary_mib": swap.temporary_bytes / 2**20,
        "compile_seconds": compile_seconds,
        "run_seconds": sum(seconds),
    }
    return rows, program


def swap_run(folder: Path, options: Options) -> Swapped:
    """The grid of one run, written into its folder as swap.csv and swap.json."""
    config, net, variables, notes = loaded(folder, options.checkpoint)
    batches, n_images = make_batches(dataset_of(config), options.split)
    trained = Manifestation.of(net.solver)
    steps = sorted({*(options.n_steps or default_steps(trained.counted))})
    grid = [Manifestation(scheme, n) for scheme in options.schemes for n in steps]
    # Every curve is read against the manifestation that was trained.
    own_scheme = (Manifestation(trained.scheme, n) for n in sorted({*steps, trained.counted}))
    grid += [own for own in own_scheme if own not in grid]
    rows, program = evaluate_grid(net, variables, grid, batches, n_images, options.lanes, options.memory_gib)
    record = {
        "run": str(folder),
        "checkpoint": options.checkpoint,
        "step": notes["step"],
        "seed": config.seed,
        "split": options.split,
        "n_images": n_images,
        "trained": {
            "scheme": trained.scheme,
            "n_steps": trained.n_steps,
            "basis": repr(net.basis),
            "epsilon": net.epsilon,
        },
        "program": program,
        "environment": environment(),
        "rows": rows,
    }
    write_json(folder / "swap" / "swap.json", record)
    with (folder / "swap" / "swap.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Swapped(folder.name, trained, rows, record)


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def outcome(row: Row) -> str:
    """Accuracy in percent and loss, or how many images diverged."""
    loss = f"{row['diverged']} diverged" if row["loss"] is None else f"{row['loss']:.3f}"
    return f"{100 * row['accuracy']:.2f} {loss}"


def print_table(swapped: Swapped, console: Console) -> None:
    """Accuracy in percent, loss, field evaluations and seconds, a scheme a column and an N_t a line."""
    record, own = swapped.record, swapped.own
    schemes = list(dict.fromkeys(row["scheme"] for row in swapped.rows))
    # A narrow terminal gets two lines a cell rather than numbers cut off.
    gap = "  " if console.width >= 12 + 29 * len(schemes) else "\n"
    table = Table(
        title=f"{swapped.name}: trained under {swapped.trained.scheme}, N_t = {swapped.trained.n_steps}\n"
        f"accuracy % and loss on {record['n_images']} {record['split']} images, field evaluations, seconds",
        title_justify="left",
    )
    table.add_column("N_t", justify="right")
    for scheme in schemes:
        table.add_column(scheme, justify="right", no_wrap=True)
    by_key = {(row["scheme"], row["n_steps"]): row for row in swapped.rows}

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        text = f"{outcome(row)}{gap}{row['nfe']} {row['seconds']:.2f}s"
        style = "bold" if row is own else "red" if own["accuracy"] - row["accuracy"] >= 0.01 else "none"
        return f"[{style}]{text}[/]"

    for n in sorted({row["n_steps"] for row in swapped.rows}):
        table.add_row(str(n), *(cell(by_key.get((scheme, n))) for scheme in schemes))
    console.print(table)
    program = record["program"]
    console.print(
        f"bold: as trained; red: a point or more below it. {len(swapped.rows)} manifestations in one "
        f"program: compiled in {program['compile_seconds']:.1f} s, ran in {program['run_seconds']:.1f} s, "
        f"{program['lanes']} lane(s), {program['temporary_mib']:.1f} MiB of temporary memory",
        soft_wrap=True,
    )


def main() -> None:
    """The command line."""
    console = Console()
    try:
        options = tyro.cli(Options, prog="python -m experiments.evaluate_solvers", description=__doc__)
        folders = [options.run_dir] + ([options.twin] if options.twin else [])
        swaps = []
        for folder in folders:
            swaps.append(swap_run(folder, options))
            print_table(swaps[-1], console)
        pictures.draw_swap(swaps).savefig(options.run_dir / "swap" / "swap.png", dpi=150)
    except (RunError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    console.print(f"written: {options.run_dir / 'swap'}/swap.csv, swap.json, swap.png")


if __name__ == "__main__":
    main()
