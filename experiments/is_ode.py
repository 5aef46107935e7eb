"""Is a trained network an ODE, or tied to its solver? One report on any run of `experiments.train`.

    python -m experiments.quickstart
    python -m experiments.train node18_small --dataset digits --limit None --crop-pad 1 --no-flip \
        --model.widths 8 16 32 --batch-size 32 --run-dir runs/node18_digits
    python -m experiments.is_ode runs/quickstart/digits_euler runs/quickstart/digits runs/node18_digits

On two cores the three take 3 minutes, 75 s and 90 s, and the verdicts are tied, an ODE and an ODE.

Each network is evaluated on test images under its own solver and under others, its trajectories are searched for
crossings, and `validity.examine` says from the measures alone whether it is an ODE. Prints a table with a line a
network and the sentences, and writes is_ode.json and is_ode.png into --out: accuracy of all manifestations, and the
distance of their outputs from those of the finest one. A verdict says its standard errors over the test images, and
whether it would be another within two of them; another seed of training is another network, and may differ by more.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.images import data
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, destination, expand, place, write_json
from experiments.records.pictures import apart, below, plain_ticks
from experiments.records.progress import told
from experiments.records.tables import show
from experiments.training.fingerprint import data_of_run
from experiments.training.manifestations import RESTATED_ON
from experiments.training.run import load_run
from ode_nets import validity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to examine."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, on this machine or as gs://BUCKET/FOLDER."""
    images: int = 359
    """Test images, the first ones; all of the digits' by default."""
    schemes: tuple[str, ...] = ("euler", "midpoint", "rk4")
    """Runge-Kutta schemes to exchange for the trained one."""
    factors: tuple[float, ...] = validity.FACTORS
    """Step counts, in units of the trained one."""
    samples: int = 32
    """Images whose trajectories are searched for crossings, an eighth of them beyond two dimensions; 0 for none."""
    data_dir: Path | None = None
    """Folder that the data lies in now; default where the run found it."""
    accept_new_data: bool = False
    """Examine on data that is not that of the run."""
    out: Path | None = None
    """Folder of the results; default runs/is_ode."""
    record: bool = False
    """Write into results/is_ode, which git keeps, instead."""

    def __post_init__(self) -> None:
        expand(self, "runs", to=place)
        expand(self, "out")
        check_settings(
            self,
            ("runs", bool(self.runs), "at least one folder of a run"),
            ("images", self.images >= 1, "at least 1"),
            ("samples", self.samples >= 0, "at least 0"),
        )


def examine(options: Options, folder: Path) -> Record:
    """The report on one run, as plain data."""
    began = time.perf_counter()
    config, net, variables, notes = load_run(folder)
    dataset = data_of_run(config, notes["data"], options.accept_new_data, options.data_dir)
    seen = data.normalize(jnp.asarray(dataset.x_train[:RESTATED_ON]), dataset.mean, dataset.std)
    images = data.normalize(jnp.asarray(dataset.x_test[: options.images]), dataset.mean, dataset.std)
    labels = jnp.asarray(dataset.y_test[: options.images])
    report = validity.examine(
        validity.of_model(net, variables, images, restat_on=seen),
        labels=labels,
        schemes=options.schemes,
        factors=options.factors,
        n_samples=options.samples,
    )
    record: Record = {
        "run": str(folder),
        "trained": {"scheme": report.trained.scheme, "n_steps": report.trained.n_steps},
        "rtol": report.trained.rtol,
        "verdict": report.verdict,
        "sentence": report.sentence,
        "statistics": report.statistics,
        "n_images": len(labels),
        "rows": report.rows,
        "exchange": None,
    }
    if report.exchange is not None:
        record["exchange"] = dataclasses.asdict(report.exchange)
    if (sure := report.judgement.uncertainty) is not None:
        record["uncertainty"] = dataclasses.asdict(sure)
    if report.convergence is not None:
        record["slopes"] = {scheme: slope.order for scheme, slope in report.convergence.slopes.items()}
    if report.dip is not None:
        record["dip"] = dataclasses.asdict(report.dip)
    if report.crossings is not None:
        names = ("test", "count", "examined", "reason")
        record["crossings"] = [{name: getattr(c, name) for name in names} for c in report.crossings]
    return record | {"seconds": time.perf_counter() - began}


