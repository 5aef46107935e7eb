"""Continuous-depth networks: a vector field, a weight function theta(t), a solver and a gradient method.

    dx/dt = field(t, x, theta(t)),  x(t0) = x0           (ContinuousNet eq. 20-22)

`solve` takes the four apart from each other, and each can be exchanged without touching the other three. `nn`
puts such solves into Flax modules, `manifest` turns a trained model into others. The names below are all that
is public, with those of `manifest`, `problems` and `interop.diffrax`, which is imported by its name.
"""

from ode_nets import manifest, problems
from ode_nets.control import StepController
from ode_nets.fields import MLP, ResidualUnit, Unit, batch_norm, convolution
from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, GradientMethod, solve
from ode_nets.integrate import (
    Adaptive,
    Field,
    FixedStep,
    PaddedStep,
    Problem,
    Result,
    Solution,
    WeightFunction,
    make_problem,
    pad,
)
from ode_nets.manifest import export_inference, n_parameters, pareto_front, swap_solvers
from ode_nets.nn import ContinuousNet, OdeBlock, ResNet, WideContinuousNet, as_resnet
from ode_nets.tableaus import SCHEMES, Tableau, get_tableau
from ode_nets.weights import (
    Basis,
    BasisExpansion,
    Chebyshev,
    Constant,
    Fourier,
    Joint,
    Legendre,
    PiecewiseConstant,
    PiecewiseLinear,
    interpolate,
    project,
    refine,
)

__all__ = [
    "ACA",
    "MLP",
    "SCHEMES",
    "Adaptive",
    "Backsolve",
    "Basis",
    "BasisExpansion",
    "Chebyshev",
    "Checkpointed",
    "Constant",
    "ContinuousNet",
    "Direct",
    "Field",
    "FixedStep",
    "Fourier",
    "GradientMethod",
    "Joint",
    "Legendre",
    "OdeBlock",
    "PaddedStep",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Problem",
    "ResNet",
    "ResidualUnit",
    "Result",
    "Solution",
    "StepController",
    "Tableau",
    "Unit",
    "WeightFunction",
    "WideContinuousNet",
    "as_resnet",
    "batch_norm",
    "convolution",
    "export_inference",
    "get_tableau",
    "interpolate",
    "make_problem",
    "manifest",
    "n_parameters",
    "pad",
    "pareto_front",
    "problems",
    "project",
    "refine",
    "solve",
    "swap_solvers",
]
