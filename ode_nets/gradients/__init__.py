"""Gradient methods: how a solve is differentiated."""

from ode_nets.gradients.aca import ACA
from ode_nets.gradients.backsolve import Backsolve
from ode_nets.gradients.checkpointed import Checkpointed
from ode_nets.gradients.direct import Direct
from ode_nets.gradients.methods import GradientMethod, solve
from ode_nets.gradients.traced import TracedStep

__all__ = ["ACA", "Backsolve", "Checkpointed", "Direct", "GradientMethod", "TracedStep", "solve"]
