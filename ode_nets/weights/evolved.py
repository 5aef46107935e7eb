"""Weights that evolve by an ODE of their own (ANODEV2)."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Count, Domain, Numbers, checked
from ode_nets.gradients import Checkpointed, GradientMethod, solve
from ode_nets.integrate import FixedStep
from ode_nets.tableaus import Number
from ode_nets.weights.bases import PiecewiseConstant, PiecewiseLinear
from ode_nets.weights.basis import Basis
from ode_nets.weights.expansion import BasisExpansion, transform
from ode_nets.weights.kernel import Dirac, Kernel, kernel_matrix
from ode_nets.weights.weight_fields import WeightField

PyTree = Any


@dataclasses.dataclass(frozen=True)
@checked
class FlowStep:
    """`n_steps` equal steps of q's own map, w <- q.flow(w, p, h): exact, or as eq. 13 of ANODEV2.

    Raises:
      ValueError: for fewer than one step.

    Example:
        >>> configuration_1(Still(), 5).solver
        FlowStep(n_steps=5)
    """

    n_steps: Count


@dataclasses.dataclass(frozen=True)
@checked
class Evolution:
    """How weights evolve and when they are read: everything about `Evolved` but its arrays.

        dw/dt = q(w; p),  theta(t) = int_0^t K(t - tau) w(tau) dtau          (ANODEV2 eq. 5c, 5d)

    theta is computed at `times` and read between them in `basis`, so the grid of the weights and the grid of
    the state are independent. `configuration_1` and `configuration_2` are the two pairings of the paper.

    Args:
      q: `WeightField`, hashable: `RDA()`, `Still()`, `Flattened(MLP(...))`, or any function `q(w, p)`.
      solver: of the weight ODE over the domain: `FlowStep`, or any solver of `solve` that gives states at
        given times: `FixedStep`, `Adaptive`, `DiffraxSolver`.
      basis: `PiecewiseConstant(M)` or `PiecewiseLinear(M)`.
      times: when the M coefficients of theta are taken, as fractions of the domain, exact; default
        for intervals k / M, where each begins, and for knots k / (M - 1), where they are.
      kernel: K; see `kernel_matrix`.
      grid: steps of the grid on which weights of an adaptive solver are kept; default as many as `times`
        need, which is few for the quadrature of a kernel. A solver with steps of its own has them as grid.
      gradient: how the weight ODE is differentiated; `FlowStep` keeps its states, which theta needs anyway.
      domain: (t0, t1).

    Raises:
      ValueError: for another basis, for times that are not M fractions in [0, 1] or no points of the weight
        grid, for a kernel that does not match that grid, for a `grid` other than the solver's own, for a
        `FlowStep` of a q without `flow`, for a number of steps that is an array, and for a domain without t0 < t1.

    Example:
        >>> evolution = Evolution(lambda w, p: -p * w, FixedStep("rk4", 4), PiecewiseConstant(2))
        >>> [round(float(w), 3) for w in evolution.path(1.0, 1.0)]  # exp(-k / 4)
        [1.0, 0.779, 0.607, 0.472, 0.368]
    """

    q: WeightField
    solver: Any
    basis: Basis
    times: tuple[Number, ...] | None = None
    kernel: Kernel = dataclasses.field(default=Dirac())
    gradient: GradientMethod = dataclasses.field(default=Checkpointed())
    domain: Domain = (0.0, 1.0)
    grid: Count | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.basis, (PiecewiseConstant, PiecewiseLinear)):
            raise ValueError(
                f"basis={self.basis!r}: expected PiecewiseConstant or PiecewiseLinear, whose coefficients are "
                "values of theta; use expanded().projected(basis) or .interpolated(basis) for another"
            )
        if isinstance(self.solver, FlowStep) and not hasattr(self.q, "flow"):
            raise ValueError(f"solver={self.solver!r}: q={self.q!r} has no flow(w, p, h); use FixedStep or Adaptive")
        if getattr(self.solver, "recorded", False) and self.solver.length is None:
            raise ValueError(
                f"solver={self.solver!r}: expected FlowStep, FixedStep, Adaptive or DiffraxSolver, whose states "
                "lie on a weight grid that is known at trace time"
            )
        times = default_times(self.basis) if self.times is None else self.times
        exact = tuple(Fraction(t).limit_denominator(10**6) for t in times)
        if len(exact) != self.basis.n_basis or not all(0 <= t <= 1 for t in exact):
            raise ValueError(
                f"times={times}: expected {self.basis.n_basis} fractions in [0, 1], one a coefficient of {self.basis!r}"
            )
        object.__setattr__(self, "domain", tuple(map(float, self.domain)))
        object.__setattr__(self, "times", exact)
        own = getattr(self.solver, "n_steps", None)
        if self.grid is not None and own not in (None, self.grid):
            raise ValueError(f"grid={self.grid}: expected None or {own}, the steps of {self.solver!r}")
        self.matrix()

    @property
    def n_steps(self) -> int:
        """Steps of the weight grid."""
        own = getattr(self.solver, "n_steps", None)
        return own or self.grid or math.lcm(*(t.denominator for t in self._exact_times))

    @property
    def _exact_times(self) -> list[Fraction]:
        return [Fraction(t) for t in self.times or ()]

    def matrix(self) -> np.ndarray:
        """What turns weights on their grid into coefficients of theta, float64 `[M, n_steps + 1]`."""
        t0, t1 = self.domain
        return kernel_matrix(self.kernel, self._exact_times, self.n_steps, t1 - t0)

    def init(self, key: jax.Array, w0: PyTree) -> PyTree:
        """Initial p for weights like `w0`, by `q.init`; `{}` for a q that has none."""
        q: Any = self.q
        return q.init(key, w0) if hasattr(q, "init") else {}

    def path(self, w0: PyTree, p: PyTree) -> PyTree:
        """w at the points of its grid, leaves `[n_steps + 1, ...]`; NaN from where w is not finite, or not reached.

        Raises:
          ValueError: at trace time, for weights that are not floating point and a q whose output is not like
            them, by name.
        """
        self._check_q(w0, p)
        w0 = jax.tree.map(jnp.asarray, w0)
        t0, t1 = self.domain
        if not isinstance(self.solver, FlowStep):
            grid = np.linspace(t0, t1, self.n_steps + 1)
            field = lambda t, w, p: self.q(w, p)
            return _failed_as_nan(
                solve(field, w0, p, solver=self.solver, gradient=self.gradient, t0=t0, t1=t1, ts=grid).x
            )
        q: Any = self.q
        h = (t1 - t0) / self.n_steps

        def step(w: PyTree, _: None) -> tuple[PyTree, PyTree]:
            after = q.flow(w, p, h)
            return after, after

        after = jax.lax.scan(step, w0, None, length=self.n_steps)[1]
        return _failed_as_nan(jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), w0, after))

    def _check_q(self, w0: PyTree, p: PyTree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(w0):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(
                    f"w0{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}: weights that evolve "
                    "must be floating point"
                )
        if not jax.tree.leaves(w0):
            raise ValueError("w0 holds no array: expected weights to evolve")
        self._check_output("q", self.q, w0, p)
        if isinstance(self.solver, FlowStep):
            q: Any = self.q
            self._check_output("q.flow", lambda w, p: q.flow(w, p, 0.1), w0, p)

    def _check_output(self, name: str, function: Any, w0: PyTree, p: PyTree) -> None:
        """That a function of `(w, p)` returns something like w0."""
        got: Any = jax.eval_shape(function, w0, p)
        want: Any = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, w0))
        returned: Any = jax.tree.structure(got)
        expected: Any = jax.tree.structure(want)
        if returned != expected:
            raise ValueError(f"{name} of {self.q!r} returned the structure {returned}: expected that of w0, {expected}")
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise ValueError(
                    f"{name} of {self.q!r} returned{jax.tree_util.keystr(path)} of shape {a.shape} and dtype "
                    f"{a.dtype}: expected {b.shape} and {b.dtype}, those of w0"
                )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
@checked
class Evolved:
    """The weight function of ANODEV2: theta(t) follows from w0 and p by an ODE (eq. 5c, 5d).

    A pytree whose leaves are `w0` and `p`, so a gradient with respect to it has those two. `solve` computes
    the path of the weights once, by `expanded`, and reads it like any other `BasisExpansion`: under every
    gradient method the cotangents of theta flow back through the weight ODE once (discretize-then-optimize).
    Where the weight ODE fails, theta is NaN, and so the result code of the state is `Result.NON_FINITE`.

    Args:
      w0: weights at the start, a pytree of floating-point arrays.
      p: parameters of q, any pytree.
      evolution: the rest, static.

    Cost: one solve of the weight ODE a solve of the state, and memory for its `n_steps + 1` states.

    Example:
        >>> evolution = Evolution(lambda w, p: p * w, FixedStep("rk4", 8), PiecewiseConstant(2))
        >>> weights = Evolved(jnp.array(1.0), jnp.array(2.0), evolution)
        >>> [round(float(w), 3) for w in weights.expanded().coefficients]  # w(0) and w(1/2) = e
        [1.0, 2.718]
    """

    w0: PyTree
    p: PyTree
    evolution: Evolution = dataclasses.field(metadata={"static": True})

    def expanded(self) -> BasisExpansion:
        """theta(t) with computed coefficients.

        Raises:
          ValueError: see `Evolution.path`.
        """
        evolution = self.evolution
        coefficients = transform(evolution.path(self.w0, self.p), evolution.matrix())
        return BasisExpansion(evolution.basis, coefficients, evolution.domain)

    @property
    def domain(self) -> tuple[float, float]:
        """The interval on which the weights evolve."""
        return self.evolution.domain

    @property
    def continuous(self) -> bool:
        """Whether theta(t) is read without jumps."""
        return self.evolution.basis.continuous

    @checked
    def at(self, t: Numbers, side: Numbers = 1) -> PyTree:
        """theta(t); computes the whole path, which `expanded()` does once for all times."""
        return self.expanded().at(t, side)

    def n_sections(self, n_steps: int) -> int:
        """Sections of a grid that share no coefficient; see `WeightFunction.n_sections`."""
        return self.evolution.basis.n_sections(n_steps)

    def sections(self, n_sections: int) -> BasisExpansion:
        """theta(t) in sections; see `WeightFunction.sections`."""
        return self.expanded().sections(n_sections)

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """theta at one stage node; see `WeightFunction.at_node`."""
        return self.expanded().at_node(step, n_steps, numerator, denominator)


def _failed_as_nan(path: PyTree) -> PyTree:
    """NaN in all leaves from the first point that is not finite on: a field may saturate at an infinite theta."""
    finite = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in jax.tree.leaves(path)]
    good = jnp.cumprod(jnp.stack(finite).all(0)) > 0
    mark = lambda leaf: jnp.where(good.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan)
    return jax.tree.map(mark, path)


def default_times(basis: Basis) -> tuple[Fraction, ...]:
    """When coefficients of theta are taken: where an interval begins, or at the knot."""
    m = basis.n_basis
    pieces = m if isinstance(basis, PiecewiseConstant) or m == 1 else m - 1
    return tuple(Fraction(k, pieces) for k in range(m))


@checked
def configuration_1(q: WeightField, n_steps: Count = 5, solver: Any = None) -> Evolution:
    """Weights and state on one grid: step k of N_t reads w(k / N_t)         (ANODEV2 sec. 2.2, eq. 9).

    Args:
      q: the weight field.
      n_steps: N_t, also of the state's solver. With one step w(0) alone is read, and p has no effect.
      solver: of the weights; default `FlowStep(n_steps)`, or explicit Euler steps for a q without `flow`.

    Example:
        >>> evolution = configuration_1(RDA(), n_steps=4)
        >>> evolution.basis, evolution.n_steps
        (PiecewiseConstant(n_basis=4), 4)
    """
    return Evolution(q, solver or _default_solver(q, n_steps), PiecewiseConstant(n_steps))


@checked
def configuration_2(q: WeightField, n_steps: Count = 2, n_weight_steps: Count = 10, solver: Any = None) -> Evolution:
    """Few steps of the state, the first with w(0) and the last with w(1)    (ANODEV2 sec. 2.2, app. A.1).

        z_{1/2} = z_0 + f(z_0; w(0)) / 2,   z_1 = z_{1/2} + f(z_{1/2}; w(1)) / 2

    More than two steps read at as many equally spaced times, both ends included.

    Args:
      q: the weight field.
      n_steps: N_t of the state, also of its solver; with one step p has no effect, as in `configuration_1`.
      n_weight_steps: steps of the weights, a multiple of `n_steps - 1`.
      solver: of the weights; default as in `configuration_1`.

    Example:
        >>> evolution = configuration_2(RDA())
        >>> evolution.times, evolution.n_steps
        ((Fraction(0, 1), Fraction(1, 1)), 10)
    """
    solver = solver or _default_solver(q, n_weight_steps)
    own = getattr(solver, "n_steps", None)
    # Before the times are written down: there may be more of them than memory holds.
    if isinstance(own, int) and n_steps > 1 and own % (n_steps - 1):
        raise ValueError(
            f"n_steps={n_steps} does not fit n_weight_steps={own}: expected a number of weight steps that is a "
            "multiple of n_steps - 1, so that each step reads at a point of the weight grid"
        )
    return Evolution(q, solver, PiecewiseConstant(n_steps), default_times(PiecewiseLinear(n_steps)))


def _default_solver(q: WeightField, n_steps: int) -> Any:
    return FlowStep(n_steps) if hasattr(q, "flow") else FixedStep("euler", n_steps)
