"""The continuous adjoint: an augmented system integrated backward in time."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.arguments import NotNegative, Positive, checked
from ode_nets.gradients.reverse_only import refuse_forward_mode, refuse_reverse_mode
from ode_nets.gradients.rules import standard
from ode_nets.integrate import Problem, Solution, Solver, integrate, theta_at
from ode_nets.integrate.problem import pose
from ode_nets.lanes import vary
from ode_nets.trees import Unjudged, add, as_cotangents, like, split, zero_cotangent, zeros

PyTree = Any


@dataclasses.dataclass(frozen=True)
@checked
class Backsolve:
    """The adjoint method of Chen et al. (lecture, "augmented adjoint based ODE"): optimize-then-discretize.

        d/dt [x, a, g] = [f, -a df/dx, -a df/dtheta],  solved from t1 back to t0 from [x(t1), dL/dx(t1), 0]

    Memory does not depend on the number of steps, since x(t) is solved again backward. What comes back is not
    the trajectory that went out (ACA sec. 3.2), so the gradient is only as accurate as both solves; it
    approaches that of the other methods as the tolerance goes to zero. With `ts`, the backward solve starts
    again from the stored state at each asked time.

    Args:
      rtol, atol: tolerances of the backward solve; `None` for the solver's own. On steps that are known before they are
        taken they have no say.
      seminorm: whether steps of the backward solve are sized by the errors of x and a alone. g is an integral that
        nothing else depends on, and its errors do not grow (Kidger, Chen and Lyons 2021, "Hey, that's not an ODE"), but
        nothing sees them either: say no where theta acts on faster scales than x has. Measured, evaluations of the way
        back with it and without: a NODE18 field of 4 channels, dopri5 at 1e-3 and 1e-5 and heun_euler at 1e-2, 82 for
        118, 970 for 2,284 and 59 for 124; an MLP of 4 units 16 for 22, 22 for 28 and 13 for 25, and of three times the
        weights over four times the span 64 for 70, 106 for 142 and 117 for 133. Errors of gradients were 0.8 to 1.7
        times those without, but for one of 4 times, at 2e-3. No saving is promised: where g is the calmer part, its
        entries make the mean of the full norm smaller.

    What the field reports as aux is a sum over the stages of the solve that went out, which the backward one
    knows nothing of: a loss that depends on it has gradient NaN. Reverse mode only.

    Example:
        >>> Backsolve(rtol=1e-8)
        Backsolve(rtol=1e-08, atol=None, seminorm=True)
    """

    rtol: Positive | None = None
    atol: NotNegative | None = None
    seminorm: bool = True

    def refuses(self, solver: Solver, dense: bool) -> str | None:
        """Schemes whose steps mean nothing for another system than the field, and what has no costate."""
        if getattr(solver.scheme, "of_field_alone", False):
            return (
                f"gradient=Backsolve() with scheme {solver.scheme.name!r}: its steps are made for the field, and "
                "the adjoint is another system; go back over them with gradient=ACA(), Direct() or Checkpointed()"
            )
        if dense:
            return (
                "dense=True with gradient=Backsolve(): the continuous adjoint restarts at asked times alone; "
                "ask for ts, or use gradient=ACA(), Direct() or Checkpointed()"
            )
        return None

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        arrays, frame = split(solver)

        @jax.custom_vjp
        def run(problem: Problem, arrays: list[Any]) -> Solution:
            return integrate(problem, frame.fill(arrays))

        def forward(problem: Problem, arrays: list[Any]) -> tuple[Solution, Any]:
            solution = integrate(problem, frame.fill(arrays))
            return solution, (problem, arrays, solution.x)

        def backward(residuals: Any, cotangent: Solution) -> Any:
            problem, arrays, x = residuals
            ct = _without_aux(cotangent)
            found = self._backward(problem, frame.fill(arrays), x, ct)
            return refuse_reverse_mode(found, repr(self)), jax.tree.map(zero_cotangent, arrays)

        run.defvjp(standard(forward), standard(backward))
        return run(refuse_forward_mode(problem, repr(self)), arrays)

    def _backward(self, problem: Problem, solver: Solver, x: PyTree, ct: PyTree) -> Problem:
        """Cotangents of the problem: one backward solve from each asked time to the one before."""
        single = problem.ts is None
        asked = problem.span[None] if single else problem.ts
        states, cts = (jax.tree.map(lambda leaf: leaf[None], tree) if single else tree for tree in (x, ct))
        weights = (problem.weights, problem.consts)
        start = (jax.tree.map(jnp.zeros_like, problem.x0), zeros(weights))

        def segment(carry: tuple[PyTree, Any], inputs: Any) -> tuple[tuple[PyTree, Any], jax.Array]:
            adjoint, gradient = carry
            begin, end, x, ct = inputs
            kept = Unjudged(gradient) if self.seminorm else gradient
            augmented = _Augmented(x, jax.tree.map(jnp.add, adjoint, ct), kept)
            back = pose(
                _augmented_field(problem),
                augmented,
                _Sided(*weights),
                t0=problem.time(end),
                span=end - begin,
                sign=-problem.sign,
            )
            part = solver.among(problem, begin, end)
            own = {name: value for name in ("rtol", "atol") if (value := getattr(self, name)) is not None}
            if solver.estimates:
                every = {name: own.get(name, getattr(part, name)) for name in ("rtol", "atol")}
                tolerances = {name: _of_all(value, augmented) for name, value in every.items()}
                part = dataclasses.replace(part, **tolerances)
            after = integrate(back, part).x
            gradient = like(gradient, after.gradient)
            return (after.adjoint, gradient), _time_cotangent(problem, end, x, ct)

        begins = jnp.concatenate([jnp.zeros_like(asked[:1]), asked[:-1]])
        (adjoint, gradient), ct_asked = jax.lax.scan(segment, start, (begins, asked, states, cts), reverse=True)
        ct_span, ct_ts = (ct_asked[0], None) if single else (jnp.zeros_like(problem.span), ct_asked)
        # All asked times move with t0, and the start with it.
        ct_t0 = problem.sign * (jnp.sum(ct_asked) - _time_cotangent(problem, 0 * problem.span, problem.x0, adjoint))
        d_weights, d_consts = gradient
        return dataclasses.replace(
            problem,
            x0=adjoint,
            weights=as_cotangents(problem.weights, d_weights),
            t0=ct_t0,
            span=ct_span,
            sign=jnp.zeros_like(problem.sign),
            ts=ct_ts,
            consts=as_cotangents(problem.consts, d_consts),
        )


class _Augmented(NamedTuple):
    x: PyTree
    adjoint: PyTree
    gradient: Any
    """Of the weights and of what the field closed over."""


def _of_all(tolerance: Any, state: _Augmented) -> Any:
    """A tolerance of the state as one of the augmented state: its own for the costate, its least for the integrals."""
    if all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(tolerance)) and len(jax.tree.leaves(tolerance)) == 1:
        return tolerance
    same: Any = jax.tree.structure(state.x)
    each = tolerance if jax.tree.structure(tolerance) == same else jax.tree.map(lambda _: tolerance, state.x)
    least = jnp.min(jnp.stack([jnp.min(jnp.asarray(leaf)) for leaf in jax.tree.leaves(each)]))
    return _Augmented(each, each, jax.tree.map(lambda _: least, state.gradient))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sided:
    """Weights of the augmented system: the weights themselves, and the side to read them from."""

    weights: PyTree
    consts: Any

    @property
    def continuous(self) -> bool:
        return bool(getattr(self.weights, "continuous", True))

    def at(self, t: Any, side: Any = 1) -> PyTree:
        return self.weights, self.consts, vary(jnp.asarray(side, jnp.result_type(float)), t)


def _augmented_field(problem: Problem) -> Any:
    def field(t: Any, state: _Augmented, theta: PyTree) -> tuple[_Augmented, PyTree]:
        weights, consts, side = theta

        def slope(x: PyTree, weights: PyTree, consts: Any) -> PyTree:
            return problem.program(consts, t, x, theta_at(weights, t, side))[0]

        dx, pullback = jax.vjp(slope, state.x, weights, consts)
        d_x, *d_theta = pullback(state.adjoint)
        minus = lambda tree: jax.tree.map(jnp.negative, tree)
        d_theta = add(zeros((weights, consts)), tuple(d_theta))
        return _Augmented(dx, minus(d_x), like(state.gradient, minus(d_theta))), ()

    return field


def _without_aux(cotangent: Solution) -> PyTree:
    """Cotangents of the states, NaN where there are any of the reports."""
    inexact = [leaf for leaf in jax.tree.leaves(cotangent.aux) if leaf.dtype != jax.dtypes.float0]
    used = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in inexact])) if inexact else False
    return jax.tree.map(lambda leaf: jnp.where(used, jnp.nan, leaf).astype(leaf.dtype), cotangent.x)


def _time_cotangent(problem: Problem, tau: jax.Array, x: PyTree, ct: PyTree) -> jax.Array:
    """d/dtau of a state asked for at tau, against its cotangent: <ct, sign f(t, x)>.

    Weights that jump there are read from inside the solve.
    """
    inward = jnp.where(tau <= 0, problem.sign, -problem.sign)
    t = problem.time(tau)
    slope = problem.slope(t, x, theta_at(problem.weights, t, inward))[0]
    products = [jnp.sum(a * b) for a, b in zip(jax.tree.leaves(ct), jax.tree.leaves(slope), strict=True)]
    total = sum(products[1:], start=products[0])
    return problem.sign * total.astype(tau.dtype)
