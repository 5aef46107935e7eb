"""What each gradient method costs and how right it is: ACA Table 1 and the lecture's table, measured.

    python -m experiments.gradient_report
    python -m experiments.gradient_report --problem node18 --scheme heun_euler --rtol 1e-2 --atol 1e-2 --first-step 1
    python -m experiments.gradient_report --module my_package.my_model:make

Every method differentiates the same solve with respect to the initial state and to theta. Measured beside the
formula that the papers give for it:

- field evaluations and vector-Jacobian products (vjps) of both passes, counted as the compiled programs make
  them, by a field that calls back to the host
- temporary memory, from the analysis of the compiled program
- seconds of a value and gradient
- the gradient's error: relative to the ODE's own gradient (float64, tight tolerance), and to that of `Direct`

N_f is one field, N_t accepted steps, m tries a step, N_r accepted steps of the adjoint's way back, s stages:

    evaluations          naive 2 s N_t m,         adjoint s (N_t + N_r) m,   ACA s N_t (m + 1)     (ACA Table 1)
    memory               naive N_f s N_t m,       adjoint N_f s,             ACA N_f s + N_t |x|   (ACA Table 1)
                         with N_f = |x| + A_f, the state and the activations of one field          (lecture)

A vjp counts once together with the evaluation it is made at, as in the paper. The paper's naive method
differentiates through the search for step sizes too; `Direct` takes them as constants, and a rejected trial costs
it an evaluation and a vjp all the same. `Checkpointed` is ANODE's.

`--module` names a function of no arguments that returns `(field, x0, theta, loss)`: a pure field(t, x, theta), a
state, a pytree of floating-point arrays or a weight function, and loss(x(t1)) -> scalar. From Python it is
`report(field, x0, theta, loss, solver)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.harness import compare
from experiments.run import environment, write_json
from ode_nets import ACA, MLP, SCHEMES, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, ResidualUnit, solve
from ode_nets.gradients import GradientMethod
from ode_nets.integrate import Field, Result, Solution, theta_at
from ode_nets.problems import van_der_pol
from ode_nets.stepping import n_propagating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    problem: Literal["mlp", "node18", "van_der_pol"] = "mlp"
    """A perceptron of 64 units, the field of NODE18, or the van der Pol oscillator."""
    module: str | None = None
    """package.module:function that returns (field, x0, theta, loss), in place of a problem."""
    batch: int = 16
    """Samples of mlp and node18."""
    channels: int = 16
    """Of node18; its image is 16 x 16."""
    t1: float | None = None
    """End time; default 1, of the oscillator 10."""
    scheme: str = "dopri5"
    """Runge-Kutta scheme; an embedded one unless --n-steps is given."""
    rtol: float = 1e-5
    atol: float = 1e-5
    first_step: float | None = None
    """Size of the first trial; a large one forces a search (default: Hairer's estimate)."""
    n_steps: int | None = None
    """Fixed steps in place of adaptive ones."""
    truth_tolerance: float | None = 1e-9
    """rtol and atol of the float64 truth; None leaves it out."""
    repeats: int = 5
    """Timings of each program."""
    seed: int = 0
    out: Path = Path("results/gradient_report")
    """Folder of the results."""

    def __post_init__(self) -> None:
        embedded = [name for name, tableau in SCHEMES.items() if self.n_steps or tableau.b_error]
        for name, good, allowed in (
            ("module", self.module is None or self.module.count(":") == 1, "package.module:function"),
            ("scheme", self.scheme in embedded, f"one of {', '.join(embedded)}"),
            ("repeats", self.repeats >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("channels", self.channels >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")

    def solver(self) -> Solver:
        """The solver that was asked for."""
        if self.n_steps is not None:
            return FixedStep(self.scheme, self.n_steps)
        return Adaptive(self.scheme, self.rtol, self.atol, self.first_step)


def problem_of(options: Options) -> tuple[Field, PyTree, PyTree, Loss]:
    """Field, initial state, theta and loss."""
    if options.module is not None:
        name, function = options.module.split(":")
        sys.path.insert(0, os.getcwd())
        try:
            return getattr(importlib.import_module(name), function)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"module={options.module!r}: {error}") from error
    key_x, key_theta = jax.random.split(jax.random.key(options.seed))
    mean_square = lambda x: jnp.mean(x**2)
    if options.problem == "van_der_pol":
        return van_der_pol.field, jnp.array(van_der_pol.START), jnp.array(van_der_pol.MU), mean_square
    if options.problem == "mlp":
        mlp = MLP(size=16, hidden=(64,))
        return mlp, jax.random.normal(key_x, (options.batch, 16)), mlp.init(key_theta), mean_square
    unit = ResidualUnit(options.channels, order="conv-bn-relu", skip_init=False, bias=False)
    x0 = jax.nn.relu(jax.random.normal(key_x, (options.batch, 16, 16, options.channels)))
    return lambda t, x, theta: unit.apply(theta, x, t)[0], x0, unit.init(key_theta), mean_square


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


def count_passes(end: Callable[[Field, PyTree, PyTree], PyTree], field: Field, x0: PyTree, theta: PyTree, loss: Loss) -> Row:
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


def way_back(field: Field, solution: Solution, theta: PyTree, loss: Loss, solver: Solver, t0: float, t1: float) -> Solution:
    """The adjoint's solve, [x, a, g] from t1 to t0 (lecture, "augmented adjoint based ODE"), for its counts."""

    def augmented(t: Any, state: PyTree, theta: PyTree) -> PyTree:
        x, a, _ = state
        dx, pullback = jax.vjp(lambda x, theta: field(t, x, theta_at(theta, t)), x, theta[0])
        return dx, *jax.tree.map(jnp.negative, pullback(a))

    start = (solution.x, jax.grad(loss)(solution.x), jax.tree.map(jnp.zeros_like, theta))
    # In a tuple, so that a weight function is not read before it is differentiated.
    run = lambda start, theta: solve(augmented, start, (theta,), solver=solver, gradient=ACA(), t0=t1, t1=t0)
    return jax.jit(run)(start, theta)


# ---------------------------------------------------------------------------------------------------------
# The papers' formulas
# ---------------------------------------------------------------------------------------------------------


def n_bytes(*trees: PyTree) -> int:
    """Bytes of the arrays of some trees."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))


def activation_bytes(field: Field, x0: PyTree, theta: PyTree, t0: float) -> int:
    """A_f: bytes that one field evaluation keeps for its vjp beside what it was given."""
    theta = theta_at(theta, t0)
    _, pullback = jax.vjp(lambda x, theta: field(t0, x, theta), x0, theta)
    given = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((x0, theta))}
    kept = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "nbytes")}
    return sum(size for where, size in kept.items() if where not in given)


def formulas(method: GradientMethod, sizes: Row) -> Row:
    """What the papers predict: evaluations, vjps and bytes; `None` where they do not treat a method."""
    s, tries, steps = sizes["stages"], sizes["n_accepted"] + sizes["n_rejected"], sizes["n_accepted"]
    state, one_step = sizes["state_bytes"], sizes["stages"] * (sizes["state_bytes"] + sizes["activation_bytes"])
    if isinstance(method, Direct):
        return {"formula_forward": s * tries, "formula_vjps": s * tries, "formula_bytes": tries * one_step}
    if isinstance(method, Backsolve):
        back = sizes["n_accepted_back"] + sizes["n_rejected_back"]
        return {"formula_forward": s * tries, "formula_vjps": s * back, "formula_bytes": one_step}
    if isinstance(method, ACA):
        kept = steps if method.checkpoints is None else min(steps, method.checkpoints)
        return {"formula_forward": s * tries, "formula_vjps": s * steps, "formula_bytes": one_step + kept * state}
    return {"formula_forward": s * tries, "formula_vjps": s * tries, "formula_bytes": None}


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
    solver, sizes = sizes_of(field, x0, theta, loss, solver, t0, t1)

    def solution_of(method: GradientMethod, field: Field, x0: PyTree, theta: PyTree) -> Solution:
        return solve(field, x0, theta, solver=solver, gradient=method, t0=t0, t1=t1)

    def program_of(method: GradientMethod) -> Callable[..., Any]:
        def value(x0: PyTree, theta: PyTree) -> tuple[jax.Array, jax.Array]:
            solution = solution_of(method, field, x0, theta)
            return loss(solution.x), solution.result

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))

    programs = {name: program_of(method) for name, method in methods.items()}
    measured = compare(programs, x0, theta, repeats=repeats)
    gradients = {name: flat(program(x0, theta)[1]) for name, program in programs.items()}
    truth = None
    if truth_tolerance is not None:
        truth = true_gradient(field, x0, theta, loss, t0, t1, truth_tolerance)
    direct = next((gradients[name] for name, method in methods.items() if isinstance(method, Direct)), None)
    rows = []
    for name, method in methods.items():
        end = lambda field, x0, theta, method=method: solution_of(method, field, x0, theta).x
        (_, result), _ = programs[name](x0, theta)
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


def sizes_of(
    field: Field, x0: PyTree, theta: PyTree, loss: Loss, solver: Solver, t0: float, t1: float
) -> tuple[Solver, Row]:
    """The solver with buffers that fit, and the numbers that the formulas are made of."""
    run = lambda x0, theta: solve(field, x0, theta, solver=solver, gradient=ACA(), t0=t0, t1=t1)
    solution = jax.jit(run)(x0, theta)
    if int(solution.result):
        raise ValueError(
            f"the solve ended with {Result(int(solution.result)).name} after {int(solution.n_accepted)} steps: "
            "loosen rtol and atol, raise max_steps, or check the field"
        )
    back = way_back(field, solution, theta, loss, solver, t0, t1)
    tries = int(solution.n_accepted + solution.n_rejected)
    if isinstance(solver, Adaptive):
        # Programs round differently and may disagree on a borderline trial.
        solver = dataclasses.replace(solver, max_steps=tries + max(2, tries // 10))
    return solver, {
        "scheme": solver.scheme,
        "stages": n_propagating(solver.tableau),
        "n_accepted": int(solution.n_accepted),
        "n_rejected": int(solution.n_rejected),
        "n_accepted_back": int(back.n_accepted),
        "n_rejected_back": int(back.n_rejected),
        "max_steps": getattr(solver, "max_steps", None),
        "state_bytes": n_bytes(x0),
        "theta_bytes": n_bytes(theta),
        "activation_bytes": activation_bytes(field, x0, theta, t0),
    }


def true_gradient(
    field: Field, x0: PyTree, theta: PyTree, loss: Loss, t0: float, t1: float, tolerance: float
) -> np.ndarray:
    """The gradient of a solve in float64 at a tight tolerance, flat."""
    with jax.enable_x64(True):
        x0, theta = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (x0, theta))
        solver = Adaptive("dopri5", tolerance, tolerance, max_steps=100_000)

        def value(x0: PyTree, theta: PyTree) -> tuple[jax.Array, jax.Array]:
            solution = solve(field, x0, theta, solver=solver, gradient=ACA(64), t0=t0, t1=t1)
            return loss(solution.x), solution.result

        (_, result), gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(x0, theta)
        if int(result):
            raise ValueError(f"no truth at tolerance {tolerance}: {Result(int(result)).name}; loosen truth_tolerance")
        return flat(gradient)


def flat(gradient: PyTree) -> np.ndarray:
    """All entries of a gradient, float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)])


def distance(gradient: np.ndarray, truth: np.ndarray) -> float:
    """|gradient - truth| / |truth|."""
    return float(np.linalg.norm(gradient - truth) / np.linalg.norm(truth))
