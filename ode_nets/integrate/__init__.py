"""Integration of initial value problems on fixed and adaptive grids."""

from ode_nets.integrate.adaptive import integrate_adaptive, integrate_adaptive_bounded
from ode_nets.integrate.fixed import integrate_fixed
from ode_nets.integrate.padded import PaddedStep, integrate_padded, pad
from ode_nets.integrate.problem import (
    Field,
    Problem,
    Result,
    Solution,
    WeightFunction,
    is_finite,
    make_problem,
    theta_at,
)
from ode_nets.integrate.solvers import Adaptive, FixedStep

__all__ = [
    "Adaptive",
    "Field",
    "FixedStep",
    "PaddedStep",
    "Problem",
    "Result",
    "Solution",
    "WeightFunction",
    "integrate_adaptive",
    "integrate_adaptive_bounded",
    "integrate_fixed",
    "integrate_padded",
    "is_finite",
    "make_problem",
    "pad",
    "theta_at",
]
