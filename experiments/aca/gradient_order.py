"""The order of the error of gradients: Theorem 3.2 of the ACA paper, checked with numbers.

    python -m experiments.aca.gradient_order

The theorem takes equal steps of a scheme of order p: the state at the end is off by O(h^p), and so is the start that
the adjoint method comes back to (eq. 15, 16), as e_k = DPhi + (-1)^(p+1) DPhi^-1 is zero for no k unless the network
is the identity (eq. 22). Measured on the pendulum, with as many steps back as there: the error of the state, of the
start that comes back, and of the gradients of ACA and Backsolve, each with its slope in logarithmic axes.

Eq. 16 adds the error at the end to that of the way back, though the former is one at T and the latter one at t0.
Carried back to t0 by DPhi^-1, the two are h^(p+1) (1 + (-1)^(p+1)) l: twice one of them where p is odd, and nothing
where it is even. By this reckoning of ours a scheme of even order comes back with an error of order p + 1. The gradient
has order p under either method and either parity, since the loss is read at the end.

Then steps sized by a tolerance, under which a scheme of order p with an estimate of order q has errors of order
p / (q + 1) in the tolerance, which is 1 for all pairs here: dx/dt = -k sin(x - cos t) to T = 2, whose start decays by
exp(-k T), with k = 1 and with stiff decay. On the way back that decay is growth: where the tolerance times exp(k T / 2)
exceeds one, the path that comes back leaves for another equilibrium, and Backsolve has no order at all. A slope is
fitted to the medians over starts, where they are below 0.1 and above ten times the error of the reference.

Minutes on two cores. Writes gradient_order.json and gradient_order.png into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.aca.gradient_cases import METHODS, Case, errors, finite, gradients, truth
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.pictures import plain_ticks
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import ACA, SCHEMES, Adaptive, Backsolve, FixedStep, solve
from ode_nets.problems import pendulum
from ode_nets.validity import fit_slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
QUANTITIES = {
    "state": "x(T)",
    "returned": "x(0) that comes back",
    "ACA": "gradient, ACA",
    "Backsolve": "gradient, Backsolve",
}
LEAST_POINTS = 5
"""Of a fit in the tolerance."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    fixed: tuple[str, ...] = ("euler", "midpoint", "bosh3", "rk4")
    """Schemes that take equal steps."""
    n_steps: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    """Equal steps, rising."""
    adaptive: tuple[str, ...] = ("dopri5", "bosh3")
    """Embedded schemes, whose steps are sized by a tolerance."""
    rates: tuple[float, ...] = (1.0, 10.0, 40.0)
    """Rates of decay k, above 0."""
    decades: tuple[int, int] = (2, 9)
    """The tolerances are 10^-i and 3 x 10^-i, from the first i to the last."""
    starts: int = 9
    """Initial states, over whose errors medians are taken."""
    max_steps: int = 4096
    """Bound on trial steps."""
    out: Path | None = None
    """Folder of the results; default runs/gradient_order."""
    record: bool = False
    """Write into results/gradient_order, which git keeps, instead."""

    def __post_init__(self) -> None:
        embedded = [name for name, tableau in SCHEMES.items() if tableau.b_error is not None]
        n, (first, last) = self.n_steps, self.decades
        check_settings(
            self,
            ("fixed", set(self.fixed) <= set(SCHEMES), f"some of {', '.join(SCHEMES)}"),
            ("n_steps", min(n, default=1) >= 1 and n == tuple(sorted(set(n))), "rising numbers of at least 1"),
            ("adaptive", set(self.adaptive) <= set(embedded), f"some of {', '.join(embedded)}"),
            ("rates", min(self.rates, default=1) > 0, "numbers above 0"),
            ("decades", 1 <= first <= last <= 11, "two numbers from 1 to 11 that do not fall"),
            ("starts", self.starts >= 1, "at least 1"),
            ("max_steps", self.max_steps >= 1, "at least 1"),
        )

    @property
    def tolerances(self) -> tuple[float, ...]:
        """Falling."""
        first, last = self.decades
        found = (factor * 10.0**-i for i in range(first, last + 1) for factor in (3, 1))
        return tuple(sorted(found, reverse=True))


# ---------------------------------------------------------------------------------------------------------
# Equal steps
# ---------------------------------------------------------------------------------------------------------


def swinging(options: Options) -> Case:
    """The pendulum over one second, which neither grows nor decays, released from several angles."""
    angles = jnp.linspace(0.5, 1.0, options.starts) * pendulum.START
    starts = jnp.stack([angles, jnp.zeros_like(angles)], axis=-1)
    return Case("pendulum", pendulum.field, starts, jnp.float64(pendulum.GRAVITY), 1.0)


