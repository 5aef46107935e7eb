"""The latent ODE on MuJoCo's hopper: gradient methods beside each other (ACA sec. 4.3, Table 4, Figs 10-12).

    python -m experiments.aca.hopper    first: the data, with the extra mujoco
    python -m experiments.aca.latent_ode --observed 0.1 --gradient aca
    python -m experiments.aca.latent_ode --observed 0.1 0.2 0.5 --gradient aca backsolve naive direct --resume

Sizes, tolerances, loss, optimizer and data are the paper's (experiments/series/config.py and experiments/aca/hopper.py
name them); 300 epochs of 8,000 trajectories are too. The best epoch is chosen on a tenth of the training trajectories,
which the paper does not say of its own. Every cell is a run of experiments/series in a folder of its own, and is
finished, interrupted and resumed alone. --net latent_ode rnn gru trains the baselines of Table 4 as well, which the
paper quotes. What two cores allow is a reduction, the same for every cell: the last of these commands, with them and
--width 100 --limit 1000 --epochs 40, took two and a half hours beside other work, 6 to 22 minutes a latent ODE and one
a baseline. All latent ODEs ended between 2.1 and 2.3 hundredths, which the best constant for each trajectory had too
(2.12), and still fell; methods differed by 1.3 %. The baselines reached 1.7 to .5. (That record is in a unit of its 900
trajectories; errors of today's command are in one of the whole set, about a fifth less.) At full width on all
trajectories,

    python -m experiments.aca.latent_ode --observed 0.5 --gradient aca --epochs 24

took 46 minutes beside other work: test error 1.05, where the mean of each trajectory has 1.70 (in 3,456 updates; after
720, as many as above, 2.7 in validation), and it still falls. The paper's 300 epochs are 43,200 updates, so that a cell
takes 4 hours by ACA and 33 by Backsolve at the seconds of a step in benchmarks/results/latent_ode_cpu.json.

Writes latent_ode.json, latent_ode.png (test MSE is read once; the curves are of the validation part) and series.png
into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.aca import hopper
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, destination, expand, read_manifest, read_metrics, say, write_json
from experiments.records.pictures import plain_ticks
from experiments.records.tables import show
from experiments.series.config import GradientName, NetName, SeriesConfig
from experiments.series.data import prepare, read
from experiments.series.pictures import draw
from experiments.series.training import Options as RunOptions
from experiments.series.training import best_of, train
from experiments.training.progress import Interrupted, unfailing_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
PAPER = {
    "backsolve": {0.1: 0.47, 0.2: 0.44, 0.5: 0.40},
    "naive": {0.1: 0.36, 0.2: 0.30, 0.5: 0.29},
    "aca": {0.1: 0.31, 0.2: 0.27, 0.5: 0.26},
    "rnn": {0.1: 2.45, 0.2: 1.71, 0.5: 0.79},
    "gru": {0.1: 1.97, 0.2: 1.42, 0.5: 0.75},
}
"""Table 4: test MSE in hundredths; naive, RNN and GRU are quoted there from Rubanova et al. (2019)."""


class Cell(NamedTuple):
    """A place in the table."""

    net: NetName
    observed: float
    gradient: GradientName

    @property
    def name(self) -> str:
        """Its row in the table."""
        return self.gradient if self.net == "latent_ode" else self.net

    @property
    def folder(self) -> str:
        """Of its run."""
        return f"{self.name}_{self.observed:g}"


@dataclasses.dataclass(frozen=True)
class Options:
    """Which cells of the table, and how far."""

    data: Path = hopper.DEFAULT
    """What experiments.aca.hopper wrote."""
    observed: tuple[float, ...] = (0.1,)
    """Shares of the times that the encoder sees."""
    gradient: tuple[GradientName, ...] = ("aca",)
    """Gradient methods of the latent ODE."""
    net: tuple[NetName, ...] = ("latent_ode",)
    """`latent_ode`, and baselines, to which the gradient is nothing."""
    epochs: int = 300
    """Passes over the training trajectories."""
    limit: int | None = None
    """Use this many training trajectories only."""
    width: int = 300
    """Hidden layers of both right-hand sides."""
    seed: int = 0
    """Of everything but the data."""
    resume: bool = False
    """Go on with the runs that are there, and start the others."""
    overwrite: bool = False
    """Start all of them anew."""
    runs: Path = Path("runs") / "aca_latent_ode"
    """Where the runs are kept, a folder a cell."""
    out: Path | None = None
    """Folder of the results; default runs/aca/latent_ode."""
    record: bool = False
    """Write into results/aca/latent_ode, which git keeps, instead."""

    def __post_init__(self) -> None:
        expand(self, "data", "runs", "out")
        names = ("observed", "gradient", "net")
        check_settings(self, *((name, bool(getattr(self, name)), "at least one") for name in names))
        once = lambda name: len({*getattr(self, name)}) == len(getattr(self, name))
        check_settings(self, *((name, once(name), "each once") for name in names))
        for cell in self.cells:
            # What is out of range is refused before the first is trained.
            self.config(*cell)

    @property
    def cells(self) -> list[Cell]:
        """All that is to be trained, net by net."""
        return [
            Cell(net, observed, gradient)
            for net in self.net
            for observed in self.observed
            for gradient in (self.gradient if net == "latent_ode" else self.gradient[:1])
        ]

    def config(self, net: NetName, observed: float, gradient: GradientName) -> SeriesConfig:
        """The paper's settings of one cell."""
        return SeriesConfig(
            net=net,
            gradient=gradient,
            observed=observed,
            scale="max",
            span=(hopper.WINDOW - 1) / 200,
            width=self.width,
            sigma=1e-3,
            epochs=self.epochs,
            limit=self.limit,
            seed=self.seed,
        )


