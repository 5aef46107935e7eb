"""The optimality conditions of ANODEV2 (eq. 7, app. D) solved by themselves, against the gradient by training.

    python -m experiments.anodev2.kkt

A small coupled system dz/dt = tanh(theta z), dw/dt = q(w; p), its loss at z(1), in float64. Training
differentiates through the discretized system (`Evolved` in `solve`). Here the continuous conditions are
discretized on their own: states forward, then the adjoints of activations, of theta and of weights backward,

    -dalpha/dt = (df/dz)^T alpha,  alpha(1) = -dJ/dz(1)                                      (eq. 16)
    gamma = (df/dtheta)^T alpha                                                              (eq. 18)
    -dbeta/dt = (dq/dw)^T beta + int_t^1 K(tau - t)^T gamma(tau) dtau,  beta(1) = 0          (eq. 20)
    dL/dw0 = -beta(0),  dL/dp = -int_0^1 (dq/dp)^T beta dt                                   (eq. 21, 22)

with nothing of the library on that side but the kernels as functions. (Eq. 20 is printed with a Heaviside function
that confuses t and tau; the line above is the variation done again. Regularization terms are left out.) With K =
Dirac the integral is gamma(t); else it is taken by the trapezoidal rule, as theta is.

Both gradients tend to that of the continuous system, so their difference falls with the order of the scheme.
A minute on one core. Writes anodev2_kkt.json and anodev2_kkt.png into --out.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.pictures import below, plain_ticks
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import Checkpointed, Dirac, Evolution, Evolved, Exponential, FixedStep, PiecewiseLinear, solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
KERNELS = {"dirac": Dirac(), "exponential": Exponential(2.0)}
ORDERS = {"euler": 1, "heun": 2}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    schemes: tuple[str, ...] = ("euler", "heun")
    """Schemes of both sides, whose stages lie on the grid: euler, heun."""
    kernels: tuple[str, ...] = ("dirac", "exponential")
    """Time kernels: dirac, exponential."""
    n_steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Steps of state and weights, each twice the one before."""
    seed: int = 0
    """Of the system."""
    out: Path | None = None
    """Folder of the results; default runs/anodev2_kkt."""
    record: bool = False
    """Write into results/anodev2_kkt, which git keeps, instead."""

    def __post_init__(self) -> None:
        some = lambda values, of: bool(values) and set(values) <= set(of)
        check_settings(
            self,
            ("schemes", some(self.schemes, ORDERS), f"some of {', '.join(ORDERS)}"),
            ("kernels", some(self.kernels, KERNELS), f"some of {', '.join(KERNELS)}"),
            ("n_steps", min(self.n_steps, default=0) >= 1, "numbers of at least 1"),
        )


# ---------------------------------------------------------------------------------------------------------
# The system
# ---------------------------------------------------------------------------------------------------------


def f(z: jax.Array, theta: jax.Array) -> jax.Array:
    """dz/dt."""
    return jnp.tanh(theta @ z)


def q(w: jax.Array, p: jax.Array) -> jax.Array:
    """dw/dt."""
    return p @ w + jnp.sin(w)


def loss(z: jax.Array) -> jax.Array:
    """J(z(1))."""
    return 0.5 * jnp.sum((z - 0.3) ** 2)


