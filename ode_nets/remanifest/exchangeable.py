"""What a network offers so that its parts can be exchanged: one protocol, and the one error of a network without it."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import flax.linen as nn

from ode_nets.arguments import checked
from ode_nets.gradients import GradientMethod
from ode_nets.gradients.methods import OwnLoop
from ode_nets.integrate import Solver
from ode_nets.weights import Basis

Part = Literal["basis", "solver", "gradient"]


@runtime_checkable
class Exchangeable(Protocol):
    """A network whose basis, solver and gradient method can be exchanged under the same variables.

        net.clone(solver=FixedStep("rk4_38", 6)).apply(variables, x)            (ContinuousNet sec. 5.3, eq. 27)

    It is a `flax.linen` module with these three attributes, and hands them to its `OdeBlock`s; `clone`, which every
    linen module has, makes the description with other ones. Networks that lack some of them can still be trained and
    evaluated. The functions that exchange a part ask for what they need, and say what is missing:

        swap_solvers, compile_swap, make_swap, validity.of_model      solver, gradient
        refine                                                        basis, solver (a `FixedStep`)
        project, interpolate                                          basis

    Attributes:
      basis: of theta(t) in every block.
      solver: of every block.
      gradient: the gradient method of every block; a swap, which differentiates nothing, takes `Direct()`.

    A network whose blocks keep batch statistics should have `momentum` as an attribute too, and hand it on: `restat`
    estimates those of intervals that training did not meet.

    Example:
        >>> block = OdeBlock(MLP(2), PiecewiseConstant(1), FixedStep("rk4", 1))
        >>> isinstance(block, remanifest.Exchangeable), isinstance(ResNet(), remanifest.Exchangeable)
        (True, False)
    """

    basis: Basis
    solver: Any
    gradient: GradientMethod

    def clone(self, **changes: Any) -> Any:
        """The same description with other attributes."""


KINDS: dict[Part, Any] = {"basis": Basis, "solver": Solver | OwnLoop, "gradient": GradientMethod}


@checked
def check_exchangeable(net: nn.Module, *parts: Part) -> None:
    """Refuse a network that lacks a part that is to be exchanged.

    Args:
      net: a description.
      *parts: which are asked for.

    Raises:
      ValueError: for a part that the network does not have, or has as something else; it names all of them and says
        what a network of one's own has to offer.

    Example:
        >>> remanifest.check_exchangeable(ContinuousNet(), "basis", "solver")
        >>> remanifest.check_exchangeable(NODE18(), "basis")
        Traceback (most recent call last):
        ValueError: net is a NODE18 with no basis: expected ...
    """
    found = {part: getattr(net, part, None) for part in parts}
    wrong = [
        f"no {part}" if value is None else f"{part}={value!r}"
        for part, value in found.items()
        if not isinstance(value, KINDS[part])
    ]
    if wrong:
        raise ValueError(
            f"net is a {type(net).__name__} with {', '.join(wrong)}: expected a flax.linen module with the attributes "
            "basis (as PiecewiseConstant(4)), solver (as FixedStep('rk4', 4)) and gradient (as Checkpointed()) that "
            "hands them to its OdeBlocks, see remanifest.Exchangeable; one without can only be trained and evaluated"
        )
