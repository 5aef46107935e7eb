"""The first thing to run: two small networks, trained with RK4 and with Euler, under each other's solvers.

    python -m experiments.quickstart                  2.6 minutes on two cores, no data to fetch

Trains the configs `digits` (ContinuousNet under RK4, refined while it trains) and `digits_euler` (its twin
under Euler at full depth from the start, which is a ResNet) on scikit-learn's handwritten digits, evaluates the
weights of both under a grid of solvers, prints the tables and writes three pictures into runs/quickstart. Run
again, it goes on where it was interrupted and skips what is finished.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from experiments import configs, evaluate_solvers, figures, train
from experiments.records import pictures
from experiments.records.command import command_line
from experiments.records.files import RunError, read_manifest, say
from experiments.records.swaps import Swapped
from experiments.training.config import Config
from experiments.training.progress import Interrupted

NAMES = ("digits", "digits_euler")
N_STEPS = (1, 2, 3, 4, 5, 6, 8, 11)
"""Steps to evaluate with; most do not divide the number of intervals."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run it."""

    out: Path = Path("runs/quickstart")
    """Folder of both runs and of the pictures."""
    seed: int = 0
    """Of both runs."""
    overwrite: bool = False
    """Delete what is there and start anew."""


def train_or_resume(config: Config, folder: Path, overwrite: bool, console: Console) -> None:
    """Train a run to its end, from wherever it is.

    Raises:
      RunError: if the folder holds a run with other settings, or training stops.
    """
    found = None if overwrite else read_manifest(folder)
    if found is not None:
        if Config.from_json(found["config"]) != config:
            raise RunError(f"{folder} holds a run with other settings: --overwrite deletes it, --out goes elsewhere")
        what = "finished earlier, skipped" if found["status"] == "finished" else "resumed where it stopped"
        console.print(f"[bold]{escape(folder.name)}[/]: {what}")
    else:
        console.print(f"[bold]{escape(folder.name)}[/]: training")
    train.train(config, train.Options(resume=found is not None, overwrite=overwrite), folder)


def swap_or_read(folder: Path, console: Console) -> Swapped:
    """The solver swaps of a finished run, read if they were measured on this checkpoint already."""
    found, earlier = evaluate_solvers.swap_or_read(folder, evaluate_solvers.Options(folder, n_steps=N_STEPS))
    if earlier:
        console.print(f"[bold]{escape(folder.name)}[/]: solver swaps were evaluated earlier, skipped")
    return found


def largest_loss(swapped: Swapped, least_steps: int) -> tuple[float, str]:
    """Most points of accuracy lost by any manifestation of so many steps or more, and by which."""
    own = swapped.own["accuracy"]
    worst = min((r for r in swapped.rows if r["n_steps"] >= least_steps), key=lambda row: row["accuracy"])
    return max(0.0, 100 * (own - worst["accuracy"])), f"{worst['scheme']}, N_t = {worst['n_steps']}"


def quickstart(chosen: Mapping[str, Config], out: Path, overwrite: bool, console: Console) -> list[Swapped]:
    """Train, swap, print and draw.

    Args:
      chosen: configs by the name of their run, drawn in this order.
      out: folder of the runs and the pictures.
      overwrite: whether to delete what is there.
    """
    for name, config in chosen.items():
        train_or_resume(config, out / name, overwrite, console)
    swaps = [swap_or_read(out / name, console) for name in chosen]
    for swapped in swaps:
        evaluate_solvers.print_table(swapped, console)
    for swapped in swaps:
        lost, where = largest_loss(swapped, least_steps=4)
        console.print(
            f"{swapped.name}: {100 * swapped.own['accuracy']:.2f} % as trained; at N_t >= 4 other solvers "
            f"lose up to {lost:.2f} points ({where})",
            soft_wrap=True,
        )
    folders = [out / name for name in chosen]
    drawn = {
        "swap.png": pictures.draw_swap(swaps),
        "weights.png": figures.draw_weights(folders),
        "training.png": figures.draw_training(folders),
    }
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=150)
    print(f"written: {', '.join(str(out / name) for name in drawn)}")
    return swaps


def main() -> None:
    """The command line."""
    began, console = time.perf_counter(), Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.quickstart", __doc__)
        chosen = {name: dataclasses.replace(configs.CONFIGS[name], seed=options.seed) for name in NAMES}
        quickstart(chosen, options.out, options.overwrite, console)
    except Interrupted as stop:
        say(f"\nstopped by {stop.name} at step {stop.step}; the same command goes on from there")
        sys.exit(128 + stop.signum)
    except (RunError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    console.print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
