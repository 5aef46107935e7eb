"""Reaction, diffusion and advection of filters (ANODEV2 eq. 8) by Fourier transforms, against other ways to solve it.

    python -m experiments.anodev2.rda

In float64, for each term by itself and for all three:

- diffrax: eq. 8 with dense differentiation matrices on the points of the filter, by diffrax's Dopri8 at 1e-12,
  with nothing of the library on that side
- closed form: a Gaussian on a wide grid, which diffusion widens, advection moves by -v t and reaction scales
- semigroup: evolving by s and then by t against s + t at once

With sigma = tanh there is no closed form. What training integrates then is eq. 13, which applies sigma once a step
however short it is; its distance from eq. 8, and whether that falls with the number of steps, is the last table.

Seconds. Writes anodev2_rda.json into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.tables import show
from ode_nets import RDA, advance_filter

Row = dict[str, Any]
TERMS: dict[str, dict[str, Any]] = {
    "diffusion": {"diffusion": 0.2},
    "advection": {"advection": (0.7, -1.1)},
    "reaction": {"reaction": -0.3},
    "all three": {"diffusion": 0.2, "advection": (0.7, -1.1), "reaction": -0.3},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    extents: tuple[int, ...] = (3, 5, 7)
    """Extents of the filters, odd."""
    time: float = 1.0
    """For how long filters evolve."""
    steps: tuple[int, ...] = (1, 5, 10, 20, 40)
    """Steps of eq. 13 with tanh."""
    seed: int = 0
    """Of the filters."""
    out: Path | None = None
    """Folder of the results; default runs/anodev2_rda."""
    record: bool = False
    """Write into results/anodev2_rda, which git keeps, instead."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("extents", bool(self.extents) and all(n > 0 and n % 2 for n in self.extents), "odd numbers above 0"),
            ("time", self.time > 0, "a number above 0"),
            ("steps", bool(self.steps) and min(self.steps, default=0) >= 1, "numbers of at least 1"),
        )


def differentiation_matrix(n: int) -> np.ndarray:
    """The derivative of the trigonometric interpolant on n periodic points of spacing 1, n odd."""
    i, j = np.indices((n, n))
    with np.errstate(divide="ignore"):
        entries = np.where(i == j, 0.0, 0.5 * (-1.0) ** (i - j) / np.sin(np.pi * (i - j) / n))
    return 2 * np.pi / n * entries


def by_diffrax(
    w: jax.Array, time: float, terms: dict[str, Any], sigma: Callable[[jax.Array], jax.Array] = lambda x: x
) -> jax.Array:
    """Eq. 8 for filters `[n, n, in, out]`."""
    d = jnp.asarray(differentiation_matrix(len(w)))
    tau, rho = terms.get("diffusion", 0.0), terms.get("reaction", 0.0)
    v = terms.get("advection", (0.0, 0.0))

    def slope(t: Any, w: jax.Array, args: None) -> jax.Array:
        down, across = jnp.einsum("ab,bcio->acio", d, w), jnp.einsum("ab,cbio->caio", d, w)
        laplace = jnp.einsum("ab,bcio->acio", d, down) + jnp.einsum("ab,cbio->caio", d, across)
        return sigma(tau * laplace + v[0] * down + v[1] * across + rho * w)

    controller = diffrax.PIDController(rtol=1e-12, atol=1e-12)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope), diffrax.Dopri8(), 0.0, time, time / 20, w, stepsize_controller=controller
    )
    return solution.ys[0]


def gaussian_error(time: float, terms: dict[str, Any], extent: int = 81, variance: float = 9.0) -> float:
    """Of a Gaussian with peak 1 on a grid so wide that its period does not show."""
    grid = np.arange(extent) - extent // 2.0
    x, y = np.meshgrid(grid, grid, indexing="ij")
    gauss = lambda x, y, s: np.exp(-(x**2 + y**2) / (2 * s))
    v, wide = terms.get("advection", (0.0, 0.0)), variance + 2 * terms.get("diffusion", 0.0) * time
    scale = np.exp(terms.get("reaction", 0.0) * time) * variance / wide
    exact = scale * gauss(x + v[0] * time, y + v[1] * time, wide)
    ours = advance_filter(jnp.asarray(gauss(x, y, variance))[..., None, None], time, **terms)[..., 0, 0]
    return float(np.abs(ours - exact).max())


def measure_linear(options: Options) -> list[Row]:
    """Largest absolute errors without sigma; filters are standard normal, the Gaussian has peak 1."""
    rows, rng = [], np.random.default_rng(options.seed)
    closed = {name: gaussian_error(options.time, terms) for name, terms in TERMS.items()}
    for extent in options.extents:
        w = jnp.asarray(rng.normal(size=(extent, extent, 2, 2)))
        for name, terms in TERMS.items():
            once = advance_filter(w, options.time, **terms)
            first = advance_filter(w, 0.3 * options.time, **terms)
            twice = advance_filter(first, 0.7 * options.time, **terms)
            row: Row = {"extent": extent, "terms": name}
            row["diffrax"] = float(jnp.abs(once - by_diffrax(w, options.time, terms)).max())
            row["semigroup"] = float(jnp.abs(once - twice).max())
            row["closed_form"] = closed[name]
            rows.append(row)
    return rows


def measure_tanh(options: Options) -> list[Row]:
    """Relative distance of eq. 13 from eq. 8 with sigma = tanh, after so many steps."""
    rows, rng = [], np.random.default_rng(options.seed)
    w, terms = jnp.asarray(0.5 * rng.normal(size=(3, 3, 2, 2))), TERMS["all three"]
    exact = by_diffrax(w, options.time, terms, jnp.tanh)
    q = RDA(**terms | {"advection": 0.0}, sharing="global")
    p = q.init(jax.random.key(0), w) | {"v": jnp.asarray(terms["advection"])}
    for n in options.steps:
        found = w
        for _ in range(n):
            found = q.flow(found, p, options.time / n)
        rows.append({"steps": n, "distance": float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))})
    return rows


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.anodev2.rda", __doc__)
        out = destination("anodev2_rda", options.out, options.record)
        with jax.enable_x64(True):
            linear, tanh, made_on = measure_linear(options), measure_tanh(options), environment()
    except ValueError as error:
        sys.exit(f"error: {error}")
    table = Table(title="largest error without sigma, float64", title_justify="left")
    for column in ("extent", "terms", "against diffrax", "semigroup", "closed form, 81x81"):
        table.add_column(column, justify="right")
    for row in linear:
        errors = [f"{row[key]:.1e}" for key in ("diffrax", "semigroup", "closed_form")]
        table.add_row(f"{row['extent']}x{row['extent']}", row["terms"], *errors)
    show(table, console)
    table = Table(title="with tanh", title_justify="left")
    table.add_column("steps of eq. 13", justify="right")
    table.add_column("relative distance from eq. 8", justify="right")
    for row in tanh:
        table.add_row(str(row["steps"]), f"{row['distance']:.3f}")
    show(table, console)
    settings = dataclasses.asdict(options) | {"out": str(out)}
    record = {"settings": settings, "environment": made_on, "linear": linear, "tanh": tanh}
    write_json(out / "anodev2_rda.json", record)
    print(f"written: {out}/anodev2_rda.json")


if __name__ == "__main__":
    main()
