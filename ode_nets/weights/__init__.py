"""Weight functions theta(t): constants, expansions in a basis, and several of them side by side."""

from ode_nets.weights.basis import (
    Basis,
    Chebyshev,
    Fourier,
    Legendre,
    PiecewiseConstant,
    PiecewiseLinear,
    gram_matrix,
    interval_index,
    stage_offset,
)
from ode_nets.weights.constant import Constant
from ode_nets.weights.expansion import (
    BasisExpansion,
    interpolate,
    interpolation_matrix,
    project,
    projection_matrix,
    refine,
    refinement_matrix,
    transform,
)
from ode_nets.weights.joint import Joint

__all__ = [
    "Basis",
    "BasisExpansion",
    "Chebyshev",
    "Constant",
    "Fourier",
    "Joint",
    "Legendre",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "gram_matrix",
    "interpolate",
    "interpolation_matrix",
    "interval_index",
    "project",
    "projection_matrix",
    "refine",
    "refinement_matrix",
    "stage_offset",
    "transform",
]