def print_table(records: list[Record], console: Console) -> None:
    """A line a network, and what its report says.

    "worst" is what a solver of equal or smaller error is left with, "loss" the largest ratio of the cross-entropy
    under such a solver to that as trained, both with standard errors over the test images, "folds" steps whose
    Jacobian lost its sign, of those examined; of a network with an adaptive solver under as many equal steps.
    """
    title = "solver exchange: what solvers of equal or smaller error do to a network"
    table = Table(title=title, title_justify="left")
    table.add_column("run")
    columns = ("trained with", "accuracy [%]", "worst [%]", "under", "loss", "h*", "folds", "verdict")
    for column in columns:
        table.add_column(column, justify="right")
    for record in records:
        trained, test = record["trained"], record["exchange"]
        rtol = "" if record["rtol"] is None else f" at {record['rtol']:g}"
        cells = [f"{trained['scheme']} {trained['n_steps']}{rtol}"]
        if test is None:
            cells += [""] * 4
        else:
            worst = f"{100 * (test['own'] - test['loss']):.1f}"
            cells += [f"{100 * test['own']:.1f}", worst, "{scheme} {n_steps}".format_map(test["worst"])]
            cells += [f"x {test['entropy_ratio']:.2g}"]
            if (sure := record.get("uncertainty")) is not None:
                cells[2] += f" ± {100 * sure['loss']:.1f}"
                cells[4] += f" ± {sure['entropy_ratio']:.2g}"
        critical = None if test is None else finite(test["critical_step"])  # None in what a record holds
        cells += ["-" if critical is None else f"{critical:.3g}"]
        cells += [", ".join(f"{c['count']}/{c['examined'] or '-'}" for c in record.get("crossings", ())) or "-"]
        table.add_row(Path(record["run"]).name, *cells, record["verdict"])
    show(table, console)
    for record in records:
        console.print(f"[bold]{escape(Path(record['run']).name)}[/]: {record['sentence']}", soft_wrap=True)


def finite(tree: Any) -> Any:
    """The same with `None` for numbers that JSON has not: NaN and infinity."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def draw(records: list[Record]) -> Figure:
    """Accuracy (top) and distance from the finest manifestation's outputs (bottom), a column a run."""
    from matplotlib.figure import Figure

    marks = {"euler": "o", "midpoint": "x", "rk4": "^"}
    figure = Figure(figsize=(4 * len(records), 6.4), layout="constrained")
    panels = figure.subplots(2, len(records), sharey="row", squeeze=False)
    for (top, bottom), record in zip(panels.T, records, strict=True):
        trained = record["trained"]
        for i, scheme in enumerate(dict.fromkeys((row["scheme"], "rtol" in row) for row in record["rows"])):
            rows = [row for row in record["rows"] if (row["scheme"], "rtol" in row) == scheme]
            rows.sort(key=lambda row: row["n_steps"])
            label = scheme[0] + (" (adaptive)" if scheme[1] else "")
            style = {"color": f"C{i}", "marker": marks.get(scheme[0], "s"), "label": label} | apart(i)
            n = [row["n_steps"] for row in rows]
            top.plot(n, [100 * row["accuracy"] for row in rows], **style)
            # The finest is no distance from itself, which a logarithm cannot show.
            bottom.plot(n, [row["relative_error"] or math.nan for row in rows], **style)
        for axes in (top, bottom):
            axes.set_xscale("log", base=2)
            plain_ticks(axes.xaxis)
            axes.axvline(trained["n_steps"], color="0.7", lw=0.8, ls=":")
            axes.spines[["top", "right"]].set_visible(False)
        bottom.set_yscale("log")
        bottom.set_xlabel("steps a block; dotted: as trained")
        top.set_title(f"{Path(record['run']).name}: {record['verdict']}", fontsize=10)
        below(bottom, ncols=2, bbox_to_anchor=(0.5, -0.2))
    panels[0, 0].set_ylabel("test accuracy [%]")
    panels[1, 0].set_ylabel("relative distance from the finest")
    return figure


def main() -> None:
    """The command line."""
    console, began = Console(highlight=False), time.perf_counter()
    try:
        options = command_line(Options, "python -m experiments.is_ode", __doc__)
        out = destination("is_ode", options.out, options.record)
        records = [examine(options, folder) for folder in told(options.runs)]
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print_table(records, console)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"images": options.images, "schemes": options.schemes, "factors": options.factors}
    settings |= {"samples": options.samples}
    found = {"settings": settings, "environment": environment(), "reports": finite(records)}
    write_json(out / "is_ode.json", found)
    written = f"{out}/is_ode.json"
    if any(record["rows"] for record in records):
        draw([record for record in records if record["rows"]]).savefig(out / "is_ode.png", dpi=110)
        written += ", is_ode.png"
    print(f"{time.perf_counter() - began:.0f} s; written: {written}")


if __name__ == "__main__":
    main()
