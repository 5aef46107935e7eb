"""Quantities along a solution: integrals over time, weighted by the scheme that computes the solution itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.arguments import Key, checked
from ode_nets.stepping import Quantified
from ode_nets.trees import squares

PyTree = Any
Quantity = Callable[[Callable[[PyTree], PyTree], Any, PyTree, PyTree], Any]
"""`quantity(slope, t, x, dx) -> scalar`: an integrand; `slope(x) -> dx` is the field at that time."""


@dataclasses.dataclass(frozen=True)
class WithQuantities:
    """A field of states with quantities beside them; made by `with_quantities`."""

    field: Callable[..., Any]
    quantities: Mapping[str, Quantity]
    has_aux: bool = False

    def start(self, x0: PyTree) -> Quantified:
        """The initial state, with every quantity at zero."""
        # With a dtype, so that a Python number counts like any other.
        x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), x0)
        dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(x0)))
        return Quantified(x0, {name: jnp.zeros((), dtype) for name in self.quantities})

    def __call__(self, t: Any, x: Quantified, theta: PyTree) -> Any:
        """The slopes of the state and of every quantity, and with `has_aux` what the field reports."""
        evaluated = self.field(t, x.x, theta)
        dx, aux = evaluated if self.has_aux else (evaluated, ())

        def slope(x: PyTree) -> PyTree:
            out = self.field(t, x, theta)
            return out[0] if self.has_aux else out

        q = {
            name: jnp.asarray(quantity(slope, t, x.x, dx), x.q[name].dtype)
            for name, quantity in self.quantities.items()
        }
        return (Quantified(dx, q), aux) if self.has_aux else Quantified(dx, q)


@checked
def with_quantities(field: Callable[..., Any], *, has_aux: bool = False, **quantities: Quantity) -> WithQuantities:
    """A field that integrates quantities along its solution.

        d/dt (x, q) = (f(t, x, theta), integrand(t, x))

    They are part of the state, so every scheme weighs them as it weighs the state, to its order, and every gradient
    method differentiates them. They have no say in the sizes of steps, which are those of the bare field (under
    `DiffraxSolver` diffrax's controller judges them too).

    Args:
      field: `field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`.
      has_aux: whether the field reports something beside `dx`.
      **quantities: integrands by name: `kinetic_energy`, `jacobian_frobenius(key)`, or any function
        `quantity(slope, t, x, dx) -> scalar`; and `local_error=of_steps`, `stiffness=of_steps`, which a `Measured`
        scheme adds up.

    Returns:
      A field of `Quantified` states: `solve(system, system.start(x0), ...)`, then `solution.x.x` and
      `solution.x.q[name]`.

    Raises:
      ValueError: for no quantity.

    Example:
        >>> from ode_nets import FixedStep, solve
        >>> system = with_quantities(lambda t, x, k: -k * x, kinetic=kinetic_energy)
        >>> solution = solve(system, system.start(1.0), 1.0, solver=FixedStep("rk4", 20))
        >>> round(float(solution.x.q["kinetic"]), 4)  # (1 - exp(-2)) / 2
        0.4323
    """
    if not quantities:
        raise ValueError("quantities are missing: expected at least one by name, such as kinetic=kinetic_energy")
    return WithQuantities(field, quantities, has_aux)


def kinetic_energy(slope: Any, t: Any, x: PyTree, dx: PyTree) -> jax.Array:
    """How fast the state moves, summed over all of its entries.

    K = int |f(t, x)|^2 dt                               (RNODE, Finlay et al. 2020)

    Example:
        >>> float(kinetic_energy(None, 0.0, None, dx=jnp.array([3.0, 4.0])))
        25.0
    """
    return squares(dx)


@checked
def jacobian_frobenius(key: Key) -> Quantity:
    """How much the field stretches: the squared Frobenius norm of its Jacobian, by Hutchinson's estimate.

        B = int |e^T df/dx|^2 dt,  E[B] = int |df/dx|_F^2 dt      (RNODE, Finlay et al. 2020)

    Args:
      key: draws e, of random signs like the state; one for the whole of a solve, as an adaptive solver needs it.

    One vector-Jacobian product more at every evaluation of the field.

    Example:
        >>> from ode_nets import FixedStep, solve
        >>> system = with_quantities(lambda t, x, k: -k * x, jacobian=jacobian_frobenius(jax.random.key(0)))
        >>> solution = solve(system, system.start(jnp.ones(3)), 2.0, solver=FixedStep("euler", 4))
        >>> float(solution.x.q["jacobian"])  # 3 * 2^2
        12.0
    """

    def quantity(slope: Any, t: Any, x: PyTree, dx: PyTree) -> jax.Array:
        leaves, structure = jax.tree.flatten(x)
        keys = jax.random.split(key, len(leaves))
        signs = [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        return squares(jax.vjp(slope, x)[1](jax.tree.unflatten(structure, signs)))

    return quantity


def of_steps(slope: Any, t: Any, x: PyTree, dx: PyTree) -> Any:
    """A quantity that is none of the field: the scheme `Measured` adds it up; under any other it is NaN.

    Example:
        >>> system = with_quantities(lambda t, x, k: -k * x, local_error=of_steps)
        >>> solver = FixedStep(Measured("heun_euler"), 4)
        >>> solve(system, system.start(1.0), 1.0, solver=solver).x.q["local_error"] > 0
        Array(True, dtype=bool)
    """
    return jnp.nan