def equal_steps(options: Options) -> list[Row]:
    """A row a scheme and number of steps: median errors over the starts."""
    case, rows = swinging(options), []
    true, _ = truth(case)
    exact = solve(case.field, case.starts, case.theta, solver=Adaptive("dopri5", 1e-13, 1e-13), t1=case.t1).x
    for scheme in told(options.fixed, lambda scheme: f"equal steps of {scheme}"):
        found = {
            name: gradients(case, method, lambda n, scheme=scheme: FixedStep(scheme, n))
            for name, method in (("ACA", ACA(None)), ("Backsolve", Backsolve()))
        }

        @jax.jit
        def there_and_back(n: jax.Array, scheme: str = scheme) -> tuple[jax.Array, jax.Array]:
            solver = FixedStep(scheme, n)
            there = solve(case.field, case.starts, case.theta, solver=solver, t1=case.t1).x
            return there, solve(case.field, there, case.theta, solver=solver, t0=case.t1, t1=0.0).x

        for n in options.n_steps:
            n_steps = jnp.int32(n)
            there, back = there_and_back(n_steps)
            by_name = {"state": errors(np.asarray(there), np.asarray(exact))}
            by_name["returned"] = errors(np.asarray(back), np.asarray(case.starts))
            by_name |= {name: errors(np.asarray(program(n_steps)[0]), true) for name, program in found.items()}
            medians = {name: finite(float(np.median(values))) for name, values in by_name.items()}
            rows.append({"scheme": scheme, "p": SCHEMES[scheme].order, "n_steps": n, "h": case.t1 / n} | medians)
    return rows


def orders_in_h(rows: Sequence[Row]) -> list[Row]:
    """The order of every quantity of every scheme; `None` where the errors are on no line."""
    found = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        of = [row for row in rows if row["scheme"] == scheme]
        h, p = np.array([row["h"] for row in of]), of[0]["p"]
        slopes = {name: fit_slope(h, np.array([row[name] or 0.0 for row in of])).order for name in QUANTITIES}
        measured = {name: finite(slope) for name, slope in slopes.items()}
        found.append({"scheme": scheme, "p": p, "returned_by_us": p + (p % 2 == 0)} | measured)
    return found


# ---------------------------------------------------------------------------------------------------------
# Steps sized by a tolerance
# ---------------------------------------------------------------------------------------------------------


def decaying(t: Any, x: jax.Array, rate: Any) -> jax.Array:
    """dx/dt = -rate sin(x - cos t): the start decays to near cos t, and what comes back ends near cos t + pi."""
    return -rate * jnp.sin(x - jnp.cos(t))


def by_tolerance(options: Options) -> list[Row]:
    """A row a scheme, rate, tolerance and method: the median error over the starts."""
    starts, rows = jnp.linspace(1.5, 2.5, options.starts)[:, None], []
    for rate in options.rates:
        case = Case(f"decay at rate {rate:g}", decaying, starts, jnp.float64(rate), 2.0)
        true, uncertain = truth(case)
        for scheme in told(options.adaptive, lambda scheme, rate=rate: f"decay at rate {rate:g}: {scheme}"):
            sized = lambda tol, scheme=scheme: Adaptive(scheme, tol, tol, max_steps=options.max_steps)
            for name, method in METHODS.items():
                program = gradients(case, method, sized)
                for tolerance in options.tolerances:
                    found, (accepted, rejected, results) = program(tolerance)
                    if np.any(np.asarray(results)):
                        raise ValueError(f"{scheme}, rate {rate:g}, tolerance {tolerance:g}: raise --max-steps")
                    rows.append(
                        {
                            "scheme": scheme,
                            "rate": rate,
                            "tolerance": tolerance,
                            "method": name,
                            "n_accepted": float(np.median(accepted)),
                            "n_rejected": float(np.median(rejected)),
                            "error": finite(float(np.median(errors(np.asarray(found), true)))),
                            "truth_error": uncertain,
                        }
                    )
    return rows


def fitted(tolerances: Sequence[float], values: Sequence[float | None], floor: float) -> Row:
    """The line log error = slope log tolerance + c through errors below 0.1 and above ten times a floor.

    Returns:
      `slope`, `factor` (how far errors are from the line at most), `n_points` and `from` (the largest tolerance), with
      `None` for what there is not: fewer than five points, or a line that is met within a factor of 10 only.
    """
    good = [(t, e) for t, e in zip(tolerances, values, strict=True) if e is not None and 10 * floor < e < 0.1]
    nothing = {"slope": None, "factor": None, "n_points": len(good), "from": None}
    if len(good) < LEAST_POINTS:
        return nothing
    x, y = np.log(np.array(good)).T
    slope, constant = np.polyfit(x, y, 1)
    factor = float(np.exp(np.max(np.abs(y - slope * x - constant))))
    return nothing if factor > 10 else nothing | {"slope": float(slope), "factor": factor, "from": good[0][0]}


