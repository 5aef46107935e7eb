"""Gradient methods: how a solve is differentiated."""

from ode_nets.gradients.aca import ACA
from ode_nets.gradients.backsolve import Backsolve
from ode_nets.gradients.direct import Checkpointed, Direct
from ode_nets.gradients.methods import GradientMethod, default_gradient, solve
from ode_nets.gradients.naive import Naive
from ode_nets.gradients.reversible import Reversible
from ode_nets.gradients.until import Stopped, solve_until

__all__ = [
    "ACA",
    "Backsolve",
    "Checkpointed",
    "Direct",
    "GradientMethod",
    "Naive",
    "Reversible",
    "Stopped",
    "default_gradient",
    "solve",
    "solve_until",
]
