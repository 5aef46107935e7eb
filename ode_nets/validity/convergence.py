"""Errors against step counts: slopes fitted to them, and the dip at the training step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ode_nets.arguments import Count, NotNegative, Positive, checked, shown
from ode_nets.integrate import FixedStep
from ode_nets.tableaus import get_tableau

Outputs = Real[np.ndarray | Array, "batch *shape"]
LEAST_POINTS = 4
"""Points that a slope is fitted to, at least."""
STRAIGHT = 1.15
"""Factor within which all of them lie on the line."""
FLAT = 0.5
"""Slopes below this are a floor and no convergence."""
ROUNDING = 64
"""Multiples of eps * scale up to which an error is rounding: some operations a step, and a random walk of steps."""


@dataclasses.dataclass(frozen=True)
class Slope:
    """The order of convergence that errors show.

    Attributes:
      order: slope r of log E = r log h + c (ContinuousNet eq. 19); NaN where no stretch of the errors is straight.
      first, last: indices of the stretch it was fitted to, both included; -1 where there is none.
    """

    order: float
    first: int = -1
    last: int = -1


@dataclasses.dataclass(frozen=True)
class Dip:
    """How much better a model is at its training step than at finer ones.

    Attributes:
      error: at the training step.
      at_half: the error at half the training step, or at the nearest step measured to it, over `error`.
      worst: the largest error at any finer step, over `error`.
      detected: whether `worst` exceeds the tolerance: a discretization of an ODE gets better with finer steps.
    """

    error: float
    at_half: float
    worst: float
    detected: bool


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Errors of manifestations of one model.

    Attributes:
      h: step sizes, falling.
      n_steps: step counts, rising, of the same length.
      errors: by scheme.
      slopes: by scheme.
      dip: at the training step under the training scheme; `None` where either was not measured.
    """

    h: Float[np.ndarray, "n"]
    n_steps: tuple[int, ...]
    errors: dict[str, Float[np.ndarray, "n"]]
    slopes: dict[str, Slope]
    dip: Dip | None


@checked
def fit_slope(h: Real[np.ndarray, "n"], errors: Real[np.ndarray, "n"]) -> Slope:
    """The slope of the longest straight stretch of errors in logarithmic axes.

        log E(h) = r log h + c                               (ContinuousNet eq. 19)

    A stretch is at least four successive steps whose errors all lie within a factor 1.15 of their common
    least-squares line, with a slope of at least 0.5. So neither the saturated errors of coarse steps nor the
    floor of rounding or of training enter. Of stretches of one length the finest counts.

    Args:
      h: step sizes, falling, above 0.
      errors: at least 0; entries that are not finite or 0 belong to no stretch.

    Returns:
      `Slope`, with NaN for its order if there is no straight stretch.

    Raises:
      ValueError: for steps that are not finite or do not fall, and errors below 0.
    """
    x, y = np.asarray(h, float), np.asarray(errors, float)
    if not (np.isfinite(x).all() and (x > 0).all() and (np.diff(x) < 0).all()):
        raise ValueError(f"h={x.tolist()}: expected falling steps above 0")
    if (y < 0).any():
        raise ValueError(f"errors={y.tolist()}: expected numbers of at least 0")
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = np.log(x), np.log(y)
    for length in range(len(x), LEAST_POINTS - 1, -1):
        for first in range(len(x) - length, -1, -1):
            window = slice(first, first + length)
            if not np.isfinite(y[window]).all():
                continue
            order, constant = np.polyfit(x[window], y[window], 1)
            residual = np.abs(y[window] - order * x[window] - constant).max()
            if order >= FLAT and residual <= math.log(STRAIGHT):
                return Slope(float(order), first, first + length - 1)
    return Slope(math.nan)


@checked
def find_dip(
    n_steps: Sequence[Count],
    errors: Real[np.ndarray, "n"],
    trained: Count,
    tolerance: Positive = 3.0,
    floor: NotNegative = 0.0,
) -> Dip:
    """Compare the error at the training step with those at finer steps (ContinuousNet Fig. 4a).

    Args:
      n_steps: step counts, rising; one of them is `trained`.
      errors: of the training scheme, one a step count: global errors, losses, or any number above 0 that
        falls with quality.
      trained: N_t of training.
      tolerance: ratio of errors above which a dip counts as one.
      floor: errors below it count as it, as rounding leaves them to chance; see `rounding`.

    Raises:
      ValueError: if `trained` was not measured or its error is not finite, or nothing finer was measured; for errors
        below 0, another number of them, or step counts that do not rise.
    """
    n, e = list(n_steps), np.asarray(errors, float)
    if trained not in n or max(n) == trained:
        raise ValueError(f"n_steps={n}: expected the training step count {trained} (trained) and finer ones")
    if e.shape != (len(n),) or (e < 0).any() or any(a >= b for a, b in itertools.pairwise(n)):
        raise ValueError(
            f"errors={e.tolist()} at n_steps={n}: expected one of at least 0 a step count, and these rising"
        )
    if not math.isfinite(e[n.index(trained)]):
        raise ValueError(f"errors={e.tolist()}: expected a finite one at the training step count {trained}")
    own = float(e[n.index(trained)])
    finer = [i for i, steps in enumerate(n) if steps > trained]
    half = min(finer, key=lambda i: abs(math.log(n[i] / (2 * trained))))
    ratios = np.array([ratio(value, own, floor) for value in e])
    worst = float(np.max(ratios[finer]))
    return Dip(own, float(ratios[half]), worst, bool(worst > tolerance) or not math.isfinite(worst))


