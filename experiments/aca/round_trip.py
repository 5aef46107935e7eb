"""Integrate forward, then back from where that ended: the way back is another trajectory (ACA Figs 4, 5 and 9).

    python -m experiments.aca.round_trip

The adjoint method takes the states of its backward pass from such a return; ACA, and differentiation through the
solver, take those of the way there. Dopri5 at the defaults of MATLAB's ode45, rtol = 1e-3 and atol = 1e-6, on

- the van der Pol oscillator from (2, 0), in float64 (ACA eq. 81-82). The end times are ours.
- a photograph under a random 3x3 convolution, dx/dt = K * x, in float64 and in float32. The photograph comes with
  scikit-learn. Kernel and end time are ours, the paper names neither: uniform in [0, 1), the same for each colour,
  and the image continues periodically, so that the exact flow is known (`ode_nets.problems.images`).

Two to four minutes on two cores. Writes round_trip.json, van_der_pol.png and photograph.png into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import SCHEMES, Adaptive, Field, Result, Solution, solve
from ode_nets.problems import images, van_der_pol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    scheme: str = "dopri5"
    """An embedded Runge-Kutta scheme with an interpolant."""
    rtol: float = 1e-3
    atol: float = 1e-6
    times: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0, 25.0)
    """End times of the oscillator; the last is drawn."""
    tighter: tuple[float, ...] = (1.0, 1e-3, 1e-6)
    """Factors on both tolerances, for the oscillator's table."""
    photograph: Literal["china", "flower"] = "china"
    """Which of scikit-learn's two photographs."""
    shrink: int = 4
    """Pixels of the photograph (427 x 640) a side of one of ours."""
    image_times: tuple[float, ...] = (1.0, 1.5, 2.0, 2.25)
    """End times of the photograph; the last is drawn."""
    seed: int = 0
    """Of the kernel."""
    out: Path | None = None
    """Folder of the results; default runs/round_trip."""
    record: bool = False
    """Write into results/round_trip, which git keeps, instead."""

    def __post_init__(self) -> None:
        dense = [name for name, tableau in SCHEMES.items() if tableau.b_error and tableau.b_dense]
        check_settings(
            self,
            ("scheme", self.scheme in dense, f"one of {', '.join(dense)}"),
            ("rtol", self.rtol > 0, "a number above 0"),
            ("atol", self.atol > 0, "a number above 0"),
            ("times", bool(self.times) and min(self.times, default=0) > 0, "numbers above 0"),
            ("tighter", bool(self.tighter) and min(self.tighter, default=0) > 0, "numbers above 0"),
            ("shrink", 1 <= self.shrink <= 64, "a number from 1 to 64"),
            (
                "image_times",
                bool(self.image_times) and min(self.image_times, default=0) > 0,
                "numbers above 0",
            ),
        )


# ---------------------------------------------------------------------------------------------------------
# There and back
# ---------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("field", "scheme", "n_times"))
def there_and_back(
    field: Field, x0: jax.Array, theta: Any, t1: Any, rtol: Any, atol: Any, scheme: str, n_times: int = 2
) -> tuple[jax.Array, Solution, Solution]:
    """Integrate from 0 to t1, and from the state found there back to 0.

    Returns:
      Times `[n_times]`, and both solutions at these times, in the order of time: `back.x[0]` is the return.
    """
    solver = Adaptive(scheme, rtol, atol, max_steps=20_000, outputs="interpolate")
    ts = jnp.linspace(0.0, t1, n_times)
    there = solve(field, x0, theta, solver=solver, t1=t1, ts=ts)
    back = solve(field, there.x[-1], theta, solver=solver, t0=t1, t1=0.0, ts=ts[::-1])
    return ts, there, dataclasses.replace(back, x=back.x[::-1])


def describe(there: Solution, back: Solution, x0: jax.Array) -> Row:
    """Counts of both ways, and how far the return is from the start."""
    difference = back.x[0] - x0
    return {
        "n_accepted_there": int(there.n_accepted),
        "n_rejected_there": int(there.n_rejected),
        "n_accepted_back": int(back.n_accepted),
        "n_rejected_back": int(back.n_rejected),
        "result_there": Result(int(there.result)).name,
        "result_back": Result(int(back.result)).name,
        "root_mean_square": float(jnp.sqrt(jnp.mean(difference**2))),
        "largest": float(jnp.max(jnp.abs(difference))),
        "euclidean": float(jnp.linalg.norm(difference)),
    }


