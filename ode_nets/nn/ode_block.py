"""The OdeBlock: a unit integrated over depth, as a thin Flax shell around `solve`."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ode_nets.arguments import Finite, Fraction01, Natural, checked
from ode_nets.fields import Unit, jacobian_frobenius, kinetic_energy, of_steps, with_quantities
from ode_nets.gradients import Checkpointed, GradientMethod, solve
from ode_nets.integrate import Solution
from ode_nets.nn.evolving import init_evolved, join_kernels, split_kernels
from ode_nets.nn.layers import alone, fold
from ode_nets.nn.linen import as_unit
from ode_nets.nn.roles import COEFFICIENTS, EVOLVED
from ode_nets.stepping import Measured
from ode_nets.stepping.measured import LOCAL_ERROR, STIFFNESS
from ode_nets.weights import Basis, BasisExpansion, Evolution, Evolved, Joint, PiecewiseConstant

PyTree = Any
OF_STEPS = (LOCAL_ERROR, STIFFNESS)
QUANTITIES = ("kinetic_energy", "jacobian_frobenius", *OF_STEPS)
"""What an `OdeBlock` can integrate along its solution in training."""


def init_coefficients(unit: Unit, basis: Basis, key: jax.Array) -> PyTree:
    """Initial coefficients of a unit's weight function, leaves `[n_basis, ...]`.

    Bases whose coefficients are values at nodes draw each node on its own, as a residual network draws each
    of its units; the others start from a function constant in depth.
    """
    keys = jax.random.split(key, basis.n_basis)
    drawn = jax.vmap(unit.init)(keys)
    if basis.nodal:
        return drawn
    return jax.tree.map(lambda leaf: leaf.at[1:].set(0.0), drawn)


@checked
class OdeBlock(nn.Module):
    """x(t1) of dx/dt = eps * R(x, theta(t)), x(t0) = x         (ContinuousNet eq. 20-22).

    Attributes:
      unit: the right-hand side R: a `Unit`, e.g. a `ResidualUnit`, or a `flax.linen` module (see `LinenUnit`).
      basis: of theta(t) on [t0, t1]; its `n_basis` is M. Batch statistics are kept by M equal intervals in any basis
        (ContinuousNet A.3).
      solver: `FixedStep(scheme, n_steps)` or any other; `block.clone(solver=...)` on the same variables is
        another manifestation of the same model.
      gradient: how the block is differentiated.
      epsilon: the paper's eps.
      momentum: of the running batch statistics.
      evolution: how the unit's kernels evolve in depth (ANODEV2), or `None` for kernels in `basis` like all
        other parameters.
      t0, t1: start and end of depth.
      ts: depths at which the state is asked for, in order; `None` for t1 alone.
      augment: how many channels of zeros are appended to the last axis of x (ANODE, Dupont et al. 2019), in which
        trajectories can pass each other; the unit keeps all channels.
      keep_augmented: whether they are part of the output.
      quantities: names out of `kinetic_energy`, `jacobian_frobenius`, `local_error` and `stiffness`, integrated in
        training up to t1, or the last of `ts`: the collection `quantities`, where mutable, receives each, as a mean
        over the entries of the state. The last two are of the steps of a Runge-Kutta scheme of this library.
        The Jacobian draws its signs from the random stream `quantities`.

    Variables: `params/coefficients` and `batch_stats/coefficients`, leaves `[M, ...]`; with an evolution the
    kernels are in `params/evolved` instead, as `w0` and `p`, and the former are named by path.
    In training each interval's running statistics take in, once a call, the mean of what the stages of
    accepted steps inside that interval saw, under every gradient method alike; the collection `solution`,
    where mutable, receives `nfe`, `n_accepted`, `n_rejected` and `result`.

    Raises:
      ValueError: for a negative `augment`; when called, for a unit that lacks what is needed and for t0 = t1; in
        training for `quantities` that are unknown, or that the solver cannot give.

    Example:
        >>> from ode_nets import MLP, FixedStep
        >>> block = OdeBlock(MLP(3), PiecewiseConstant(1), FixedStep("rk4", 4), augment=1)
        >>> variables = block.init(jax.random.key(0), jnp.ones((5, 2)))
        >>> block.apply(variables, jnp.ones((5, 2))).shape
        (5, 2)
    """

    unit: Any
    basis: Basis
    solver: Any
    gradient: GradientMethod = Checkpointed()
    epsilon: Finite = 1.0
    momentum: Fraction01 = 0.9
    evolution: Evolution | None = None
    t0: Finite = 0.0
    t1: Finite = 1.0
    ts: tuple[Finite, ...] | None = None
    augment: Natural = 0
    keep_augmented: bool = False
    quantities: tuple[str, ...] = ()

    @property
    def _domain(self) -> tuple[float, float]:
        """Of the weights."""
        return min(self.t0, self.t1), max(self.t0, self.t1)

    def _theta(self, unit: Unit) -> dict[str, Any]:
        """The weight functions of the unit's parameters."""

        def init(key: jax.Array) -> PyTree:
            drawn = init_coefficients(unit, self.basis, key)
            return drawn if self.evolution is None else split_kernels(drawn)[1]

        coefficients = self.param(COEFFICIENTS, init)
        parts: dict[str, Any] = {"params": BasisExpansion(self.basis, coefficients, self._domain)}
        if (evolution := self.evolution) is not None:
            arrays = self.param(EVOLVED, lambda key: init_evolved(unit, evolution, key))
            parts[EVOLVED] = Evolved(arrays["w0"], arrays["p"], evolution)
        return parts

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The state at t1, of the shape and dtype of `x` but for kept channels; with `ts` those states, stacked."""
        channels = x.shape[-1]
        if self.augment:
            x = jnp.concatenate([x, jnp.zeros((*x.shape[:-1], self.augment), x.dtype)], axis=-1)
        unit, solver = alone(self, as_unit(self.unit, x)), alone(self, self.solver)
        parts = self._theta(unit)
        intervals = PiecewiseConstant(self.basis.n_basis)
        running = self.variable(
            "batch_stats",
            COEFFICIENTS,
            lambda: jax.tree.map(lambda s: jnp.stack([s] * intervals.n_basis), unit.init_stats()),
        )
        # A one-hot weight function tells the field which interval it is in, exactly as it tells it theta.
        extra = {"interval": jnp.eye(intervals.n_basis)} if train else {"stats": running.value}
        weights = Joint(
            parts
            | {
                name: BasisExpansion(intervals, tree, self._domain)
                for name, tree in extra.items()
                if jax.tree.leaves(tree)
            }
        )

        def field(t: Any, x: jax.Array, theta: PyTree) -> tuple[jax.Array, PyTree]:
            params = theta["params"]
            if EVOLVED in theta:
                params = join_kernels(unit, params | theta[EVOLVED])
            dx, used = unit.apply(params, x, t, None if train else theta.get("stats", {}))
            if not train:
                return self.epsilon * dx, ()
            seen = theta["interval"]
            by_interval = jax.tree.map(lambda s: seen.reshape(-1, *[1] * s.ndim) * jax.lax.stop_gradient(s), used)
            return self.epsilon * dx, (by_interval, seen)

        times: dict[str, Any] = {"t0": self.t0, "t1": self.t1, "ts": self.ts}
        options: dict[str, Any] = times | {"gradient": self.gradient, "has_aux": True}
        if self.quantities and train and not self.is_initializing():
            solution = self._measured(field, x, weights, options)
        else:
            solution = solve(field, x, weights, solver=solver, **options)
        if train and not self.is_initializing():
            totals, count = solution.aux
            means = jax.tree.map(lambda s: s / jnp.maximum(count, 1).reshape(-1, *[1] * (s.ndim - 1)), totals)
            running.value = fold(running.value, means, self.momentum, seen=count > 0)
        for name in ("nfe", "n_accepted", "n_rejected", "result"):
            self.sow("solution", name, getattr(solution, name), init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return solution.x[..., :channels] if self.augment and not self.keep_augmented else solution.x

    def _measured(self, field: Any, x: jax.Array, weights: Any, options: dict[str, Any]) -> Solution:
        """The solve with quantities along it, which are handed out."""
        if unknown := [name for name in self.quantities if name not in QUANTITIES]:
            raise ValueError(f"quantities={self.quantities}: {unknown} expected out of {', '.join(QUANTITIES)}")
        integrands = dict.fromkeys(OF_STEPS, of_steps) | {"kinetic_energy": kinetic_energy}
        if "jacobian_frobenius" in self.quantities:
            integrands["jacobian_frobenius"] = jacobian_frobenius(self.make_rng("quantities"))
        chosen = {name: integrands[name] for name in self.quantities}
        system, solver = with_quantities(field, has_aux=True, **chosen), self.solver
        if any(name in OF_STEPS for name in chosen):
            if not hasattr(solver, "scheme"):
                raise ValueError(
                    f"quantities={self.quantities} with solver={solver!r}: {' and '.join(OF_STEPS)} are of steps of a "
                    "Runge-Kutta scheme, under FixedStep or Adaptive; use one of these, or the other quantities"
                )
            solver = dataclasses.replace(solver, scheme=Measured(solver.scheme))
        solution = solve(system, system.start(x), weights, solver=solver, **options)
        q = jax.tree.map(lambda leaf: leaf[-1], solution.x.q) if self.ts else solution.x.q
        for name, value in q.items():
            mean = value if name in OF_STEPS else value / x.size
            self.sow("quantities", name, mean, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return dataclasses.replace(solution, x=solution.x.x)
