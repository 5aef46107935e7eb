"""What is slow in a loop on a CPU, and is said once: convolutions of `jax.lax` in a field."""

from __future__ import annotations

import warnings
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

SLOWER = (12, 90)
"""Gradients of `lax.conv_general_dilated` in a scan over those outside of one: the least and the most of eight shapes,
by benchmarks/convolution.py on two CPU cores."""


def warn_of_convolutions(field: Any) -> None:
    """Warn of a field whose gradients take long on a CPU, which is where this process computes.

    Args:
      field: its jaxpr.
    """
    if jax.default_backend() == "cpu" and convolves(field):
        warnings.warn(
            f"the field holds lax.conv_general_dilated, as flax.linen.Conv does: inside a loop on a CPU its gradients "
            f"take {SLOWER[0]} to {SLOWER[1]} times as long as outside of one (measured, "
            "benchmarks/results/convolution_cpu.json); ode_nets.convolution with strides=1 computes the same without",
            stacklevel=3,
        )


def convolves(jaxpr: Any) -> bool:
    """Whether a program, as lowered for a CPU, holds a convolution of images."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated" and eqn.invars[0].aval.ndim == 4:
            return True
        params: Any = eqn.params
        if platforms := eqn.params.get("branches_platforms"):
            # One branch is lowered: that of the platform, or the one for all others.
            chosen = next((i for i, names in enumerate(platforms) if "cpu" in (names or ())), len(platforms) - 1)
            params = {"branch": params["branches"][chosen]}
        if any(convolves(inner) for inner in jaxprs_in_params(params)):
            return True
    return False