def oscillator(options: Options) -> tuple[list[Row], dict[str, jax.Array]]:
    """A row a tolerance and end time; the curves of the last time at the tolerances given."""
    start, rows, curves = jnp.array(van_der_pol.START), [], {}
    for factor in options.tighter:
        rtol, atol = factor * options.rtol, factor * options.atol
        for t1 in told(options.times, lambda t1, rtol=rtol: f"van der Pol, rtol {rtol:.0e}, T = {t1:g}"):
            ts, there, back = there_and_back(
                van_der_pol.field, start, van_der_pol.MU, t1, rtol, atol, options.scheme, 401
            )
            rows.append({"rtol": rtol, "atol": atol, "T": t1} | describe(there, back, start))
            if factor == options.tighter[0]:
                curves = {"t": ts, "there": there.x, "back": back.x}
    return rows, curves


def photograph(options: Options) -> jax.Array:
    """The photograph, `[1, height, width, 3]` in [0, 1]."""
    from sklearn.datasets import load_sample_image

    pixels, n = load_sample_image(f"{options.photograph}.jpg") / 255.0, options.shrink
    height, width = pixels.shape[0] // n, pixels.shape[1] // n
    blocks = pixels[: height * n, : width * n].reshape(height, n, width, n, 3)
    return jnp.asarray(blocks.mean(axis=(1, 3)))[None]


