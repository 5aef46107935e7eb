"""Three bodies: how much of the law a model knows, and by which gradient it learns (ACA sec. 4.4, App. D.4, Table 5).

    python -m experiments.aca.three_bodies
    python -m experiments.aca.three_bodies --start unequal --models ode --gradients aca    Figs 21-23: other starts

Positions at 1,000 times on [0, 1] are seen, and predicted on [0, 2]: by an LSTM, an LSTM on the augmented input, a
second-order ODE whose law is one layer of that input (NODE), and the law itself with unknown masses (ODE). ODEs start
from the initial point, with its velocity, and are trained by each gradient method; LSTMs read the first ten points.
The error is the mean over times of the squared distance, summed over the nine coordinates; the weights with the best
training loss are tested. Settings are those of Table 8, with `--preset code` for ODEs those of the published code, and
with `--preset slow` a tenth of the rate and of NODE's first layer: under Table 8's NODE does not fit.
What no source names is ours: LSTMs of width 64 on standardized inputs, 19 pairs a sequence of 20, all sequences in
every update; the layer of NODE starts within 1/9, as PyTorch's. Dopri5 at 1e-5, in float64; LSTMs in float32. Seeds
are trained side by side in one program.

Every row is written when it is measured, and a second call goes on with the next. Writes PRESET_START.json (.npz with
its arrays), PRESET_START_paths.png (Figs 8, 13-20) and PRESET_START_masses.png into --out.

Measured on two busy cores, three seeds, the published start (results/aca/three_bodies). With the settings of the
code, 32 minutes for all rows: the masses are found by every method (2.7e-5 to 3.2e-5, by the reversible scheme
1.2e-4), but for one seed of ACA, Direct, Backsolve and Reversible that ends in a local minimum (0.5 to 0.86), masses
off by 0.3 to 0.5. A gradient takes 518 evaluations and 518 vjps by ACA, 7,994 of each by Backsolve, which starts anew
at each of the 1,000 times, 518 vjps by Direct, 632 by Naive, 1,850 and 962 by Reversible; memory is 0.8 MB by ACA and
Reversible, 15 and 24 by Direct and Naive. LSTMs have 1.1 +- 0.6, on the augmented input 1.4 +- 0.7. NODE stays at 1
to 6 by all methods, far from the paper's 0.16: a rate of 0.1 is too large for it. With `--preset slow` it fits (0.040
to 0.057), and has 0.71, 0.32 and 0.63 on [0, 2] by ACA, Naive, Backsolve and Direct alike, within 0.01 of each other;
500 epochs fit better and predict worse. With the settings of the paper ODE has 1.7, 0.081 and 5.4e-5 by ACA and
Direct, 2.8, 1.6e-4 and 4.6e-5 by Backsolve, and 1.0e-4, 4.9e-5 and 5.0e-5 by Naive.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.aca import three_bodies_models as models
from experiments.aca.three_bodies_figures import draw_masses, draw_models
from experiments.aca.three_bodies_models import Data, GradientName, ModelName, Preset
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, expand
from experiments.records.rows import Row, Rows
from experiments.records.tables import show
from ode_nets.problems.three_bodies import PUBLISHED, UNEQUAL, Start, Truth, random_start

PAPER = {
    "lstm": "0.59 +- 0.12",
    "lstm_aug": "0.49 +- 0.06",
    "node backsolve": "3.47 +- 0.67",
    "node naive": "0.21 +- 0.11",
    "node aca": "0.16 +- 0.06",
    "ode backsolve": "0.0025 +- 0.0012",
    "ode naive": "0.0025 +- 0.0013",
    "ode aca": "0.0007 +- 0.0005",
}
"""Table 5: test MSE, mean and spread of three runs."""
NOT_SETTINGS = ("models", "gradients", "out", "record", "overwrite")
DRAWN = 4
"""Every fourth point of a path is kept for pictures."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which rows of the table, and how far."""

    models: tuple[ModelName, ...] = ("ode", "node", "lstm_aug", "lstm")
    """What is trained."""
    gradients: tuple[GradientName, ...] = ("aca", "backsolve", "naive", "direct", "reversible")
    """Methods of node and ode."""
    preset: Preset = "paper"
    """Settings of ODEs: of Table 8, of the published code, or slower ones of our own."""
    start: Literal["published", "unequal", "random"] = "published"
    """Of the published code, with masses 1.1, 1.1, 0.9; the same with 1.5, 1.0, 0.7; or drawn by `start_seed`."""
    start_seed: int = 0
    """Of a random start."""
    seeds: int = 3
    """Runs a row."""
    points: int = 1000
    """Seen on [0, 1]; a multiple of 20."""
    epochs: int | None = None
    """Of node and ode; default the preset's."""
    lstm_epochs: int | None = None
    """Of LSTMs; default 5,000."""
    width: int = 64
    """Of LSTMs."""
    out: Path | None = None
    """Folder of the results; default runs/aca/three_bodies."""
    record: bool = False
    """Write into results/aca/three_bodies, which git keeps, instead."""
    overwrite: bool = False
    """Start anew where there are rows of other settings."""

    def __post_init__(self) -> None:
        expand(self, "out")
        counts = {name: getattr(self, name) for name in ("seeds", "points", "epochs", "lstm_epochs", "width")}
        check_settings(
            self,
            *((name, value is None or value >= 1, "at least 1") for name, value in counts.items()),
            ("points", self.points % models.SEQUENCE == 0, f"a multiple of {models.SEQUENCE}, the LSTMs' sequences"),
            *((name, bool(getattr(self, name)), "at least one") for name in ("models", "gradients")),
        )

    def bodies(self) -> Start:
        """Where bodies start."""
        if self.start == "random":
            return random_start(jax.random.key(self.start_seed))
        return PUBLISHED if self.start == "published" else UNEQUAL

    def runs(self) -> list[tuple[ModelName, GradientName]]:
        """Models and gradient methods of the rows; to LSTMs the method is nothing."""
        ways = lambda name: self.gradients if name in ("node", "ode") else self.gradients[:1]
        return [(name, gradient) for name in self.models for gradient in ways(name)]

    def rows(self, truth: Truth) -> Rows:
        """What has been measured with these settings."""
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in NOT_SETTINGS}
        said = {
            "energy_drift": truth.energy_drift,
            "momentum_drift": truth.momentum_drift,
            "closest": truth.closest,
            "remarks": truth.remarks,
        }
        head = {"settings": settings, "truth": said, "environment": environment()}
        name = f"{self.preset}_{self.start}" + (f"_{self.start_seed}" if self.start == "random" else "")
        return Rows.open(destination("aca/three_bodies", self.out, self.record) / f"{name}.json", head, self.overwrite)