def system(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """z0 `[3]`, w0 `[3, 3]` and p `[3, 3]`, float64."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=s)) for s in ((3,), (3, 3), (3, 3)))  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------
# The two gradients with respect to (w0, p)
# ---------------------------------------------------------------------------------------------------------


def trained(scheme: str, kernel: Any, n: int, z0: jax.Array, w0: jax.Array, p: jax.Array) -> Any:
    """Discretize, then optimize: what training does, with theta linear between the points of the weight grid."""
    solver = FixedStep(scheme, n)
    evolution = Evolution(q, solver, PiecewiseLinear(n + 1), kernel=kernel)

    def value(w0: jax.Array, p: jax.Array) -> jax.Array:
        weights = Evolved(w0, p, evolution)
        field = lambda t, z, theta: f(z, theta)
        return loss(solve(field, z0, weights, solver=solver, gradient=Checkpointed("block")).x)

    return jax.grad(value, (0, 1))(w0, p)


def march(slope: Callable[[Any, jax.Array], jax.Array], y: jax.Array, n: int, scheme: str) -> jax.Array:
    """The points of dy/ds = slope(i, y), s = i / n, from `y` at s = 0; `[n + 1, ...]`."""
    h = 1 / n

    def step(y: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        k = slope(i, y)
        if scheme == "heun":
            k = (k + slope(i + 1, y + h * k)) / 2
        return y + h * k, y + h * k

    return jnp.concatenate([y[None], jax.lax.scan(step, y, jnp.arange(n))[1]])


def convolved(kernel: Any, values: jax.Array) -> jax.Array:
    """int_0^{s_i} K(s_i - s_j) values(s_j) ds_j at every point of the grid, by the trapezoidal rule."""
    if isinstance(kernel, Dirac):
        return values
    n = len(values) - 1
    i, j = np.indices((n + 1, n + 1))
    trapezoid = np.where(j > i, 0.0, np.where((j == 0) | (j == i), 0.5, 1.0)) * (i > 0) / n
    return jnp.tensordot(trapezoid * kernel(np.abs(i - j) / n), values, 1)


def kkt(scheme: str, kernel: Any, n: int, z0: jax.Array, w0: jax.Array, p: jax.Array) -> Any:
    """Optimize, then discretize: the conditions above. Backward equations march in s = 1 - t."""
    w = march(lambda i, w: q(w, p), w0, n, scheme)
    theta = convolved(kernel, w)
    z = march(lambda i, z: f(z, theta[i]), z0, n, scheme)

    transposed_f = lambda i, alpha: jax.vjp(f, z[n - i], theta[n - i])[1](alpha)
    alpha = march(lambda i, alpha: transposed_f(i, alpha)[0], -jax.grad(loss)(z[n]), n, scheme)
    gamma = jax.vmap(lambda i, alpha: transposed_f(i, alpha)[1])(jnp.arange(n + 1), alpha)
    gathered = convolved(kernel, gamma)

    transposed_q = lambda i, beta: jax.vjp(q, w[n - i], p)[1](beta)
    slope = lambda i, beta: transposed_q(i, beta)[0] + gathered[i]
    beta = march(slope, jnp.zeros_like(w0), n, scheme)
    by_p = jax.vmap(lambda i, beta: transposed_q(i, beta)[1])(jnp.arange(n + 1), beta)
    return -beta[n], -(by_p.sum(0) - (by_p[0] + by_p[n]) / 2) / n


def measure(options: Options) -> list[Row]:
    """A row a scheme, kernel and number of steps, with the order seen from the one before."""
    rows: list[Row] = []
    with jax.enable_x64(True):
        arguments = system(options.seed)
        for scheme in options.schemes:
            for name in told(options.kernels, lambda name, scheme=scheme: f"{scheme}, kernel {name}"):
                previous: Row | None = None
                for n in options.n_steps:
                    pair = lambda *a, n=n: [g(scheme, KERNELS[name], n, *a) for g in (trained, kkt)]  # noqa: B023
                    ours, theirs = jax.jit(pair)(*arguments)
                    row: Row = {"scheme": scheme, "kernel": name, "n_steps": n}
                    for key, a, b in zip(("w0", "p"), ours, theirs, strict=True):
                        row[key] = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
                        if previous is not None:
                            ratio = math.log(n / previous["n_steps"])
                            row[f"order_{key}"] = math.log(previous[key] / row[key]) / ratio
                    rows.append(row)
                    previous = row
    return rows


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def print_table(rows: list[Row], console: Console) -> None:
    """Relative differences and observed orders."""
    table = Table(title="|KKT - DTO| / |DTO| of the gradients", title_justify="left")
    for column in ("scheme", "kernel", "steps", "dL/dw0", "order", "dL/dp", "order"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = []
        for key in ("w0", "p"):
            order = row.get(f"order_{key}")
            cells += [f"{row[key]:.3e}", "" if order is None else f"{order:.2f}"]
        table.add_row(row["scheme"], row["kernel"], str(row["n_steps"]), *cells)
    show(table, console)


def draw(rows: list[Row]) -> Figure:
    """Difference against the step size, with the slope of each scheme's order beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, scheme in enumerate(dict.fromkeys(row["scheme"] for row in rows)):
        for kernel, stroke in zip(KERNELS, ("-", "--"), strict=True):
            some = [row for row in rows if (row["scheme"], row["kernel"]) == (scheme, kernel)]
            if not some:
                continue
            h = np.array([1 / row["n_steps"] for row in some])
            for key, marker in (("w0", "o"), ("p", "s")):
                style = {"color": f"C{i}", "ls": stroke, "marker": marker, "ms": 4, "lw": 1.2}
                axes.loglog(h, [row[key] for row in some], label=f"{scheme}, {kernel}: dL/d{key}", **style)
        slope = some[0]["p"] * 0.3 * (h / h[0]) ** ORDERS[scheme]
        axes.loglog(h, slope, color="0.6", lw=1, ls=":")
        text = {"xytext": (6, -9), "textcoords": "offset points", "fontsize": 8, "color": "0.4"}
        axes.annotate(f"slope {ORDERS[scheme]}", (h[-1], slope[-1]), **text)
    axes.margins(y=0.12)
    plain_ticks(axes.xaxis)
    axes.set_xlabel("step of state and weights")
    axes.set_ylabel("relative difference of the gradients")
    axes.spines[["top", "right"]].set_visible(False)
    below(axes, ncols=2)
    return figure


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.anodev2.kkt", __doc__)
        out = destination("anodev2_kkt", options.out, options.record)
        with jax.enable_x64(True):
            rows, made_on = measure(options), environment()
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_table(rows, console)
    settings = {**dataclasses.asdict(options), "out": str(out)}
    write_json(out / "anodev2_kkt.json", {"settings": settings, "environment": made_on, "rows": rows})
    draw(rows).savefig(out / "anodev2_kkt.png", dpi=150)
    print(f"written: {out}/anodev2_kkt.json, anodev2_kkt.png")


if __name__ == "__main__":
    main()
