"""Time kernels K: how theta(t) remembers the weights that evolve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from ode_nets.arguments import Positive, checked

Kernel = Callable[[Any], Any]
"""K(s) for an array of ages s = t - tau >= 0, concrete values; hashable, as a plain function is."""
FINER = 16
"""Times finer than the weight grid: the grid on which it is seen whether a kernel is too narrow for its own."""


@dataclasses.dataclass(frozen=True)
class Dirac:
    """theta(t) = w(t): no memory (ANODEV2 app. A.1).

    Example:
        >>> Evolution(Still(), FlowStep(2), PiecewiseConstant(2), kernel=Dirac()).matrix()  # theta(0) and theta(1/2)
        array([[1., 0., 0.],
               [0., 1., 0.]])
    """

    def __call__(self, s: Any) -> Any:
        """Not a function: `kernel_matrix` selects w(t) instead."""
        raise ValueError("kernel=Dirac() has no values; it selects w(t), see kernel_matrix")


@dataclasses.dataclass(frozen=True)
@checked
class Box:
    """The mean over the last `width` of time, where there is as much: K(s) = 1 / width for s < width.

    Args:
      width: above 0, a whole number of weight steps.

    Raises:
      ValueError: for a width that is not a finite number above 0.

    Example:
        >>> evolution = Evolution(Still(), FlowStep(4), PiecewiseConstant(2), times=(0.5, 1), kernel=Box(0.5))
        >>> Evolved({"w": jnp.ones(1)}, {}, evolution).at(0.75)
        {'w': Array([1.], dtype=float32)}
    """

    width: Positive

    def __call__(self, s: Any) -> Any:
        """Its value inside the box; where the box ends is the quadrature's business."""
        return np.full_like(s, 1 / self.width)


@dataclasses.dataclass(frozen=True)
@checked
class Exponential:
    """A memory that fades: K(s) = rate exp(-rate s).

    Args:
      rate: above 0, per unit time.

    Raises:
      ValueError: for a rate that is not a finite number above 0.

    Example:
        >>> float(Exponential(2.0)(0.0))
        2.0
    """

    rate: Positive

    def __call__(self, s: Any) -> Any:
        """K(s)."""
        return self.rate * np.exp(-self.rate * s)


def kernel_matrix(kernel: Kernel, times: Sequence[Fraction], n_steps: int, span: float = 1.0) -> np.ndarray:
    """What the weights at the points of their grid are multiplied by to give theta at `times`.

        theta(t) = int_0^t K(t - tau) w(tau) dtau  ~  sum_j matrix_ij w(tau_j)       (ANODEV2 eq. 5d)

    by the trapezoidal rule on tau_j = j span / n_steps; with `Dirac()` a selection of rows. A kernel without a
    delta gives theta(0) = 0, as the equation does.

    Args:
      kernel: `Dirac()`, `Box(width)`, `Exponential(rate)`, or any function K(s) of ages in [0, span]; smooth,
        since the rule is of second order only there.
      times: fractions of the span, each a multiple of 1 / n_steps.
      n_steps: steps of the weight grid.
      span: length of the domain.

    Returns:
      float64 `[len(times), n_steps + 1]`, static.

    Raises:
      ValueError: for a time or the end of a box that is no point of the weight grid, for a kernel that gives
        anything but one finite number an age, and for one so narrow that the rule on the weight grid misses its
        integral by more than a tenth.
    """
    rows = np.zeros((len(times), n_steps + 1))
    h = span / n_steps
    for row, time in zip(rows, times, strict=True):
        position = time * n_steps
        if position.denominator != 1:
            raise ValueError(
                f"times contains {time}, which is no point k / {n_steps} of the weight grid; choose a number "
                f"of weight steps that is a multiple of {time.denominator}"
            )
        end = int(position)
        if isinstance(kernel, Dirac):
            row[end] = 1.0
            continue
        start = max(0, end - _reach(kernel, h)) if isinstance(kernel, Box) else 0
        ages = h * np.arange(end - start, -1, -1.0)
        values = _values(kernel, ages)
        if len(ages) > 1:
            row[start : end + 1] = h * values
            row[[start, end]] /= 2
            if not isinstance(kernel, Box):
                _check_resolved(kernel, row.sum(), ages[0], h)
    return rows


def _check_resolved(kernel: Kernel, integral: float, longest: float, h: float) -> None:
    values = _values(kernel, np.linspace(longest, 0.0, FINER * round(longest / h) + 1))
    finer, size = (np.trapezoid(v, dx=h / FINER) for v in (values, abs(values)))
    if abs(integral - finer) > 0.1 * size:
        raise ValueError(
            f"kernel={kernel!r} is too narrow for the weight grid of step {h:g}: over ages up to {longest:g} its "
            f"integral there is {integral:.3g}, and {finer:.3g} on steps {FINER} times smaller; take more weight "
            "steps, a wider kernel, or Dirac()"
        )


def _reach(kernel: Box, h: float) -> int:
    steps = round(kernel.width / h)
    if steps < 1 or not math.isclose(steps * h, kernel.width, rel_tol=1e-6):
        raise ValueError(
            f"kernel={kernel!r} does not match the weight grid of step {h:g}: expected a width that is a "
            "whole number of weight steps; change the width or the number of weight steps"
        )
    return steps


def _values(kernel: Kernel, ages: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # else a kernel written in jnp would be traced inside jit
        values = np.asarray(kernel(ages), np.float64)
    if values.shape != ages.shape or not np.isfinite(values).all():
        raise ValueError(
            f"kernel gave {np.array2string(values, threshold=8)} of shape {values.shape} for ages of shape "
            f"{ages.shape}: expected one finite number an age on the weight grid"
        )
    return values
