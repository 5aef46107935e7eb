"""Fit a latent ODE to irregular series with missing values, and draw what it makes of them.

    python -m experiments.latent_ode DATA.npz
    python -m experiments.latent_ode DATA.npz --observed 0.3 --epochs 100 --gradient backsolve
    python -m experiments.latent_ode DATA.npz --net gru  a baseline
    python -m experiments.latent_ode DATA.npz --resume   goes on, with the settings that it was started with

DATA.npz holds `times`, `[times]` or a row a series; `values`, `[series, times, features]`, NaN where missing; and maybe
`mask`, like values, true where observed. Series shorter than others are padded with their last time and NaN. The last
series validate and test. Of each series the encoder sees a share of the times; all of its values are to be predicted,
so that what is asked of it is interpolation. Writes manifest.json, metrics.jsonl, checkpoints, and series.png, which
interpolates, and extrapolates behind the dotted line, into --run-dir (default runs/series/<name of the file>). How long
it takes is a matter of the data: seconds and time left are shown from the first epoch on, which compiles.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from experiments.records.command import command_line
from experiments.records.files import RunError, read_manifest, say
from experiments.series.config import SeriesConfig
from experiments.series.data import prepare, read
from experiments.series.pictures import draw
from experiments.series.training import Options, best_of, train
from experiments.training.progress import Interrupted, unfailing_console
from experiments.training.run import stored_config


def settings_of(folder: Path, asked: SeriesConfig) -> SeriesConfig:
    """Those that a run was started with, but for what is asked for: more epochs, or what cannot be resumed.

    What is asked for at its default is taken for what was not.

    Raises:
      RunError: for a manifest that cannot be read.
    """
    manifest, new = read_manifest(folder), SeriesConfig()
    if manifest is None:
        return asked
    names = [field.name for field in dataclasses.fields(asked)]
    changes = {name: getattr(asked, name) for name in names if getattr(asked, name) != getattr(new, name)}
    return dataclasses.replace(stored_config(folder, manifest, SeriesConfig), **changes)


def run(data: Path, config: SeriesConfig, options: Options, folder: Path, console: Console) -> None:
    """Train, and draw a few test series.

    Raises:
      RunError: for bad data, and as `train`.
    """
    series = prepare(read(data), config)
    results = train(config, series, options, folder, console)
    shown = series.split(config)["test"][:3]
    draw(config, best_of(folder), series, shown).savefig(folder / "series.png", dpi=130)
    error = f"{results['test_mse']:.4g} on {results['n_test']} series, of scaled values"
    console.print(f"test MSE {error}; best epoch {results['best_epoch']}; run in {escape(str(folder))}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Command:
    """The command line."""

    data: Annotated[Path, tyro.conf.Positional]
    """The .npz file."""
    config: Annotated[SeriesConfig, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=SeriesConfig)
    """What is trained."""
    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)
    """How."""


def main() -> None:
    """Errors are said in a line."""
    try:
        asked = command_line(Command, "python -m experiments.latent_ode", __doc__)
        data = asked.data.expanduser()
        folder = (asked.options.run_dir or Path("runs") / "series" / data.stem).expanduser()
        config = settings_of(folder, asked.config) if asked.options.resume else asked.config
        run(data, config, asked.options, folder, unfailing_console(highlight=False))
    except Interrupted as stop:
        say(f"\n{stop}")
        sys.exit(128 + stop.signum)
    except (RunError, ValueError, OSError) as error:
        say(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