def orders_in_tolerance(rows: Sequence[Row]) -> list[Row]:
    """The order of the error of every method's gradient, a row a scheme, rate and method."""
    found = []
    for key in dict.fromkeys((row["scheme"], row["rate"], row["method"]) for row in rows):
        of = [row for row in rows if (row["scheme"], row["rate"], row["method"]) == key]
        line = fitted([row["tolerance"] for row in of], [row["error"] for row in of], of[0]["truth_error"])
        tableau = SCHEMES[key[0]]
        expected = tableau.order / ((tableau.embedded_order or 0) + 1)
        found.append({"scheme": key[0], "rate": key[1], "method": key[2], "expected": expected} | line)
    return found


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def cell(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash for none."""
    return "-" if value is None else format(value, form)


def print_tables(record: dict[str, Any], console: Console) -> None:
    """Orders in the step size and in the tolerance."""
    table = Table(title="order in h, equal steps, pendulum: measured", title_justify="left")
    table.add_column("scheme")
    for column in ("p", *QUANTITIES.values(), "x(0) by eq. 16", "carried back"):
        table.add_column(column, justify="right")
    for row in record["orders_in_h"]:
        measured = [cell(row[name]) for name in QUANTITIES]
        table.add_row(row["scheme"], str(row["p"]), *measured, str(row["p"]), str(row["returned_by_us"]))
    show(table, console)
    table = Table(title="order of the gradient's error in the tolerance (- : none)", title_justify="left")
    table.add_column("scheme")
    methods = list(dict.fromkeys(row["method"] for row in record["orders_in_tolerance"]))
    for column in ("decay k T", "expected", *methods):
        table.add_column(column, justify="right")
    for scheme, rate in dict.fromkeys((row["scheme"], row["rate"]) for row in record["orders_in_tolerance"]):
        of = [row for row in record["orders_in_tolerance"] if (row["scheme"], row["rate"]) == (scheme, rate)]
        slopes = {row["method"]: cell(row["slope"]) for row in of}
        table.add_row(scheme, f"{2 * rate:g}", cell(of[0]["expected"]), *(slopes[name] for name in methods))
    show(table, console)


COLORS = {"ACA": "black", "Naive": "#756bb1", "Backsolve": "#d95f0e"}
MARKS = {"ACA": "o", "Naive": "^", "Backsolve": "s"}


def draw(record: dict[str, Any]) -> Figure:
    """Equal steps above, a panel a quantity; below steps by a tolerance, a panel a rate. Legends hold the slopes."""
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(row["rate"] for row in record["by_tolerance"]))
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    above = upper.subplots(1, 3, sharey=True)
    panels = {"returned": above[0], "ACA": above[1], "Backsolve": above[2]}
    for name, axes in panels.items():
        for k, order in enumerate(record["orders_in_h"]):
            rows = [row for row in record["equal_steps"] if row["scheme"] == order["scheme"]]
            label = f"{order['scheme']}, p = {order['p']}: slope {cell(order[name])}"
            points = [row[name] or float("nan") for row in rows]
            axes.loglog([row["h"] for row in rows], points, color=f"C{k}", marker="osD^v"[k % 5], ms=3.5, label=label)
        _finish(axes, "step h", {"returned": "start that comes back", "ACA": "gradient by ACA"}.get(name, f"by {name}"))
        plain_ticks(axes.xaxis)
    above[0].set_ylabel("relative error")
    below = lower.subplots(1, max(1, len(rates)), sharey=True, squeeze=False)[0]
    scheme = next(iter(row["scheme"] for row in record["by_tolerance"]), "")
    for axes, rate in zip(below, rates, strict=False):
        for order in record["orders_in_tolerance"]:
            if (order["scheme"], order["rate"]) != (scheme, rate):
                continue
            name = order["method"]
            rows = [
                row
                for row in record["by_tolerance"]
                if (row["scheme"], row["rate"], row["method"]) == (scheme, rate, name)
            ]
            points = [row["error"] or float("nan") for row in rows]
            style = {"color": COLORS[name], "marker": MARKS[name], "ms": 3.5, "lw": 1.2}
            label = f"{name}: " + ("no order" if order["slope"] is None else f"slope {order['slope']:.2f}")
            axes.loglog([row["tolerance"] for row in rows], points, label=label, **style)
        _finish(axes, "tolerance", f"{scheme}, decay by exp(-{2 * rate:g})")
    below[0].set_ylabel("relative error of the gradient")
    return figure


def _finish(axes: Axes, across: str, title: str) -> None:
    axes.set_xlabel(across)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def run(options: Options) -> dict[str, Any]:
    """All rows and the orders that they show; everything in float64."""
    with jax.enable_x64(True):
        fixed, sized = equal_steps(options), by_tolerance(options)
        return {
            "settings": dataclasses.asdict(options) | {"out": None if options.out is None else str(options.out)},
            "environment": environment(),
            "orders_in_h": orders_in_h(fixed),
            "orders_in_tolerance": orders_in_tolerance(sized),
            "equal_steps": fixed,
            "by_tolerance": sized,
        }


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.gradient_order", __doc__)
        out = destination("gradient_order", options.out, options.record)
        record = run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_tables(record, console)
    write_json(out / "gradient_order.json", record)
    draw(record).savefig(out / "gradient_order.png", dpi=130)
    print(f"written: {out}/gradient_order.json, gradient_order.png")


if __name__ == "__main__":
    main()
