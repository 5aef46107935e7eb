"""Weight functions theta(t): constants, expansions in a basis, evolving weights, and several side by side."""

from ode_nets.weights.bases import Chebyshev, Fourier, Legendre, PiecewiseConstant, PiecewiseLinear
from ode_nets.weights.basis import Basis, gram_matrix
from ode_nets.weights.constant import Constant
from ode_nets.weights.evolved import (
    Evolution,
    Evolved,
    FlowStep,
    configuration_1,
    configuration_2,
)
from ode_nets.weights.expansion import (
    BasisExpansion,
    interpolation_matrix,
    projection_matrix,
    refinement_matrix,
    transform,
)
from ode_nets.weights.intervals import interval_index, stage_offset
from ode_nets.weights.joint import Joint
from ode_nets.weights.kernel import Box, Dirac, Exponential, Kernel, kernel_matrix
from ode_nets.weights.rda import RDA, advance_filter
from ode_nets.weights.weight_fields import Flattened, Still, WeightField

__all__ = [
    "RDA",
    "Basis",
    "BasisExpansion",
    "Box",
    "Chebyshev",
    "Constant",
    "Dirac",
    "Evolution",
    "Evolved",
    "Exponential",
    "Flattened",
    "FlowStep",
    "Fourier",
    "Joint",
    "Kernel",
    "Legendre",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Still",
    "WeightField",
    "advance_filter",
    "configuration_1",
    "configuration_2",
    "gram_matrix",
    "interpolation_matrix",
    "interval_index",
    "kernel_matrix",
    "projection_matrix",
    "refinement_matrix",
    "stage_offset",
    "transform",
]
