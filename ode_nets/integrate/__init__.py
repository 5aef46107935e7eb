"""Integration of initial value problems on fixed and adaptive grids."""

from ode_nets.integrate.adaptive import Adaptive
from ode_nets.integrate.fixed import integrate_fixed
from ode_nets.integrate.padded import PaddedStep, integrate_padded, pad
from ode_nets.integrate.problem import (
    Field,
    FixedStep,
    Problem,
    Result,
    Solution,
    WeightFunction,
    is_finite,
    make_problem,
    theta_at,
)

__all__ = [
    "Adaptive",
    "Field",
    "FixedStep",
    "PaddedStep",
    "Problem",
    "Result",
    "Solution",
    "WeightFunction",
    "integrate_fixed",
    "integrate_padded",
    "is_finite",
    "make_problem",
    "pad",
    "theta_at",
]
