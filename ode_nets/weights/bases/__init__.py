"""The bases, a file each; another one is a `Basis` of its own file and a line here."""

from ode_nets.weights.bases.chebyshev import Chebyshev
from ode_nets.weights.bases.fourier import Fourier
from ode_nets.weights.bases.legendre import Legendre
from ode_nets.weights.bases.piecewise_constant import PiecewiseConstant
from ode_nets.weights.bases.piecewise_linear import PiecewiseLinear

__all__ = ["Chebyshev", "Fourier", "Legendre", "PiecewiseConstant", "PiecewiseLinear"]
