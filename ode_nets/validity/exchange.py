"""Ott's test: does a model keep its quality under solvers of equal or smaller error?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

from ode_nets.tableaus import get_tableau

Measure = Literal["accuracy", "error", "disagreement"]
TOLERANCES: dict[str, float] = {"accuracy": 0.1, "error": 3.0, "disagreement": 0.05}
"""Default tolerances: 0.1 is Ott's (algorithm 1), the others are ours."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the exchange of solvers came to.

    Attributes:
      measure, tolerance: how quality was compared, see `exchange`.
      own: quality of the trained manifestation; converged: of the finest.
      worst: the solver of equal or smaller error that loses most, `(scheme, n_steps)`.
      loss: what it loses: accuracy (as a fraction), or the ratio of its error to the trained one's; of
        `"disagreement"`, the trained manifestation's own.
      passed: whether no solver of equal or smaller error loses more than the tolerance.
      converged_enough: whether the two finest manifestations agree; if not, finer ones must be measured.
      critical_step: h*, the largest step below which, it included, every solver measured of the trained order
        or a higher one gives the converged quality; NaN if only the finest does.
    """

    measure: Measure
    tolerance: float
    own: float
    converged: float
    worst: tuple[str, int]
    loss: float
    passed: bool
    converged_enough: bool
    critical_step: float


def loss_of(measure: Measure, value: float, own: float) -> float:
    """How much worse a quality is than the trained one's: a difference, or a ratio of errors.

    Anything that is not finite loses infinitely much.
    """
    if not math.isfinite(value):
        return math.inf
    if measure == "accuracy":
        return own - value
    if measure == "disagreement":
        return value
    return value / own if own > 0 else (1.0 if value == 0 else math.inf)


def agrees(measure: Measure, value: float, converged: float, own: float, tolerance: float) -> bool:
    """Whether a quality is the converged one within the tolerance, whichever is better."""
    if not (math.isfinite(value) and math.isfinite(converged)):
        return False
    if measure == "error":
        # Errors below the trained one's are as good as it; how far they fall is a matter of rounding.
        high, low = sorted((max(value, own), max(converged, own)), reverse=True)
        return high <= tolerance * low
    return abs(value - converged) <= tolerance


def exchange(
    quality: Mapping[tuple[str, int], float],
    trained: tuple[str, int],
    own: float,
    *,
    measure: Measure,
    tolerance: float | None = None,
    span: float = 1.0,
) -> Exchange:
    """Compare a trained manifestation with others of the same weights (Ott sec. 4, Figs 3 and 4).

    A solver has equal or smaller error where its order is at least the trained one's and its step at most.

    Args:
      quality: by (scheme, n_steps).
      trained: scheme and steps of training; an adaptive solver's scheme and number of accepted steps.
      own: quality of the trained manifestation itself.
      measure: `"accuracy"` (higher is better, differences compared), `"error"` (lower is better, ratios
        compared), or `"disagreement"`: relative distance of outputs from the finest manifestation's, which
        needs neither labels nor truth and tells only whether the trained outputs are those of the flow.
      tolerance: largest loss; `None` for 0.1, 3 and 0.05 in this order.
      span: t1 - t0.

    Raises:
      ValueError: for nothing to compare with, or an unknown measure.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"measure={measure!r}: expected one of {', '.join(get_args(Measure))}")
    tolerance = TOLERANCES[measure] if tolerance is None else tolerance
    order = get_tableau(trained[0]).order

    def fineness(key: tuple[str, int]) -> tuple[int, int]:
        return key[1], get_tableau(key[0]).order

    able = sorted((key for key in quality if get_tableau(key[0]).order >= order), key=fineness)
    finer = [key for key in able if key[1] >= trained[1] and key != trained]
    if not finer:
        raise ValueError(f"quality holds {sorted(quality)}: expected solvers of equal or smaller error than {trained}")
    converged = quality[able[-1]]
    # Without labels or truth it is the trained outputs themselves that are, or are not, those of the flow.
    losses = {trained: own} if measure == "disagreement" else {k: loss_of(measure, quality[k], own) for k in finer}
    worst = max(losses, key=lambda key: losses[key])
    critical = math.nan
    for n in sorted({key[1] for key in able}, reverse=True):
        if not all(agrees(measure, quality[key], converged, own, tolerance) for key in able if key[1] == n):
            break
        critical = span / n
    return Exchange(
        measure=measure,
        tolerance=tolerance,
        own=own,
        converged=converged,
        worst=worst,
        loss=losses[worst],
        passed=losses[worst] <= tolerance,
        converged_enough=len(able) > 1 and agrees(measure, quality[able[-2]], converged, own, tolerance),
        critical_step=critical,
    )


def critical_training_step(passed: Mapping[int, bool], span: float = 1.0) -> tuple[float, float]:
    """Between which training steps models stop to be ODEs (Ott table 1).

    Args:
      passed: by the number of steps of training, whether the trained model passed the exchange test.
      span: t1 - t0.

    Returns:
      The coarsest step from which on all finer training steps passed, and the step before it, which did not:
      the critical step lies between. NaN where there is none.
    """
    good = bad = math.nan
    for n in sorted(passed, reverse=True):
        if not passed[n]:
            bad = span / n
            break
        good = span / n
    return good, bad
