"""What works with what: every scheme on every grid under every gradient method.

    python -m benchmarks.exchange

Prints a table, with the reason of every refusal below it, by the question that `solve` asks before it runs. That what
it says is so, and that the cells that work agree with each other, is what tests/gradients/test_exchange.py asserts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from ode_nets import (
    ACA,
    Adaptive,
    Backsolve,
    Checkpointed,
    Coupled,
    Direct,
    FixedStep,
    Naive,
    Recorded,
    Reversible,
    get_scheme,
    pad,
    solve,
)
from ode_nets.gradients import methods
from ode_nets.interop.diffrax import DiffraxScheme

SCHEMES: dict[str, Any] = {
    "static": "bosh3",
    "arrays": pad(FixedStep("bosh3", 1), 3).scheme,
    "explicit of diffrax": DiffraxScheme(diffrax.Bosh3()),
    "implicit of diffrax": DiffraxScheme(diffrax.Kvaerno3()),
    "reversible": Coupled("bosh3"),
}
ENDS = np.array([0.1, 0.4, 0.6, 1.0, 1.3, np.inf])
GRIDS: dict[str, Callable[[Any], Any]] = {
    "uniform": lambda scheme: FixedStep(scheme, 6),
    "traced": lambda scheme: FixedStep(scheme, jnp.int32(6), 9),
    "adaptive": lambda scheme: Adaptive(scheme, 1e-4, 1e-4, first_step=1.0, max_steps=40),
    "recorded": lambda scheme: Recorded.at(get_scheme(scheme), jnp.asarray(ENDS), 5),
}
METHODS: dict[str, Any] = {
    "direct": Direct(),
    "by step": Checkpointed("step"),
    "by block": Checkpointed("block"),
    "aca, 3": ACA(3),
    "aca": ACA(None),
    "backsolve": Backsolve(rtol=1e-8, atol=1e-8),
    "reversible": Reversible(),
    "naive": Naive(),
}
INPUTS = (np.array([1.0, -0.5]), np.array([[0.5, -1.0], [2.0, 0.3]]), 0.7, 0.1, 1.4)
"""State, weights, what the field closes over, and both ends of time."""
KEY = jax.random.key(3)


def loss(solver: Any, method: Any) -> Callable[..., Any]:
    """A number that depends on the five inputs, and the solution."""

    def of(x0: jax.Array, w: jax.Array, closed: Any, t0: Any, t1: Any) -> Any:
        def field(t: Any, x: jax.Array, w: jax.Array) -> jax.Array:
            noise = jax.random.normal(jax.random.wrap_key_data(jax.random.key_data(KEY)), x.shape)
            return jnp.tanh(w @ x) * closed + jnp.sin(2 * t) + 0.1 * noise

        solution = solve(field, x0, w, solver=solver, gradient=method, t0=t0, t1=t1)
        return jnp.sum(jnp.sin(solution.x) * jnp.arange(1.0, 3.0)), solution

    return of


def refusal(scheme: str, grid: str, method: str) -> str | None:
    """Why a cell is refused; `None` where it is not."""
    try:
        solver = GRIDS[grid](SCHEMES[scheme])
    except ValueError as error:
        return str(error)
    return methods.refusal(solver, METHODS[method])


def table() -> tuple[list[list[str]], list[str]]:
    """Its rows, and one message of every kind of refusal in them."""
    rows, reasons = [], dict[str, str]()
    for scheme in SCHEMES:
        for grid in GRIDS:
            why = {method: refusal(scheme, grid, method) for method in METHODS}
            rows.append([f"{scheme}, {grid}", *("-" if reason else "yes" for reason in why.values())])
            # What follows the names of the parts is the reason.
            reasons = {reason.split(": ", 1)[-1]: reason for reason in why.values() if reason} | reasons
    return rows, list(reasons.values())


def main() -> None:
    """The table, and what it refuses."""
    rows, reasons = table()
    harness.show("what works with what", ("scheme, grid", *METHODS), rows)
    for reason in reasons:
        print(f"refused: {reason}")


if __name__ == "__main__":
    main()
