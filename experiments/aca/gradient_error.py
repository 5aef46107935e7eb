"""Error of the gradient against the length of the solve, on a problem whose gradient is known (ACA Fig. 6).

    python -m experiments.aca.gradient_error

The toy problem dz/dt = k z, L = z(T)^2 (ACA eq. 27-29), for growth and for decay, in float32 and in float64,
under Dopri5 at rtol = atol = 1e-5, by every gradient method. The paper gives neither k nor z0; k = 1 and -1 and
z0 = 1 are ours. It plots absolute errors; here errors are divided by the exact gradient, which spans many
decades, and the JSON file holds both.

The paper's naive method differentiates through the search for step sizes too: h is a function of the state.
`Direct` is not that method: it takes step sizes as constants, and on the same accepted steps it is equal to ACA
by construction. The paper's is therefore written out on this page (`through_the_search`) and measured beside it.

A minute on two cores. Writes gradient_error.json and gradient_error.png into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.records.command import command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import ACA, SCHEMES, Adaptive, Backsolve, Checkpointed, Direct, solve
from ode_nets.control import initial_step, scaled_norm
from ode_nets.problems import linear

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
SEARCH = "paper's naive"
METHODS = {"Direct": Direct(), "Checkpointed": Checkpointed(), "ACA": ACA(), "Backsolve": Backsolve()}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    k: tuple[float, ...] = (1.0, -1.0)
    """Rates of growth."""
    z0: float = 1.0
    """Initial state, not 0."""
    times: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
    """End times T, above 0."""
    scheme: str = "dopri5"
    """An embedded Runge-Kutta scheme."""
    tolerance: float = 1e-5
    """rtol and atol."""
    first_step: float | None = None
    """Size of the first trial; a large one forces a search (default: Hairer's estimate)."""
    max_steps: int = 256
    """Bound on trial steps."""
    out: Path | None = None
    """Folder of the results; default runs/gradient_error."""
    record: bool = False
    """Write into results/gradient_error, which git keeps, instead."""

    def __post_init__(self) -> None:
        embedded = [name for name, tableau in SCHEMES.items() if tableau.b_error is not None]
        for name, good, allowed in (
            ("k", bool(self.k), "at least one rate"),
            ("z0", self.z0 != 0, "a number other than 0, at which every gradient is 0"),
            ("times", bool(self.times) and min(self.times, default=0) > 0, "numbers above 0"),
            ("scheme", self.scheme in embedded, f"one of {', '.join(embedded)}"),
            ("tolerance", self.tolerance > 0, "a number above 0"),
            ("first_step", self.first_step is None or self.first_step > 0, "a number above 0"),
            ("max_steps", self.max_steps >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")


# ---------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------


def through_the_search(solver: Adaptive, z0: jax.Array, k: jax.Array, t1: jax.Array) -> jax.Array:
    """z(t1), with step sizes that are differentiated: h_{n+1} = h_n factor(error_n) (ACA eq. 23-26).

    The trials are those of `solve`; what differs is that nothing stops the gradient of a step size.
    """
    scheme, t0 = solver.scheme, jnp.zeros_like(t1)
    order, tolerances = scheme.error_order, (solver.rtol, solver.atol)
    slope = lambda t, z: linear.field(t, z, k)

    def trial(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        t, z, h = carry
        last = t1 - t <= h * (1 + 1e-6)
        h = jnp.where(last, t1 - t, h)
        # The equation does not depend on time.
        step = scheme.step(lambda node, z: (slope(t, z), ()), z, h, error=True)
        error = scaled_norm(step.error, z, step.x, *tolerances)
        factor = solver.controller.factor(error, jnp.ones_like(error), order)
        accepted = error <= 1
        t_next = jnp.where(last, t1, t + h)
        return jnp.where(accepted, t_next, t), jnp.where(accepted, step.x, z), h * factor.astype(h.dtype)

    def body(carry: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
        return jax.lax.cond(carry[0] < t1, trial, lambda carry: carry, carry), None

    if solver.first_step is None:
        h = initial_step(slope, z0, slope(t0, z0), t1, 1.0, order, *tolerances)
    else:
        h = jnp.minimum(solver.first_step, t1)
    (t, z, _), _ = jax.lax.scan(body, (t0, z0, h), None, length=solver.max_steps)
    return jnp.where(t < t1, jnp.nan, z)


def gradients_of(solver: Adaptive) -> dict[str, Callable[..., tuple[jax.Array, jax.Array]]]:
    """By method, a compiled function of (z0, k, T) that gives (dL/dz0, dL/dk)."""

    def compiled(end: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(jax.grad(lambda z0, k, t1: linear.loss(end(z0, k, t1)), (0, 1)))

    def by(method: Any) -> Callable[..., jax.Array]:
        return lambda z0, k, t1: solve(linear.field, z0, k, solver=solver, gradient=method, t1=t1).x

    ends = {name: by(method) for name, method in METHODS.items()}
    ends[SEARCH] = lambda z0, k, t1: through_the_search(solver, z0, k, t1)
    return {name: compiled(end) for name, end in ends.items()}


def measure(options: Options, dtype: str) -> list[Row]:
    """One row a rate, time and method.

    Raises:
      ValueError: if a solve does not reach its end.
    """
    tolerance = options.tolerance
    solver = Adaptive(options.scheme, tolerance, tolerance, options.first_step, max_steps=options.max_steps)
    counts = jax.jit(lambda z0, k, t1: solve(linear.field, z0, k, solver=solver, gradient=ACA(), t1=t1))
    methods, rows = gradients_of(solver), []
    for k in options.k:
        for t1 in told(options.times, lambda t1, k=k: f"{dtype}, k = {k:g}, T = {t1:g}"):
            arguments = [jnp.asarray(value, dtype) for value in (options.z0, k, t1)]
            solution = counts(*arguments)
            if int(solution.result):
                raise ValueError(f"k={k}, T={t1}, {dtype}: the solve gave up; raise --max-steps or --tolerance")
            exact = [float(g) for g in linear.gradient(t1, jnp.float64(options.z0), jnp.float64(k))]
            for name, gradient in methods.items():
                errors = [abs(float(g) - e) for g, e in zip(gradient(*arguments), exact, strict=True)]
                rows.append(
                    {
                        "k": k,
                        "T": t1,
                        "dtype": dtype,
                        "method": name,
                        "n_accepted": int(solution.n_accepted),
                        "n_rejected": int(solution.n_rejected),
                        "absolute_error": errors[0],
                        "relative_error": errors[0] / abs(exact[0]),
                        "relative_error_dk": errors[1] / abs(exact[1]),
                    }
                )
    return rows


def run(options: Options) -> list[Row]:
    """All rows, float32 first; truths are float64 throughout."""
    with jax.enable_x64(True):
        return [row for dtype in ("float32", "float64") for row in measure(options, dtype)]


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def print_tables(rows: list[Row], console: Console) -> None:
    """Relative errors of dL/dz0, a table a rate and precision."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    for k, dtype in dict.fromkeys((row["k"], row["dtype"]) for row in rows):
        table = Table(title=f"|error of dL/dz0| / |dL/dz0|, k = {k:g}, {dtype}", title_justify="left")
        for column in ("T", "steps", "rejected", *names):
            table.add_column(column, justify="right")
        chosen = [row for row in rows if (row["k"], row["dtype"]) == (k, dtype)]
        for t1 in dict.fromkeys(row["T"] for row in chosen):
            line = {row["method"]: row for row in chosen if row["T"] == t1}
            first = line[names[0]]
            errors = [f"{line[name]['relative_error']:.2e}" for name in names]
            table.add_row(f"{t1:g}", str(first["n_accepted"]), str(first["n_rejected"]), *errors)
        show(table, console)


def draw(rows: list[Row]) -> Figure:
    """A panel a rate (down) and precision (across); methods that agree lie on top of each other."""
    from matplotlib.figure import Figure

    styles = {
        "Direct": {"color": "#9ecae1", "lw": 7, "solid_capstyle": "round"},
        "Checkpointed": {"color": "#3182bd", "lw": 3.5},
        "ACA": {"color": "black", "lw": 1.2, "marker": "o", "ms": 3.5},
        "Backsolve": {"color": "#d95f0e", "lw": 1.5, "marker": "s", "ms": 4},
        SEARCH: {"color": "#756bb1", "lw": 1.5, "marker": "^", "ms": 4.5, "ls": "--"},
    }
    rates = list(dict.fromkeys(row["k"] for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(8.6, 1.1 + 2.5 * len(rates)), layout="constrained")
    panels = figure.subplots(len(rates), len(dtypes), sharex=True, sharey="row", squeeze=False)
    for i, k in enumerate(rates):
        for j, dtype in enumerate(dtypes):
            axes = panels[i, j]
            for name, style in styles.items():
                chosen = [row for row in rows if (row["k"], row["dtype"], row["method"]) == (k, dtype, name)]
                # An error of exactly zero has no place on a logarithmic axis.
                points = [(row["T"], row["relative_error"] or float("nan")) for row in chosen]
                axes.semilogy(*zip(*points, strict=True), label=name, **style)
            axes.set_title(f"k = {k:g}, {dtype}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        panels[i, 0].set_ylabel("relative error of dL/dz(0)")
    for axes in panels[-1]:
        axes.set_xlabel("end time T")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.gradient_error", __doc__)
        out = destination("gradient_error", options.out, options.record)
        rows = run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_tables(rows, console)
    settings = {**dataclasses.asdict(options), "out": str(out)}
    record = {"settings": settings, "environment": environment(), "rows": rows}
    write_json(out / "gradient_error.json", record)
    draw(rows).savefig(out / "gradient_error.png", dpi=150)
    console.print(f"written: {out}/gradient_error.json, gradient_error.png")


if __name__ == "__main__":
    main()
