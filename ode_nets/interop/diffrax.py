"""diffrax: our checkpoint adjoint for its solves, and its solvers for our problems.

Tested with diffrax 0.7.2. What an adjoint overrides, `AbstractAdjoint.loop`, is no public interface of diffrax, so that
versions from 0.8 on are not installed beside this library until the bridge has been tested with them.
"""

from ode_nets.interop.adjoint import AdaptiveCheckpointAdjoint
from ode_nets.interop.scheme import DiffraxScheme
from ode_nets.interop.solver import DiffraxSolver

__all__ = ["AdaptiveCheckpointAdjoint", "DiffraxScheme", "DiffraxSolver"]