def ratio(value: float, own: float, floor: float = 0.0) -> float:
    """How many times an error is another, both at least `floor`; 1 of two that are 0, NaN of what is NaN."""
    value, own = (error if math.isnan(error) else max(error, floor) for error in (value, own))
    if own == 0:
        return 1.0 if value == 0 else math.inf
    return value / own


@checked
def rounding(*outputs: Real[Array, "batch ..."]) -> float:
    """The error up to which outputs are equal but for rounding: 64 eps times the largest of their norms.

    Args:
      outputs: `[batch, ...]`, at least one of them floating; eps is that of the coarsest dtype. Values that are not
        finite do not count.
    """
    floating = [out.dtype for out in map(jnp.asarray, outputs) if jnp.issubdtype(out.dtype, jnp.floating)]
    eps = max(float(jnp.finfo(dtype).eps) for dtype in floating)
    kept = [np.nan_to_num(np.asarray(out, float), nan=0.0, posinf=0.0, neginf=0.0) for out in outputs]
    return ROUNDING * eps * max(distance(out, np.zeros_like(out)) for out in kept)


@checked
def distance(outputs: Outputs, reference: Outputs) -> float:
    """E = sqrt(mean over the batch of |outputs - reference|^2), the root mean square of global errors.

    The norm itself, whose slopes are the orders; ContinuousNet eq. 18 prints its square.

    Args:
      outputs, reference: `[batch, ...]`, at least one sample.

    Raises:
      ValueError: for outputs that hold nothing.
    """
    a, b = np.asarray(outputs, float), np.asarray(reference, float)
    if not a.size:
        raise ValueError(f"outputs={shown(a)}: expected at least one number")
    gap = (a - b).reshape(len(a), -1)
    return float(np.sqrt(np.mean(np.sum(gap**2, axis=1))))


@checked
def convergence(
    run: Callable[[FixedStep], jax.Array],
    schemes: Sequence[str],
    n_steps: Sequence[Count],
    *,
    truth: Real[Array, "batch ..."] | None = None,
    trained: FixedStep | None = None,
    span: Positive = 1.0,
    tolerance: Positive = 3.0,
) -> Convergence:
    """Global errors, or disagreement with the finest manifestation, against N_t (ContinuousNet eq. 18, Fig. 4).

    Args:
      run: `run(solver) -> outputs`, `[batch, ...]`, as of a `Subject`.
      schemes: keys of tableaus.
      n_steps: step counts; measured in rising order, each once.
      truth: the outputs that a perfect model would give; `None` measures the distance from the scheme of the
        highest order at four times the most steps, under which every model converges, tied to its solver or not.
        That reference has an error too: it shifts the finest error of its own scheme, of order p, by 4^-p of it.
      trained: the training manifestation, for the dip, which takes a `truth`.
      span: t1 - t0.
      tolerance: of `find_dip`.

    Raises:
      ValueError: for no schemes or steps, or a `truth` of another shape.
    """
    steps = tuple(sorted(set(n_steps)))
    if not schemes or not steps:
        raise ValueError(f"schemes={tuple(schemes)}, n_steps={steps}: expected at least one of each")
    best = max(schemes, key=lambda scheme: get_tableau(scheme).order)
    reference = run(FixedStep(best, 4 * steps[-1])) if truth is None else truth
    errors, outputs = {}, []
    for scheme in schemes:
        outputs = [run(FixedStep(scheme, n)) for n in steps]
        if np.shape(outputs[0]) != np.shape(reference):
            raise ValueError(f"truth has shape {np.shape(reference)}: expected that of the outputs, {outputs[0].shape}")
        errors[scheme] = np.array([distance(out, reference) for out in outputs])
    h = span / np.array(steps, float)
    dip = None
    if truth is not None and trained is not None and trained.scheme.name in errors and trained.n_steps in steps[:-1]:
        dip = find_dip(steps, errors[trained.scheme.name], trained.n_steps, tolerance, rounding(outputs[-1], reference))
    slopes = {scheme: fit_slope(h, values) for scheme, values in errors.items()}
    return Convergence(h, steps, errors, slopes, dip)
