"""Measure gradient methods on one solve: field evaluations, memory, seconds, and how right the gradient is.

`report` is what experiments.aca.gradient_report prints and draws; call it with a model of your own:

    from experiments.aca.gradient_costs import report
    from ode_nets import Adaptive

    costs = report(field, x0, theta, loss, Adaptive("dopri5", rtol=1e-3, atol=1e-6))
    for row in costs["rows"]:
        print(row["method"], row["forward_evaluations"], row["backward_vjps"], row["error"])
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.records.progress import told, working
from experiments.records.timing import compare
from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, solve
from ode_nets.gradients import GradientMethod
from ode_nets.integrate import Field, Result, Solution, theta_at

PyTree = Any
Row = dict[str, Any]
Solver = Adaptive | FixedStep
Loss = Callable[[PyTree], jax.Array]
METHODS: Mapping[str, GradientMethod] = {
    "Direct": Direct(),
    "Checkpointed, steps": Checkpointed("step"),
    "Checkpointed, block": Checkpointed("block"),
    "ACA, all states": ACA(None),
    "ACA, 32 states": ACA(32),
    "ACA, 4 states": ACA(4),
    "Backsolve": Backsolve(),
}


# ---------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------


def counting(field: Field, counts: Counter[str]) -> Field:
    """The same field, which counts its evaluations and vjps on the host when a compiled program makes them."""

    def pulse(kind: str, tree: PyTree) -> PyTree:
        def tick(_: Any) -> np.ndarray:
            counts[kind] += 1
            return np.ones((), np.float32)

        # An argument and a factor that the compiler does not know: what it drops is dropped here too.
        some = jax.tree.leaves(tree)[0].ravel()[0]
        one = jax.pure_callback(tick, jax.ShapeDtypeStruct((), jnp.float32), some)
        return jax.tree.map(lambda leaf: leaf * one.astype(leaf.dtype), tree)

    @jax.custom_vjp
    def counted(t: Any, x: PyTree, theta: PyTree) -> PyTree:
        return field(t, pulse("evaluations", x), theta)

    def forward(t: Any, x: PyTree, theta: PyTree) -> tuple[PyTree, Any]:
        return jax.vjp(field, t, pulse("evaluations", x), theta)

    def backward(pullback: Any, cotangent: PyTree) -> Any:
        return pullback(pulse("vjps", cotangent))

    counted.defvjp(forward, backward)
    return counted


def count_passes(
    end: Callable[[Field, PyTree, PyTree], PyTree], field: Field, x0: PyTree, theta: PyTree, loss: Loss
) -> Row:
    """Evaluations and vjps of the forward and of the backward pass, under differentiation."""
    counts: Counter[str] = Counter()
    program = jax.jit(lambda x0, theta: end(counting(field, counts), x0, theta))
    x1, pullback = jax.block_until_ready(jax.vjp(program, x0, theta))
    there = dict(counts)
    cotangent = jax.grad(loss)(x1)
    counts.clear()
    jax.block_until_ready(pullback(cotangent))
    return {
        "forward_evaluations": there.get("evaluations", 0),
        "backward_evaluations": counts["evaluations"],
        "backward_vjps": counts["vjps"],
    }


def way_back(
    field: Field, solution: Solution, theta: PyTree, loss: Loss, solver: Solver, t0: float, t1: float
) -> Solution:
    """The adjoint's solve, [x, a, g] from t1 to t0 (lecture, "augmented adjoint based ODE"), for its counts."""

    def augmented(t: Any, state: PyTree, theta: PyTree) -> PyTree:
        x, a, _ = state
        dx, pullback = jax.vjp(lambda x, theta: field(t, x, theta_at(theta, t)), x, theta[0])
        return dx, *jax.tree.map(jnp.negative, pullback(a))

    start = (solution.x, jax.grad(loss)(solution.x), jax.tree.map(jnp.zeros_like, theta))
    # In a tuple, so that a weight function is not read before it is differentiated.
    run = lambda start, theta: solve(augmented, start, (theta,), solver=solver, t0=t1, t1=t0)
    return jax.jit(run)(start, theta)


