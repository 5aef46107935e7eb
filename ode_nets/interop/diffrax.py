"""diffrax: our checkpoint adjoint for its solves, and its solvers for our problems."""

from ode_nets.interop.adjoint import AdaptiveCheckpointAdjoint

__all__ = ["AdaptiveCheckpointAdjoint"]
