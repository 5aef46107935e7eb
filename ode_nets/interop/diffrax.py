"""diffrax: our checkpoint adjoint for its solves, and its solvers for our problems."""

from ode_nets.interop.adjoint import AdaptiveCheckpointAdjoint
from ode_nets.interop.scheme import DiffraxScheme
from ode_nets.interop.solver import DiffraxSolver

__all__ = ["AdaptiveCheckpointAdjoint", "DiffraxScheme", "DiffraxSolver"]
