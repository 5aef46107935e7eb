"""What a scheme is: how one step is computed, and what it offers beside the state at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

PyTree = Any
Stage = tuple[PyTree, PyTree]
"""What one field evaluation gives: `(dx, aux)`."""
Node = tuple[Any, Any]
"""A place inside a step, `numerator / denominator` in [0, 1]: integers, where it is exact, or a float over 1; both
may be traced."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The field inside one step: `evaluate(node, x) -> (dx, aux)`, with the time and the weights at a node.

    Attributes:
      slope: the same function.
      time: `time(node) -> t`.
    """

    slope: Callable[[Node, PyTree], Stage]
    time: Callable[[Node], Any]

    def __call__(self, node: Node, x: PyTree) -> Stage:
        """The slope, and what the field reports."""
        return self.slope(node, x)

    def through(self, wrap: Callable[[Callable[[PyTree], Stage]], Callable[[PyTree], Stage]]) -> Evaluate:
        """The same field, with every evaluation wrapped as a function of the state."""
        return dataclasses.replace(self, slope=lambda node, x: wrap(lambda x: self.slope(node, x))(x))


START: Node = (0, 1)
END: Node = (1, 1)


class Step(NamedTuple):
    """The result of `Scheme.step`: where the step leads, and what is known of its error, its inside and its cost."""

    x: PyTree
    """What the scheme carries at its end."""
    error: PyTree
    """Estimate of the error of the state; `None` unless asked for."""
    aux: PyTree
    """What the field reported, summed over the evaluations that `x` depends on."""
    inside: PyTree
    """What the interpolant is made of; `()` unless asked for."""
    good: Any
    """Whether every slope was finite that `x` and `error` cannot tell of; `None` where they tell of all."""
    carry: PyTree
    """What the next step may start with, if this one is accepted; `None` unless a carry was given."""
    again: PyTree
    """What another trial of this step may start with; likewise."""
    nfe: Any
    """Field evaluations, int32."""


@runtime_checkable
class Scheme(Protocol):
    """How one step is computed: a frozen value. A new scheme is a class with these members.

    What it does not offer it says: `error_order` is `None` without an error estimate, `interpolates` is false
    without an interpolant, `inverts` where steps cannot be undone. Solvers, outputs and gradient methods ask for what
    is offered, never for a kind of scheme. Where the state is all that goes from step to step, `OneState` has the
    members that say so. A scheme whose steps are no steps of other fields, such as the continuous adjoint's, has an
    attribute `of_field_alone` that is true.

    Example:
        >>> scheme = get_scheme("dopri5")
        >>> isinstance(scheme, Scheme), scheme.order, scheme.error_order, scheme.interpolates, scheme.inverts
        (True, 5, 4, True, False)
    """

    @property
    def name(self) -> str:
        """What it is called in tables and messages."""

    @property
    def order(self) -> int:
        """Order of the state that is carried on."""

    @property
    def error_order(self) -> int | None:
        """Order q of the solution that the error estimate compares with, or `None`."""

    @property
    def interpolates(self) -> bool:
        """Whether states inside a step can be asked for."""

    @property
    def inverts(self) -> bool:
        """Whether a step can be undone."""

    @property
    def n_evaluations(self) -> int | None:
        """Field evaluations of a step by itself, without its error estimate; `None` where that varies."""

    def lift(self, x: PyTree) -> PyTree:
        """What the scheme carries from step to step, at the start: loops and gradient methods carry and store it."""

    def lower(self, x: PyTree) -> PyTree:
        """The state, from what the scheme carries."""

    def start(self, evaluate: Evaluate, x: PyTree, first: Stage | None, smooth: bool) -> tuple[PyTree, int]:
        """What the first step may start with, and the evaluations that it took.

        Args:
          first: `(dx, aux)` at the start where it is known already.
          smooth: whether a slope at the end of a step is the slope at the start of the next.
        """

    def step(
        self,
        evaluate: Evaluate,
        x: PyTree,
        h: Any,
        carry: PyTree = None,
        *,
        error: bool = False,
        inside: bool = False,
        smooth: bool = True,
    ) -> Step:
        """One step of signed size h from x.

        Args:
          evaluate: the field inside this step.
          x: what the scheme carries; the state itself, for most.
          carry: from `start` or from the step before; with `None` the step stands by itself, and gives the same
            state to rounding. That is how backward passes take it again.
          error, inside: what is asked for beside the state.
          smooth: as in `start`.
        """

    def advance(self, evaluate: Evaluate, x: PyTree, h: Any, *, error: Any = False) -> tuple[PyTree, PyTree]:
        """The state after one step by itself and its error, in a program as small as can be: it runs rarely.

        The error is infinite where `step` would find the step not `good`.

        Args:
          error: whether the error is asked for; a boolean scalar that is traced leaves it undefined where it is false.
        """

    def inverse(self, evaluate: Evaluate, x: PyTree, h: Any) -> PyTree:
        """What the scheme carried before the step of size h that ended in x, to rounding."""

    def interpolate(self, inside: PyTree, x: PyTree, h: Any, s: Any) -> PyTree:
        """The state at a fraction s of a step, from what it started with, and what it gave as `inside`."""


def judged(step: Step) -> tuple[PyTree, PyTree]:
    """What `Scheme.advance` gives of a step: its state and its error, infinite where it is not `good`."""
    good, error = step.good, step.error
    return step.x, error if good is None else jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.inf), error)


class OneState:
    """What most schemes have in common: they carry the state, and no step of theirs can be undone.

    A scheme of one's own inherits it, or says otherwise.
    """

    inverts = False
    """Whether a step can be undone."""

    def lift(self, x: PyTree) -> PyTree:
        """The state."""
        return x

    def lower(self, x: PyTree) -> PyTree:
        """The state."""
        return x

    def inverse(self, evaluate: Evaluate, x: PyTree, h: Any) -> PyTree:
        """Not offered.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"{self!r}: a step of it cannot be undone; use a scheme that `inverts`")
