"""Who is right when: errors of gradients on the ACA paper's toy problem (Fig. 6), and where trials are rejected.

    python -m experiments.aca.gradient_error

The toy problem dz/dt = k z, L = z(T)^2 (ACA eq. 27-29), for growth and for decay, in float32 and in float64, under
Dopri5 at rtol = atol = 1e-5, by every gradient method against the length T of the solve. The paper gives neither k nor
z0; k = 1 and -1 and z0 = 1 are ours. It plots absolute errors; here errors are divided by the exact gradient, which
spans many decades, and the JSON file holds both.

No solve of the toy rejects a trial. The deep graph through rejected trials, for which the paper blames the naive method
(sec. 3.3), is never there, and `Naive`, which differentiates the search for step sizes as the paper means it, is often
the nearest. So the same is measured on four families of solves that do reject, against a reference in float64 at a
tolerance of 1e-12, over tolerances, each the median of several starts:

- a stiff start: dx/dt = -50 (x - cos t)
- the van der Pol oscillator of sec. D with mu = 15 in place of 0.15
- that with mu = 0.15, from a first step that is far too large
- a perceptron under HeunEuler at the loose tolerances that NODE18 is trained with, from a first step of 1

At one tolerance of each: the vector-Jacobian products of the field on the way back, which follow one another and so are
the depth of the graph (of Backsolve, with the trials that its own solve rejects), counted as the compiled program makes
them, and temporary memory, from the analysis of that program, with room for the trials that are taken and a tenth more.

`Direct` takes step sizes as constants, and on the same accepted steps it is equal to ACA by construction; so is
`Checkpointed`.

Measured (results/gradient_error, medians of nine starts): ACA is nearer than Naive on the stiff start at 1e-3 and finer
(7e-3 and 0.4 at 1e-4), after a first step too large and at loose tolerances; of the stiff van der Pol oscillator Naive
is nearer at 1e-7 to 1e-3 (1e-2 and 0.2 at 1e-4). Its graph is deeper by 8 to 36 %.

Two minutes on two idle cores. Writes gradient_error.json, gradient_error.png and rejecting.png into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.aca import gradient_cases
from experiments.aca.gradient_error_figures import draw, draw_rejecting
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import ACA, SCHEMES, Adaptive, Backsolve, Checkpointed, Direct, Naive, solve
from ode_nets.problems import linear

Row = dict[str, Any]
METHODS = {
    "Direct": Direct(),
    "Checkpointed": Checkpointed(),
    "ACA": ACA(),
    "Backsolve": Backsolve(),
    "Naive": Naive(),
}


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
    cases: tuple[gradient_cases.Name, ...] = get_args(gradient_cases.Name)
    """Families of solves that reject trials; none leaves them out."""
    starts: int = 9
    """Of each family."""
    cases_max_steps: int = 2048
    """Bound on trial steps of the families."""
    out: Path | None = None
    """Folder of the results; default runs/gradient_error."""
    record: bool = False
    """Write into results/gradient_error, which git keeps, instead."""

    def __post_init__(self) -> None:
        embedded = [name for name, tableau in SCHEMES.items() if tableau.b_error is not None]
        check_settings(
            self,
            ("k", bool(self.k), "at least one rate"),
            ("z0", self.z0 != 0, "a number other than 0, at which every gradient is 0"),
            ("times", bool(self.times) and min(self.times, default=0) > 0, "numbers above 0"),
            ("scheme", self.scheme in embedded, f"one of {', '.join(embedded)}"),
            ("tolerance", self.tolerance > 0, "a number above 0"),
            ("first_step", self.first_step is None or self.first_step > 0, "a number above 0"),
            ("max_steps", self.max_steps >= 1, "at least 1"),
            ("starts", self.starts >= 1, "at least 1"),
            ("cases_max_steps", self.cases_max_steps >= 1, "at least 1"),
        )


# ---------------------------------------------------------------------------------------------------------
# The toy problem
# ---------------------------------------------------------------------------------------------------------


def gradients_of(solver: Adaptive) -> dict[str, Callable[..., tuple[jax.Array, jax.Array]]]:
    """By method, a compiled function of (z0, k, T) that gives (dL/dz0, dL/dk)."""

    def compiled(end: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(jax.grad(lambda z0, k, t1: linear.loss(end(z0, k, t1)), (0, 1)))

    def by(method: Any) -> Callable[..., jax.Array]:
        return lambda z0, k, t1: solve(linear.field, z0, k, solver=solver, gradient=method, t1=t1).x

    return {name: compiled(by(method)) for name, method in METHODS.items()}


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


def run(options: Options) -> dict[str, list[Row]]:
    """Rows of the toy problem, float32 first, then of the families that reject; truths are float64 throughout."""
    with jax.enable_x64(True):
        rows = [row for dtype in ("float32", "float64") for row in measure(options, dtype)]
        found = gradient_cases.cases(options.starts)
        families, bound = {name: found[name] for name in options.cases}, options.cases_max_steps
        errors = [row for pair in families.items() for row in gradient_cases.measure(*pair, bound)]
        costs = [row for pair in families.items() for row in gradient_cases.costs(*pair, bound)]
    return {"rows": rows, "cases": errors, "costs": costs}


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def print_tables(record: dict[str, Any], console: Console) -> None:
    """All tables: the toy's, then those of the families that reject."""
    print_toy(record["rows"], console)
    if record["cases"]:
        print_errors(record["cases"], console)
        print_costs(record["costs"], console)


