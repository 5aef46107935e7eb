"""Integration of initial value problems: a scheme over a grid, by one loop."""

from ode_nets.integrate.adaptive import Adaptive
from ode_nets.integrate.loop import Solver, integrate
from ode_nets.integrate.problem import (
    Field,
    Problem,
    TimeDependent,
    WeightFunction,
    make_problem,
    theta_at,
)
from ode_nets.integrate.recorded import Recorded
from ode_nets.integrate.solution import Interpolation, Result, Solution, Steps
from ode_nets.integrate.uniform import FixedStep, pad

__all__ = [
    "Adaptive",
    "Field",
    "FixedStep",
    "Interpolation",
    "Problem",
    "Recorded",
    "Result",
    "Solution",
    "Solver",
    "Steps",
    "TimeDependent",
    "WeightFunction",
    "integrate",
    "make_problem",
    "pad",
    "theta_at",
]