def trained(options: Options, cell: Cell, arrays: Any, console: Console) -> Row:
    """Train one cell, unless it is there; its row."""
    config, name, observed = options.config(*cell), cell.name, cell.observed
    folder, series = options.runs / cell.folder, prepare(arrays, config)
    resume = options.resume and read_manifest(folder) is not None
    console.print(f"{name}, {100 * observed:g} % observed")
    results = train(config, series, RunOptions(resume=resume, overwrite=options.overwrite), folder, console)
    row = {"method": name, "observed": observed, "paper": PAPER.get(name, {}).get(observed)}
    row["revision"] = (read_manifest(folder) or {}).get("environment", {}).get("revision")
    return row | {"config": config.to_json(), "curve": read_metrics(folder)} | results


def mse_of_means(arrays: Any, config: SeriesConfig) -> float:
    """Test MSE of the best constant for each trajectory and value: what is below it has learned how they move.

    Its unit is that of the rows, whatever the limit.
    """
    series = prepare(arrays, config)
    values = np.asarray(series.values[series.split(config)["test"]])
    return float(np.mean((values - values.mean(1, keepdims=True)) ** 2))


def print_table(rows: list[Row], of_means: float, console: Console) -> None:
    """Ours beside the paper's."""
    title = f"Test MSE in hundredths, all times, values and samples; of every trajectory's mean {100 * of_means:.3f}"
    table = Table(title=title, title_justify="left")
    for column in ("method", "observed", "ours", "paper", "epochs", "best epoch", "trajectories", "minutes"):
        table.add_column(column, justify="right")
    for row in rows:
        paper = "-" if row["paper"] is None else f"{row['paper']:.2f}"
        counts = (str(len(row["curve"])), str(row["best_epoch"]), str(row["n_train"]))
        share = f"{100 * row['observed']:g} %"
        minutes = f"{row['train_seconds'] / 60:.1f}"
        table.add_row(row["method"], share, f"{100 * row['test_mse']:.3f}", paper, *counts, minutes)
    show(table, console)


def draw_curves(rows: list[Row]) -> Figure:
    """Figs 10-12: error against epochs, a panel a share of observed times."""
    from matplotlib.figure import Figure

    shares = sorted({row["observed"] for row in rows})
    figure = Figure(figsize=(1 + 3.6 * len(shares), 3.4), layout="constrained")
    for axes, share in zip(figure.subplots(1, len(shares), squeeze=False, sharey=True)[0], shares, strict=True):
        for row in (row for row in rows if row["observed"] == share):
            points = [(point["epoch"], 100 * point["validation_mse"]) for point in row["curve"]]
            axes.semilogy(*zip(*points, strict=True), marker=".", lw=1.2, label=row["method"])
        axes.set_title(f"{100 * share:g} % observed", fontsize=10)
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
    plain_ticks(figure.axes[0].yaxis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("validation MSE [1e-2]")
    return figure


def main() -> None:
    """The command line."""
    try:
        options = command_line(Options, "python -m experiments.aca.latent_ode", __doc__)
        out, console = destination("aca/latent_ode", options.out, options.record), unfailing_console(highlight=False)
        digest, arrays = hopper.verified(options.data), read(options.data)
        rows = [trained(options, cell, arrays, console) for cell in options.cells]
    except Interrupted as stop:
        say(f"\n{stop}")
        sys.exit(128 + stop.signum)
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    config = options.config(*options.cells[0])
    of_means = mse_of_means(arrays, config)
    print_table(rows, of_means, console)
    record = {"data_sha256": digest, "mse_of_means": of_means, "environment": environment(), "rows": rows}
    write_json(out / "latent_ode.json", record)
    draw_curves(rows).savefig(out / "latent_ode.png", dpi=130)
    series = prepare(arrays, config)
    params = best_of(options.runs / options.cells[0].folder)
    draw(config, params, series, series.split(config)["test"][:3], beyond=0).savefig(out / "series.png", dpi=110)
    print(f"written: {out}/latent_ode.json, latent_ode.png, series.png")


if __name__ == "__main__":
    main()
