"""ContinuousNet on all of CIFAR-10 by two cores: Table 1's layout and Figs 7 to 9 of three networks that are trained.

    python -m experiments.train cifar10_two_cores
    python -m experiments.train cifar10_two_cores_euler
    python -m experiments.train cifar10_two_cores_euler16
    python -m experiments.cifar10

Every network is evaluated on the test images under its own solver and others (`experiments.evaluate_solvers`), is
compressed (`experiments.compress`), and gets its verdict (`experiments.is_ode`); what one of these has left in a run's
folder is not computed again. Estimated from the seconds of a step: an hour and a half of two cores for all three,
beside their training. Not measured here.

Prints a table with a line a network, and writes cifar10.json, training.png (Fig. 7), weights.png (Fig. 8, with how far
weights move from interval to interval), swap.png (Fig. 9) and front.png, of the first network, into --out.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import compress, evaluate_solvers, figures, is_ode
from experiments.records import pictures
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, destination, expand, read_manifest, read_metrics, results_in, write_json
from experiments.records.swaps import Swapped
from experiments.records.tables import show
from experiments.training.manifestations import loaded
from ode_nets.remanifest import Manifestation

Record = dict[str, Any]
NAMES = ("cifar10_two_cores", "cifar10_two_cores_euler", "cifar10_two_cores_euler16")
FACTORS = (0.5, 1, 1.5)
"""Steps a block under which a network is evaluated, in units of its own."""
SERVED = ("euler", "midpoint", "rk4")
"""Schemes that compression tries: RK4-3/8 costs what RK4 does."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs, and on how much."""

    runs: tuple[Path, ...] = tuple(Path("runs") / name for name in NAMES)
    """Folders of finished runs."""
    images: int = 512
    """Test images of the verdicts, the first ones; solvers are exchanged on all of them."""
    out: Path | None = None
    """Folder of the results; default runs/two_cores."""
    record: bool = False
    """Write into results/cifar10_two_cores, which git keeps, instead."""

    def __post_init__(self) -> None:
        expand(self, "runs", "out")
        check_settings(self, ("runs", bool(self.runs), "at least one"), ("images", self.images >= 1, "at least 1"))


def swapped(folder: Path) -> Swapped:
    """The end of the run under other solvers on the test images, from its folder if it has been evaluated so."""
    _, net, _, _ = loaded(folder, "latest")
    trained = Manifestation.of(net.solver).counted
    steps = tuple(sorted({max(1, round(trained * factor)) for factor in FACTORS}))
    return evaluate_solvers.swap_or_read(folder, evaluate_solvers.Options(folder, n_steps=steps))[0]


def front_of(folder: Path, step: int, console: Console) -> Record:
    """What compression found of the weights of a step, likewise, or why it found nothing."""
    path, options = results_in(folder, "compressed") / "front.json", compress.Options(folder, scheme=SERVED)
    asked = {"step": step, "searched": compress.searched(options)}
    if not path.exists() or {key: json.loads(path.read_text())[key] for key in asked} != asked:
        try:
            compress.compress(dataclasses.replace(options, overwrite=True), console)
        except RunError as error:
            console.print(f"{folder.name} is not compressed: {error}", soft_wrap=True)
            return {"refused": str(error)}
    front = json.loads(path.read_text())
    found = {key: front[key] for key in ("n_images", "trained", "chosen", "front")}
    return found | {"evaluations_saved": front["trained"]["nfe"] / front["chosen"]["nfe"]}


def verdict_of(folder: Path, step: int, images: int) -> Record:
    """The report of is_ode on the weights of a step, likewise."""
    path = results_in(folder, "is_ode") / f"{step}_{images}.json"
    if not path.exists():
        write_json(path, is_ode.finite(is_ode.examine(is_ode.Options((folder,), images=images), folder)))
    return json.loads(path.read_text())


def roughness_of(folder: Path) -> dict[str, float]:
    """How far weights move from interval to interval, by block."""
    return {name: pictures.roughness(*levels[-1]) for name, levels in figures.snapshots(folder).items()}


def measure(folder: Path, options: Options, console: Console) -> tuple[Record, Swapped]:
    """All of one run."""
    manifest = read_manifest(folder)
    if manifest is None or manifest["status"] != "finished":
        raise RunError(f"the run in {folder} is not finished: python -m experiments.train {folder.name}")
    swap = swapped(folder)
    step = swap.record["step"]
    front, verdict = front_of(folder, step, console), verdict_of(folder, step, options.images)
    record = {
        "name": folder.name,
        "config": manifest["config"],
        "results": manifest["results"],
        "environment": manifest["environment"],
        "metrics": read_metrics(folder),
        "roughness": roughness_of(folder),
        "swap": {key: swap.record[key] for key in ("n_images", "trained", "statistics", "program", "rows")},
        "compressed": front,
        "verdict": {key: verdict.get(key) for key in ("verdict", "sentence", "n_images", "exchange", "uncertainty")},
    }
    return record, swap


def print_table(found: list[tuple[Record, Swapped]], console: Console) -> None:
    """A line a network."""
    table = Table(title="ContinuousNet on CIFAR-10: accuracy in percent of all test images", title_justify="left")
    for name in ("trained", "accuracy", "worst at as many steps or more", "under", "roughness", "verdict", "minutes"):
        table.add_column(name, justify="left" if name == "trained" else "right")
    for record, swap in found:
        own = swap.own
        worst = min((row for row in swap.rows if row["n_steps"] >= own["n_steps"]), key=lambda row: row["accuracy"])
        table.add_row(
            f"{own['scheme']} {own['n_steps']}",
            f"{100 * own['accuracy']:.2f}",
            f"{100 * worst['accuracy']:.2f}",
            f"{worst['scheme']} {worst['n_steps']}",
            " ".join(f"{value:.2f}" for value in record["roughness"].values()),
            record["verdict"]["verdict"],
            f"{record['results']['train_seconds'] / 60:.0f}",
        )
    show(table, console)


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.cifar10", __doc__)
        # runs/cifar10_two_cores is a run.
        out = destination("cifar10_two_cores" if options.record else "two_cores", options.out, options.record)
        found = [measure(folder, options, console) for folder in options.runs]
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in (
            ("training", figures.draw_training(options.runs)),
            ("weights", figures.draw_weights(options.runs)),
            ("swap", pictures.draw_swap([swap for _, swap in found])),
        ):
            figure.savefig(out / f"{name}.png", dpi=110)
        front = results_in(options.runs[0], "compressed") / "front.png"
        if front.exists():
            shutil.copy(front, out)
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print_table(found, console)
    write_json(out / "cifar10.json", {"environment": environment(), "runs": [record for record, _ in found]})
    print(f"written: {out}/cifar10.json, training.png, weights.png, swap.png, front.png")


if __name__ == "__main__":
    main()