# ---------------------------------------------------------------------------------------------------------
# The papers' formulas
# ---------------------------------------------------------------------------------------------------------


def n_bytes(*trees: PyTree) -> int:
    """Bytes of the arrays of some trees."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def activation_bytes(field: Field, x0: PyTree, theta: PyTree, t0: float) -> int:
    """A_f: bytes that one field evaluation keeps for its vjp beside what it was given."""
    theta = theta_at(theta, t0)
    _, pullback = jax.vjp(lambda x, theta: field(t0, x, theta), x0, theta)
    given = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((x0, theta))}
    kept = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "nbytes")}
    return sum(size for where, size in kept.items() if where not in given)


def formulas(method: GradientMethod, sizes: Row) -> Row:
    """What Table 1 of ACA and the lecture predict of a method: evaluations, vjps and bytes.

    Neither treats `Checkpointed`; what is said of it follows from the same reckoning.
    """
    stages, state = sizes["stages"], sizes["state_bytes"]
    steps, tries = sizes["n_accepted"], sizes["n_accepted"] + sizes["n_rejected"]
    one_step = stages * (state + sizes["activation_bytes"])
    vjps, memory = stages * tries, tries * one_step
    if isinstance(method, ACA):
        kept = method.slots(state, steps)
        vjps, memory = stages * steps, one_step + kept * state
    elif isinstance(method, Backsolve):
        vjps, memory = stages * (sizes["n_accepted_back"] + sizes["n_rejected_back"]), one_step
    elif isinstance(method, Checkpointed) and method.unit == "step":
        memory = one_step + tries * state
    return {"formula_forward": stages * tries, "formula_vjps": vjps, "formula_bytes": memory}


# ---------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------


def report(
    field: Field,
    x0: PyTree,
    theta: PyTree,
    loss: Loss,
    solver: Solver,
    methods: Mapping[str, GradientMethod] = METHODS,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    truth_tolerance: float | None = 1e-9,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure gradient methods on one solve.

    Args:
      field: pure `field(t, x, theta) -> dx`.
      x0: initial state, a pytree of floating-point arrays.
      theta: weights, a pytree of floating-point arrays, which may be a weight function.
      loss: of the state at t1, a scalar.
      solver: `Adaptive` or `FixedStep`; how long its buffers are (`max_steps`) is set to the trials it takes and
        a tenth more, so that no method pays for steps that nobody takes.
      methods: by name.
      t0, t1: start and end.
      truth_tolerance: rtol and atol of the solve in float64 whose gradient counts as the truth; `None` for none.
      repeats: timings of each program.

    Returns:
      `{"sizes": ..., "rows": [...]}`, plain numbers: sizes of the solve, and a row a method with counts, bytes,
      seconds, errors and formulas.

    Raises:
      ValueError: if a leaf of theta is not floating point or the solve does not reach t1.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"theta{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}: expected a float")
    x0, theta = jax.tree.map(jnp.asarray, (x0, theta))
    sizes = sizes_of(field, x0, theta, loss, solver, t0, t1)

    def solution_of(method: GradientMethod, field: Field, x0: PyTree, theta: PyTree) -> Solution:
        used = solver
        # The adjoint keeps no buffer, and may need more trials on the way back.
        if isinstance(solver, Adaptive) and not isinstance(method, Backsolve):
            used = dataclasses.replace(solver, max_steps=sizes["max_steps"])
        return solve(field, x0, theta, solver=used, gradient=method, t0=t0, t1=t1)

    def program_of(method: GradientMethod) -> Callable[..., Any]:
        def value(x0: PyTree, theta: PyTree) -> tuple[jax.Array, jax.Array]:
            solution = solution_of(method, field, x0, theta)
            return loss(solution.x), solution.result

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))

    programs = {name: program_of(method) for name, method in methods.items()}
    measured = compare(programs, x0, theta, repeats=repeats, tell=True)
    gradients = {name: flat(of.output[1]) for name, of in measured.items()}
    truth = None
    if truth_tolerance is not None:
        with working("the gradient of the ODE itself, in float64"):
            _, truth = true_solution(field, x0, theta, loss, truth_tolerance, t0, t1)
    direct = next((gradients[name] for name, method in methods.items() if isinstance(method, Direct)), None)
    rows = []
    for name, method in told(methods.items(), lambda pair: f"counting evaluations of {pair[0]}"):
        end = lambda field, x0, theta, method=method: solution_of(method, field, x0, theta).x
        (_, result), _ = measured[name].output
        rows.append(
            {
                "method": name,
                "result": Result(int(result)).name,
                **count_passes(end, field, x0, theta, loss),
                "temporary_bytes": measured[name].temporary_bytes,
                "seconds": measured[name].minimum,
                "seconds_median": measured[name].median,
                "compile_seconds": measured[name].compile_seconds,
                "error": None if truth is None else distance(gradients[name], truth),
                "difference_from_direct": None if direct is None else distance(gradients[name], direct),
                **formulas(method, sizes),
            }
        )
    return {"sizes": sizes, "rows": rows}


def sizes_of(field: Field, x0: PyTree, theta: PyTree, loss: Loss, solver: Solver, t0: float, t1: float) -> Row:
    """The numbers that the formulas are made of."""
    run = lambda x0, theta: solve(field, x0, theta, solver=solver, t0=t0, t1=t1)
    solution = jax.jit(run)(x0, theta)
    if int(solution.result):
        raise ValueError(
            f"the solve ended with {Result(int(solution.result)).name} after {int(solution.n_accepted)} steps: "
            "loosen rtol and atol, raise max_steps, or check the field"
        )
    back = way_back(field, solution, theta, loss, solver, t0, t1)
    tries = int(solution.n_accepted + solution.n_rejected)
    return {
        "scheme": solver.scheme.name,
        "stages": solver.scheme.n_evaluations,
        "n_accepted": int(solution.n_accepted),
        "n_rejected": int(solution.n_rejected),
        "n_accepted_back": int(back.n_accepted),
        "n_rejected_back": int(back.n_rejected),
        # Programs round differently and may disagree on a borderline trial.
        "max_steps": tries + max(2, tries // 10),
        "state_bytes": n_bytes(x0),
        "theta_bytes": n_bytes(theta),
        "activation_bytes": activation_bytes(field, x0, theta, t0),
    }


def true_solution(
    field: Field, x0: PyTree, theta: PyTree, loss: Loss, tolerance: float, t0: float = 0.0, t1: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """End state, and gradient with respect to x0 and theta, of a solve in float64 at a tight tolerance; flat.

    Raises:
      ValueError: if the solve does not reach t1 at that tolerance.
    """
    with jax.enable_x64(True):
        x0, theta = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (x0, theta))
        solver = Adaptive("dopri5", tolerance, tolerance, max_steps=100_000)

        def value(x0: PyTree, theta: PyTree) -> tuple[jax.Array, Solution]:
            solution = solve(field, x0, theta, solver=solver, gradient=ACA(64), t0=t0, t1=t1)
            return loss(solution.x), solution

        (_, solution), gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(x0, theta)
        if result := int(solution.result):
            raise ValueError(f"no truth at tolerance {tolerance}: {Result(result).name}; loosen truth_tolerance")
        return flat(solution.x), flat(gradient)


def flat(gradient: PyTree) -> np.ndarray:
    """All entries of a gradient, float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)])


def distance(gradient: np.ndarray, truth: np.ndarray) -> float:
    """|gradient - truth| / |truth|."""
    return float(np.linalg.norm(gradient - truth) / np.linalg.norm(truth))
