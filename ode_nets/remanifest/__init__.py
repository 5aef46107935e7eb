"""Re-manifestation of a trained model: refine it, compress it, evaluate it under other solvers, and export it.

    deeper, finer = remanifest.refine(net, variables)
    small, coarse = remanifest.project(deeper, finer, PiecewiseConstant(1))

Every function takes a description (`net`) and its variables and changes neither; what a network of one's own offers for
that is `Exchangeable`. What happens to one weight function alone are methods of it: `BasisExpansion.refined`,
`.projected` and `.interpolated`.
"""

from ode_nets.remanifest.costs import n_parameters, nfe, pareto_front
from ode_nets.remanifest.exchangeable import Exchangeable, check_exchangeable
from ode_nets.remanifest.export import export_inference, export_onnx, padded
from ode_nets.remanifest.manifestation import Manifestation
from ode_nets.remanifest.quantize import Quantized, dequantize, quantize
from ode_nets.remanifest.rebase import interpolate, map_coefficients, project, refine
from ode_nets.remanifest.statistics import has_intervals, restat, unmet_intervals
from ode_nets.remanifest.swap import Swap, compile_swap, lanes_within, make_swap, run_swap, stack_solvers, swap_solvers

__all__ = [
    "Exchangeable",
    "Manifestation",
    "Quantized",
    "Swap",
    "check_exchangeable",
    "compile_swap",
    "dequantize",
    "export_inference",
    "export_onnx",
    "has_intervals",
    "interpolate",
    "lanes_within",
    "make_swap",
    "map_coefficients",
    "n_parameters",
    "nfe",
    "padded",
    "pareto_front",
    "project",
    "quantize",
    "refine",
    "restat",
    "run_swap",
    "stack_solvers",
    "swap_solvers",
    "unmet_intervals",
]