def convolved(options: Options) -> tuple[list[Row], jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """A row a precision and end time; the photograph; by precision, where it went last and what came back."""
    photo = photograph(options)
    kernel = images.random_kernel(jax.random.key(options.seed), channels=3)
    rates = jnp.linalg.eigvals(images.spectrum(kernel, *photo.shape[1:3])).real
    rows, states = [], {}
    for dtype in ("float64", "float32"):
        x0, theta = photo.astype(dtype), kernel.astype(dtype)
        for t1 in told(options.image_times, lambda t1, dtype=dtype: f"photograph in {dtype}, T = {t1:g}"):
            tolerances = (options.rtol, options.atol)
            _, there, back = there_and_back(images.field, x0, theta, t1, *tolerances, options.scheme)
            exact = images.solution(t1, photo, kernel)
            error_there = jnp.linalg.norm(there.x[-1] - exact) / jnp.linalg.norm(exact)
            returned = images.solution(-t1, exact, kernel) - photo
            extra = {
                "relative_error_there": float(error_there),
                "root_mean_square_exact_flow": float(jnp.sqrt(jnp.mean(returned**2))),
                "growth_of_errors_at_most": float(jnp.exp(t1 * (rates.max() - rates.min()))),
            }
            rows.append({"dtype": dtype, "T": t1, "size": x0.shape} | describe(there, back, x0) | extra)
            states[dtype] = (there.x[-1], back.x[0])
    return rows, photo, states


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def steps(row: Row, way: str) -> str:
    """Accepted steps and rejected trials, e.g. 35 + 12."""
    text = f"{row[f'n_accepted_{way}']} + {row[f'n_rejected_{way}']}"
    return text if row[f"result_{way}"] == "SUCCESS" else f"{text} {row[f'result_{way}']}"


def print_tables(oscillations: list[Row], pictures: list[Row], console: Console) -> None:
    """Distances between the start and the return."""
    table = Table(title="van der Pol oscillator: |return - start|, start (2, 0)", title_justify="left")
    for column in (
        "rtol",
        "atol",
        "T",
        "steps there + rejected",
        "steps back + rejected",
        "|return - start|",
    ):
        table.add_column(column, justify="right")
    for row in oscillations:
        counts = (steps(row, "there"), steps(row, "back"))
        table.add_row(f"{row['rtol']:.0e}", f"{row['atol']:.0e}", f"{row['T']:g}", *counts, f"{row['euclidean']:.1e}")
    show(table, console)
    table = Table(title="photograph under a random convolution: errors of the return", title_justify="left")
    columns = (
        "precision",
        "T",
        "steps there",
        "steps back",
        "rms",
        "largest",
        "rms, exact flow",
        "error there",
    )
    for column in columns:
        table.add_column(column, justify="right")
    names = ("root_mean_square", "largest", "root_mean_square_exact_flow", "relative_error_there")
    for row in pictures:
        errors = [f"{row[name]:.1e}" for name in names]
        table.add_row(row["dtype"], f"{row['T']:g}", steps(row, "there"), steps(row, "back"), *errors)
    show(table, console)


def draw_oscillator(curves: dict[str, jax.Array], row: Row) -> Figure:
    """Both components over time (ACA Figs 4 and 9), and the phase plane."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    over_time, plane = figure.subplots(1, 2, width_ratios=(1.9, 1))
    t, colors = curves["t"], ("#08519c", "#a63603")
    for i, color in enumerate(colors):
        over_time.plot(t, curves["there"][:, i], color=color, lw=2, label=f"$y_{i + 1}$ there")
        over_time.plot(t, curves["back"][:, i], color=color, lw=1.5, ls=(0, (4, 2)), label=f"$y_{i + 1}$ back")
    over_time.plot([0], curves["back"][0, :1], "X", color=colors[0], ms=9, clip_on=False, zorder=5)
    over_time.plot([0], curves["there"][0, :1], "o", color=colors[0], ms=8, clip_on=False, zorder=5)
    over_time.set_xlabel("t")
    over_time.legend(ncols=2, frameon=False, fontsize=9)
    over_time.set_title(
        f"there in {row['n_accepted_there']} steps, back in {row['n_accepted_back']}: "
        f"|return - start| = {row['euclidean']:.2f}",
        fontsize=10,
    )
    plane.plot(*curves["there"].T, color="0.25", lw=2, label="there")
    plane.plot(*curves["back"].T, color="#e6550d", lw=1.3, ls=(0, (4, 2)), label="back")
    plane.plot(*curves["there"][0], "o", color="0.25", ms=8, label="start")
    plane.plot(*curves["back"][0], "X", color="#e6550d", ms=9, label="return")
    plane.set_xlabel("$y_1$")
    plane.set_ylabel("$y_2$")
    plane.set_title(f"rtol = {row['rtol']:.0e}, atol = {row['atol']:.0e}", fontsize=10)
    plane.legend(frameon=False, fontsize=9)
    for axes in (over_time, plane):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def draw_photograph(x0: jax.Array, states: dict[str, tuple[jax.Array, jax.Array]], rows: list[Row]) -> Figure:
    """Input and where it went (left), what came back and what is wrong with it, a row a precision (ACA Fig. 5)."""
    from matplotlib.figure import Figure

    height, width = x0.shape[1:3]
    figure = Figure(figsize=(9.6, 0.55 + 6.0 * height / width), layout="constrained")
    panels = figure.subplots(2, 3)
    last = {row["dtype"]: row for row in rows}
    away = states["float64"][0]
    # The image has grown by orders of magnitude; its bulk is what can be shown of it.
    low, high = jnp.percentile(away, jnp.array([1.0, 99.0]))
    t1 = last["float64"]["T"]
    left = (
        (x0, "input, t = 0"),
        ((away - low) / (high - low), f"t = {t1:g}, grown to {float(away.max()):.0e}"),
    )
    for axes, (image, title) in zip(panels[:, 0], left, strict=True):
        axes.imshow(np.clip(image[0], 0, 1), interpolation="nearest")
        axes.set_title(title, fontsize=9)
    for (middle, right), (dtype, (_, returned)) in zip(panels[:, 1:], states.items(), strict=True):
        middle.imshow(np.clip(returned[0], 0, 1), interpolation="nearest")
        middle.set_title(f"{dtype}: back at t = 0", fontsize=9)
        error = jnp.abs(returned - x0).max(axis=-1)
        mesh = right.imshow(error[0], cmap="magma", vmin=0, interpolation="nearest")
        right.set_title(f"|error|: rms {last[dtype]['root_mean_square']:.1g}", fontsize=9)
        figure.colorbar(mesh, ax=right, fraction=0.03, pad=0.02).ax.tick_params(labelsize=7)
    for axes in panels.flat:
        axes.set_axis_off()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture with a palette of 256 colours, a third of the size of one with all."""
    from PIL import Image

    figure.savefig(path, dpi=100)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.round_trip", __doc__)
        out = destination("round_trip", options.out, options.record)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with jax.enable_x64(True):
        oscillations, curves = oscillator(options)
        pictures, x0, states = convolved(options)
        print_tables(oscillations, pictures, console)
        settings = {**dataclasses.asdict(options), "out": str(out)}
        record = {
            "settings": settings,
            "environment": environment(),
            "van_der_pol": oscillations,
            "photograph": pictures,
        }
        write_json(out / "round_trip.json", record)
        drawn = oscillations[len(options.times) - 1]
        save(draw_oscillator(curves, drawn), out / "van_der_pol.png")
        save(draw_photograph(x0, states, pictures), out / "photograph.png")
    print(f"written: {out}/round_trip.json, van_der_pol.png, photograph.png")


if __name__ == "__main__":
    main()
