"""Evaluate the weights of a run under other solvers: a grid of (scheme, N_t) in one compiled program.

    python -m experiments.evaluate_solvers runs/digits    8 s of compilation and evaluation on two cores
    python -m experiments.evaluate_solvers runs/digits --twin runs/digits_euler --n-steps 4 5 6 7 8
    python -m experiments.evaluate_solvers runs/cifar10 --schemes euler rk4_38 --n-steps 6 11 32

Prints accuracy, loss, field evaluations and seconds of every manifestation, and writes them into RUN_DIR/swap
as swap.csv and swap.json, beside the two panels of ContinuousNet Fig. 9 in swap.png. `--n-steps` defaults to a
range around the step count that the run was trained with, most of which does not divide its number of
intervals. The seconds are those of the program, without reading and scaling images. An image whose logits are
not finite counts as a miss and in `diverged`; a manifestation with any has no loss.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.records import pictures
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, check_writable, expand, place, results_in, write_json
from experiments.records.progress import working
from experiments.records.swaps import Row, Swapped, outcome, read_swap
from experiments.records.tables import show
from experiments.training.fingerprint import data_of_run
from experiments.training.manifestations import default_steps, evaluate_grid, loaded, make_batches, restat_of
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import SCHEMES

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, on this machine or as gs://BUCKET/FOLDER."""
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
    data_dir: Path | None = None
    """Folder that the data lies in now; default where the run found it."""
    accept_new_data: bool = False
    """Evaluate on data that is not that of the run."""
    out: Path | None = None
    """Folder of the results, where that of the run cannot be written into; default RUN_DIR/swap, of a run in a bucket
    below runs/."""
    twin: Path | None = None
    """Folder of a second run, evaluated in the same way and drawn beside the first."""

    def __post_init__(self) -> None:
        expand(self, "run_dir", "twin", to=place)
        expand(self, "out")
        check_settings(
            self,
            (
                "schemes",
                bool(self.schemes) and set(self.schemes) <= set(SCHEMES),
                f"some of {', '.join(SCHEMES)}",
            ),
            ("n_steps", all(n >= 1 for n in self.n_steps), "numbers of at least 1"),
            ("lanes", self.lanes is None or self.lanes >= 1, "at least 1"),
            ("memory_gib", self.memory_gib is None or self.memory_gib > 0, "more than 0"),
        )


def swap_or_read(folder: Path, options: Options) -> tuple[Swapped, bool]:
    """The grid of one run, from its folder if it has been evaluated so, on the same images; and whether it has."""
    config, _, _, notes = loaded(folder, options.checkpoint)
    asked = {"split": options.split, "checkpoint": options.checkpoint, "step": notes["step"], "seed": config.seed}
    with contextlib.suppress(RunError):
        found = read_swap(folder)
        has = {(row["scheme"], row["n_steps"]) for row in found.rows}
        whole = {(scheme, n) for scheme in options.schemes for n in options.n_steps} <= has
        if whole and all(found.record[key] == value for key, value in asked.items()):
            return found, True
    return swap_run(folder, options), False


def swap_run(folder: Path, options: Options) -> Swapped:
    """The grid of one run, written into its folder as swap.csv and swap.json."""
    config, net, variables, notes = loaded(folder, options.checkpoint)
    dataset = data_of_run(config, notes["data"], options.accept_new_data, options.data_dir)
    restat = restat_of(net, variables, dataset)
    batches, n_images = make_batches(dataset, options.split)
    trained = Manifestation.of(net.solver)
    steps = sorted({*(options.n_steps or default_steps(trained.counted))})
    grid = [Manifestation(scheme, n) for scheme in options.schemes for n in steps]
    # Every curve is read against the manifestation that was trained.
    own_scheme = (Manifestation(trained.scheme, n) for n in sorted({*steps, trained.counted}))
    grid += [own for own in own_scheme if own not in grid]
    with working(f"{folder.name}: {len(grid)} manifestations in one program"):
        rows, program = evaluate_grid(
            net, variables, grid, batches, n_images, options.lanes, options.memory_gib, restat
        )
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
            "basis": repr(getattr(net, "basis", None)),
            "epsilon": getattr(net, "epsilon", None),
        },
        "statistics": "" if restat is None else restat.sentence,
        "program": program,
        "environment": environment(),
        "rows": rows,
    }
    out = results_of(folder, options)
    write_json(out / "swap.json", record)
    with (out / "swap.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Swapped(folder.name, trained, rows, record)


def results_of(folder: Path, options: Options) -> Path:
    """The folder that the grid of one run is written into; of a twin beside another with `--out`, one below it."""
    if options.out is None:
        return results_in(folder, "swap")
    return options.out if folder == options.run_dir else options.out / folder.name


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def print_table(swapped: Swapped, console: Console) -> None:
    """Accuracy in percent, loss, field evaluations and seconds, a scheme a column and an N_t a line."""
    record, own = swapped.record, swapped.own
    schemes = list(dict.fromkeys(row["scheme"] for row in swapped.rows))
    # A narrow terminal gets two lines a cell rather than numbers cut off.
    gap = "  " if console.width >= 12 + 29 * len(schemes) else "\n"
    table = Table(
        title=f"{escape(swapped.name)}: trained under {swapped.trained.scheme}, N_t = {swapped.trained.n_steps}\n"
        f"accuracy % and loss on {record['n_images']} {record['split']} images, field evaluations, seconds",
        title_justify="left",
    )
    table.add_column("N_t", justify="right")
    for scheme in schemes:
        table.add_column(scheme, justify="right")
    by_key = {(row["scheme"], row["n_steps"]): row for row in swapped.rows}

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        text = f"{outcome(row)}{gap}{row['nfe']} {row['seconds']:.2f}s"
        style = "bold" if row is own else "red" if own["accuracy"] - row["accuracy"] >= 0.01 else "none"
        return f"[{style}]{text}[/]"

    for n in sorted({row["n_steps"] for row in swapped.rows}):
        table.add_row(str(n), *(cell(by_key.get((scheme, n))) for scheme in schemes))
    show(table, console)
    program = record["program"]
    console.print(
        f"bold: as trained; red: a point or more below it. {len(swapped.rows)} manifestations in one "
        f"program: compiled in {program['compile_seconds']:.1f} s, ran in {program['run_seconds']:.1f} s, "
        f"{program['lanes']} lane(s), {program['temporary_mib']:.1f} MiB of temporary memory",
        soft_wrap=True,
    )
    if record.get("statistics"):
        console.print(record["statistics"], soft_wrap=True)


def main() -> None:
    """The command line."""
    console = Console()
    try:
        options = command_line(Options, "python -m experiments.evaluate_solvers", __doc__)
        folders = [options.run_dir] + ([options.twin] if options.twin else [])
        for folder in folders:
            check_writable(results_of(folder, options), "--out writes elsewhere")
        swaps = []
        for folder in folders:
            swaps.append(swap_run(folder, options))
            print_table(swaps[-1], console)
        pictures.draw_swap(swaps).savefig(results_of(options.run_dir, options) / "swap.png", dpi=150)
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {results_of(options.run_dir, options)}/swap.csv, swap.json, swap.png")


if __name__ == "__main__":
    main()