def key_of(name: ModelName, gradient: GradientName) -> str:
    """Of a row."""
    return name if name.startswith("lstm") else f"{name} {gradient}"


def measure(options: Options, name: ModelName, gradient: GradientName, data: Data) -> tuple[Row, dict[str, np.ndarray]]:
    """Train all seeds of a row, and test them."""
    recipe = models.recipe(name, options.preset)
    own = options.lstm_epochs if name.startswith("lstm") else options.epochs
    epochs = recipe.epochs if own is None else own
    model = models.model(name, gradient, recipe, options.width)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    began = time.perf_counter()
    program = models.train.lower(model, recipe, epochs, data, keys).compile()
    compiled = time.perf_counter()
    trained = jax.block_until_ready(program(data, keys))
    ended = time.perf_counter()
    r, squares = (np.asarray(leaf) for leaf in models.predict(model, trained.theta, data))
    errors = np.where(np.isfinite(squares), squares, np.inf)
    mse, half = errors.mean(1), options.points
    finite = lambda values: [float(value) if np.isfinite(value) else None for value in values]
    skipped = np.asarray(trained.skipped)
    row: Row = {
        "model": name,
        "gradient": None if name.startswith("lstm") else gradient,
        "recipe": recipe._asdict() | {"epochs": epochs},
        "mse": finite(mse),
        "mse_seen": finite(errors[:, :half].mean(1)),
        "mse_ahead": finite(errors[:, half:].mean(1)),
        "train_loss": finite(np.asarray(trained.best)),
        "skipped_epochs": skipped.tolist(),
        "nfe_forward": float(np.mean(trained.nfe)),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "compile_seconds": compiled - began,
        "seconds_an_epoch": (ended - compiled) / epochs,
        "said": f"test MSE {', '.join(f'{value:.3g}' for value in mse)}"
        + (f"; epochs skipped after failed solves {skipped.tolist()}" if skipped.any() else ""),
    }
    seed, key = models.middle(mse), key_of(name, gradient)
    row |= model.passes(jax.tree.map(lambda leaf: leaf[seed], trained.theta), data)
    if name == "ode":
        row["masses"] = np.asarray(trained.theta).tolist()
    arrays = {
        f"{key}/losses": np.asarray(trained.losses, np.float32),
        f"{key}/path": r[seed, ::DRAWN].astype(np.float32),
        f"{key}/tracked": np.asarray(trained.tracked, np.float32),
    }
    return row | {"seconds": time.perf_counter() - began}, arrays


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation, or how many failed."""
    good = [value for value in values if value is not None]
    if len(good) < len(values):
        return f"{len(values) - len(good)} of {len(values)} failed"
    return f"{np.mean(good):.2g} +- {np.std(good):.1g}"


def print_table(rows: Rows, start: Any, console: Console) -> None:
    """Table 5, ours beside the paper's."""
    settings = rows.head["settings"]
    title = (
        f"Test MSE on [0, 2], {settings['seeds']} runs; start {settings['start']}, settings of the {settings['preset']}"
    )
    table = Table(title=title, title_justify="left")
    costs = ("nfe", "back", "vjps", "ms an epoch", "MB")
    for column in ("model", "ours", "each run", "paper", "on [0, 1]", "epochs", "skipped", *costs, "masses"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for key, row in rows.rows.items():
        found = np.array(row.get("masses", np.zeros((0, 3))))
        off = f"off by {np.abs(found - np.asarray(start.masses)).max():.1g}" if len(found) else ""
        own = (
            f"{row['nfe_forward']:.0f}",
            *(str(row.get(name, "-")) for name in ("backward_evaluations", "backward_vjps")),
            f"{1e3 * row['seconds_an_epoch']:.0f}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
        )
        seen, skipped = spread(row["mse_seen"]), str(sum(row["skipped_epochs"]))
        epochs = str(row["recipe"]["epochs"])
        each = ", ".join("failed" if value is None else f"{value:.2g}" for value in row["mse"])
        table.add_row(key, spread(row["mse"]), each, PAPER.get(key, "-"), seen, epochs, skipped, *own, off)
    show(table, console)


def draw(rows: Rows, data: Data) -> list[str]:
    """Write the pictures; their names."""
    place = lambda what: rows.path.with_name(f"{rows.path.stem}_{what}.png")
    paths = {f"{key}": rows.arrays[f"{key}/path"] for key in rows.rows}
    t, truth = (np.asarray(leaf)[::DRAWN] for leaf in (data.test_ts, data.test_r))
    draw_models(t, truth, paths).savefig(place("paths"), dpi=60)
    curves = {key: rows.arrays[f"{key}/tracked"] for key in rows.rows if key.startswith("ode")}
    if not curves:
        return [place("paths").name]
    draw_masses(curves, np.asarray(data.start.masses)).savefig(place("masses"), dpi=100)
    return [place("paths").name, place("masses").name]


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.three_bodies", __doc__)
        with jax.enable_x64(True):
            data, truth = models.make_data(options.bodies(), options.points)
            rows = options.rows(truth)
            console.print(f"truth: energy drifts by {truth.energy_drift:.1g}", *truth.remarks, sep="; ")
            for name, gradient in options.runs():
                rows.fill(key_of(name, gradient), lambda n=name, g=gradient: measure(options, n, g, data), console)
            rows.write({})
            print_table(rows, data.start, console)
            written = draw(rows, data)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {rows.path}, {', '.join(written)}")


if __name__ == "__main__":
    main()
