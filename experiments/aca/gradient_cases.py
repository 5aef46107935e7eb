"""Solves in which trials are rejected, and how right and how dear each gradient method is on them.

What `gradient_error` measures beside the toy problem of the ACA paper, on which nothing is ever rejected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aca.gradient_costs import Solver, report
from experiments.records.progress import told, working
from ode_nets import ACA, MLP, Adaptive, Backsolve, Direct, Naive, solve
from ode_nets.gradients import GradientMethod
from ode_nets.integrate import Field
from ode_nets.problems import van_der_pol

PyTree = Any
Row = dict[str, Any]
Name = Literal["stiff_start", "van_der_pol", "first_step", "loose"]
METHODS: Mapping[str, GradientMethod] = {"ACA": ACA(None), "Naive": Naive(), "Backsolve": Backsolve()}
"""By which errors are measured; `Direct` and `Checkpointed` differ from ACA by rounding, which the toy shows."""
COUNTED: Mapping[str, GradientMethod] = {**METHODS, "Direct": Direct()}
"""By which evaluations and memory are."""
FALLING = tuple(10.0**-k for k in range(1, 9))
TRUTH = 1e-12
"""Tolerance of the reference; its own error is taken from that at ten times as much."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A family of solves that differ in their start, with the loss mean(x(t1)^2).

    Attributes:
      title: its name in tables and pictures.
      field, theta, t1: the equation, its weights and the end of time, from 0 on.
      starts: initial states, `[n_starts, ...]`, float64.
      scheme, first_step: of the solver; its rtol and atol are equal.
      tolerances: at which errors are measured, falling.
      shown: that of them at which depth and memory are.
    """

    title: str
    field: Field
    starts: jax.Array
    theta: PyTree
    t1: float
    tolerances: tuple[float, ...] = FALLING
    shown: float = 1e-4
    scheme: str = "dopri5"
    first_step: float | None = None

    def solver(self, tolerance: Any, max_steps: int) -> Adaptive:
        """The solver at a tolerance."""
        return Adaptive(self.scheme, tolerance, tolerance, self.first_step, max_steps=max_steps)


def relaxation(t: Any, x: jax.Array, rate: Any) -> jax.Array:
    """dx/dt = -rate (x - cos t): what is left of the start decays at the rate, and then x follows the cosine."""
    return -rate * (x - jnp.cos(t))


def mean_square(x: jax.Array) -> jax.Array:
    """The loss of every case."""
    return jnp.mean(jnp.square(x))


def cases(n_starts: int) -> dict[Name, Case]:
    """By name, float64; to be called under `jax.enable_x64`."""
    along = jnp.linspace(1.5, 2.5, n_starts)
    released = jnp.stack([along, jnp.zeros_like(along)], axis=-1)
    key_x, key_theta = jax.random.split(jax.random.key(0))
    mlp = MLP(size=4, hidden=(16,))
    # Weights as large as training makes them.
    theta = jax.tree.map(lambda leaf: 4 * leaf.astype(jnp.float64), mlp.init(key_theta))
    batches = jax.random.normal(key_x, (n_starts, 8, 4), jnp.float64)
    oscillator = van_der_pol.field
    mild = jnp.float64(van_der_pol.MU)
    return {
        "stiff_start": Case("stiff start", relaxation, along[:, None], jnp.float64(50), 2.0),
        "van_der_pol": Case("van der Pol, mu = 15", oscillator, released, jnp.float64(15), 2.0),
        "first_step": Case("first step too large", oscillator, released, mild, 10.0, first_step=5.0),
        "loose": Case("loose tolerance", mlp, batches, theta, 5.0, FALLING[:4], 1e-2, "heun_euler", 1.0),
    }


# ---------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------


def gradients(case: Case, method: GradientMethod, solver: Callable[[Any], Solver]) -> Callable[[Any], Any]:
    """A compiled function of what `solver` takes: gradients `[n_starts, n]` in x0 and theta; counts and results."""

    def value(x0: jax.Array, theta: PyTree, fineness: Any) -> tuple[jax.Array, Any]:
        solution = solve(case.field, x0, theta, solver=solver(fineness), gradient=method, t1=case.t1)
        return mean_square(solution.x), (solution.n_accepted, solution.n_rejected, solution.result)

    def one(x0: jax.Array, fineness: Any) -> Any:
        gradient, counts = jax.grad(value, (0, 1), has_aux=True)(x0, case.theta, fineness)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gradient)]), counts

    return jax.jit(lambda fineness: jax.vmap(one, (0, None))(case.starts, fineness))


def truth(case: Case) -> tuple[np.ndarray, float]:
    """Gradients `[n_starts, n]` of the equations themselves, by Dopri5 at a fine tolerance, and how far they are off.

    Raises:
      ValueError: if a solve does not reach its end.
    """
    fine = gradients(case, ACA(64), lambda tolerance: Adaptive("dopri5", tolerance, tolerance, max_steps=50_000))
    found, (_, _, results) = fine(TRUTH)
    if np.any(np.asarray(results)):
        raise ValueError(f"{case.title}: no reference at a tolerance of {TRUTH:g}")
    return np.asarray(found), float(np.max(errors(np.asarray(fine(10 * TRUTH)[0]), np.asarray(found))))


def errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """|found - true| / |true| of each start, infinite where a gradient is not finite."""
    distances = np.linalg.norm(found - true, axis=-1) / np.linalg.norm(true, axis=-1)
    return np.where(np.isfinite(distances), distances, np.inf)


def finite(value: float) -> float | None:
    """A number for JSON, which has none that is not finite."""
    return float(value) if np.isfinite(value) else None


def measure(name: str, case: Case, max_steps: int) -> list[Row]:
    """A row a tolerance and method: median error over the starts, and how often ACA's is below the method's own.

    Raises:
      ValueError: if the solve of a start does not reach its end within `max_steps` trials.
    """
    with working(f"{case.title}: the gradient of the equation itself"):
        true, uncertain = truth(case)
    sized = lambda tolerance: case.solver(tolerance, max_steps)
    programs = {key: gradients(case, method, sized) for key, method in METHODS.items()}
    rows = []
    for tolerance in told(case.tolerances, lambda tolerance: f"{case.title}: errors at {tolerance:g}"):
        found = {key: program(tolerance) for key, program in programs.items()}
        by_method = {key: errors(np.asarray(gradient), true) for key, (gradient, _) in found.items()}
        accepted, rejected, results = map(np.asarray, next(iter(found.values()))[1])
        if np.any(results):
            raise ValueError(f"{name} at tolerance {tolerance:g}: a solve takes more than {max_steps} trials")
        for key, of_starts in by_method.items():
            rows.append(
                {
                    "case": name,
                    "title": case.title,
                    "tolerance": tolerance,
                    "method": key,
                    "n_accepted": float(np.median(accepted)),
                    "n_rejected": float(np.median(rejected)),
                    "error": finite(float(np.median(of_starts))),
                    "errors": [finite(error) for error in of_starts],
                    "truth_error": uncertain,
                    "aca_is_nearer": float(np.mean(by_method["ACA"] < of_starts)),
                }
            )
    return rows


def costs(name: str, case: Case, max_steps: int) -> list[Row]:
    """A row a method: vjps of the way back, one after the other, and temporary memory of the compiled program.

    Buffers have room for the trials that the solve takes and a tenth more.
    """
    solver = case.solver(case.shown, max_steps)
    found = report(
        case.field, case.starts[0], case.theta, mean_square, solver, COUNTED,
        t1=case.t1, truth_tolerance=None, repeats=1,
    )  # fmt: skip
    kept = ("method", "forward_evaluations", "backward_evaluations", "backward_vjps", "temporary_bytes", "formula_vjps")
    counts = {key: found["sizes"][key] for key in ("n_accepted", "n_rejected")}
    of_all = {"case": name, "title": case.title, "tolerance": case.shown} | counts
    return [of_all | {key: row[key] for key in kept} for row in found["rows"]]