def print_toy(rows: Sequence[Row], console: Console) -> None:
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


def print_errors(rows: Sequence[Row], console: Console) -> None:
    """Median errors of the gradient where trials are rejected, and how often ACA is nearer than another method."""
    table = Table(title="trials rejected: |error of the gradient| / |gradient|, medians", title_justify="left")
    names = list(dict.fromkeys(row["method"] for row in rows))
    table.add_column("solve")
    others = [name for name in names if name != "ACA"]
    for column in ("tol", "steps", "rejected", *names, *(f"ACA nearer than {name}" for name in others)):
        table.add_column(column, justify="right")
    for case, tolerance in dict.fromkeys((row["case"], row["tolerance"]) for row in rows):
        line = {row["method"]: row for row in rows if (row["case"], row["tolerance"]) == (case, tolerance)}
        first = line[names[0]]
        counts = [f"{first[key]:.0f}" for key in ("n_accepted", "n_rejected")]
        errors = ["none" if line[name]["error"] is None else f"{line[name]['error']:.1e}" for name in names]
        shares = [f"{100 * line[name]['aca_is_nearer']:.0f} %" for name in others]
        table.add_row(first["title"], f"{tolerance:.0e}", *counts, *errors, *shares)
    show(table, console)


def print_costs(rows: Sequence[Row], console: Console) -> None:
    """Depth and memory of each method."""
    table = Table(title="depth: vjps of the field, one after the other; memory: temporary", title_justify="left")
    names = list(dict.fromkeys(row["method"] for row in rows))
    table.add_column("solve")
    for column in ("tol", "steps", "rejected", *(f"{name} {what}" for what in ("depth", "KiB") for name in names)):
        table.add_column(column, justify="right")
    for case in dict.fromkeys(row["case"] for row in rows):
        line = {row["method"]: row for row in rows if row["case"] == case}
        first = line[names[0]]
        depths = [str(line[name]["backward_vjps"]) for name in names]
        memory = [f"{line[name]['temporary_bytes'] / 1024:.1f}" for name in names]
        counts = (str(first["n_accepted"]), str(first["n_rejected"]))
        table.add_row(first["title"], f"{first['tolerance']:.0e}", *counts, *depths, *memory)
    show(table, console)


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.gradient_error", __doc__)
        out = destination("gradient_error", options.out, options.record)
        found = run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_tables(found, console)
    settings = {**dataclasses.asdict(options), "out": str(out)}
    write_json(out / "gradient_error.json", {"settings": settings, "environment": environment(), **found})
    draw(found["rows"]).savefig(out / "gradient_error.png", dpi=150)
    written = "gradient_error.json, gradient_error.png"
    if found["cases"]:
        draw_rejecting(found["cases"], found["costs"]).savefig(out / "rejecting.png", dpi=120)
        written += ", rejecting.png"
    print(f"written: {out}/{written}")


if __name__ == "__main__":
    main()
