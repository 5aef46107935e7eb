"""Ott's test: does a model keep its quality under solvers of equal or smaller error?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ode_nets.tableaus import get_tableau
from ode_nets.validity.convergence import ratio

Measure = Literal["accuracy", "error", "disagreement"]
Key = tuple[str, int] | tuple[str, int, float]
"""A solver: scheme and steps, and of an adaptive one, whose steps are those it accepted, rtol."""
TOLERANCES: dict[str, float] = {"accuracy": 0.1, "error": 3.0, "disagreement": 0.05}
"""Default tolerances: 0.1 is Ott's (algorithm 1), the others are ours."""
ENTROPY_RATIO = 3.0
"""Default tolerance of cross-entropies, which are errors and compared like them."""
ENTROPY_FLOOR = 0.01
"""Cross-entropy below which a network is sure of everything: the true class has a probability of 0.99."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the exchange of solvers came to.

    Attributes:
      measure, tolerance: how quality was compared, see `exchange`.
      own: quality of the trained manifestation; converged: of the finest.
      worst: the solver of equal or smaller error that loses most, `(scheme, n_steps)`, and rtol of an adaptive one.
      loss: what it loses: accuracy (as a fraction), or the ratio of its error to the trained one's; of
        `"disagreement"`, the trained manifestation's own.
      passed: whether no solver of equal or smaller error loses more than the tolerance, nor multiplies the
        cross-entropy by more than its own.
      converged_enough: whether the two finest manifestations agree; if not, finer ones must be measured.
      critical_step: h*, the largest step below which, it included, every solver measured of the trained order
        or a higher one gives the converged quality, and none that is compared with the trained one fails; NaN if
        there is none. Of a model with an adaptive solver it is that of uniform grids.
      entropy_ratio: the largest ratio of a cross-entropy under a solver of equal or smaller error to that as
        trained, both at least the floor; entropy_worst: that solver; entropy_tolerance: what it was held against.
        `None` where no cross-entropies were given.
    """

    measure: Measure
    tolerance: float
    own: float
    converged: float
    worst: Key
    loss: float
    passed: bool
    converged_enough: bool
    critical_step: float
    entropy_ratio: float | None = None
    entropy_worst: Key | None = None
    entropy_tolerance: float | None = None


def loss_of(measure: Measure, value: float, own: float, floor: float = 0.0) -> float:
    """How much worse a quality is than the trained one's: a difference, or a ratio of errors, both at least `floor`.

    Anything that is not finite loses infinitely much.
    """
    if not math.isfinite(value):
        return math.inf
    if measure == "accuracy":
        return own - value
    return value if measure == "disagreement" else ratio(value, own, floor)


def agrees(measure: Measure, value: float, converged: float, own: float, tolerance: float, floor: float = 0.0) -> bool:
    """Whether a quality is the converged one within the tolerance, whichever is better."""
    if not (math.isfinite(value) and math.isfinite(converged)):
        return False
    if measure == "error":
        # Errors below the trained one's are as good as it; how far they fall is a matter of rounding.
        high, low = sorted((max(value, own, floor), max(converged, own, floor)), reverse=True)
        return high <= tolerance * low
    return abs(value - converged) <= tolerance


def exchange(
    quality: Mapping[Any, float],
    trained: Key,
    own: float,
    *,
    measure: Measure,
    tolerance: float | None = None,
    span: float = 1.0,
    floor: float = 0.0,
    finer: Sequence[Key] | None = None,
    entropies: Mapping[Any, float] | None = None,
    entropy_tolerance: float = ENTROPY_RATIO,
    entropy_floor: float = ENTROPY_FLOOR,
) -> Exchange:
    """Compare a trained manifestation with others of the same weights (Ott sec. 4, Figs 3 and 4).

    A solver has equal or smaller error where its order is at least the trained one's and its step at most. That is
    no measure of an adaptive solver, whose steps lie where they are needed, nor of steps that theta jumps inside of:
    name what is `finer` then.

    Accuracy is a coarse measure: a network may lose six points and multiply its cross-entropy by seven. So with
    `entropies` a model is tied, too, where such a solver multiplies the cross-entropy by more than
    `entropy_tolerance`. Those below `entropy_floor` count as it: over-confident networks have 1e-5, and a hundred
    times that is no wrong answer. Without `entropies` the test is Ott's, but for |difference| in algorithm 1: here a
    solver may be better than the trained one by any amount. A model that gains from finer steps is not tied to its
    own, and `critical_step` then lies below the trained step.

    Args:
      quality: by (scheme, n_steps), of adaptive solvers by (scheme, n_steps, rtol).
      trained: the solver of training, as such a key.
      own: quality of the trained manifestation itself.
      measure: `"accuracy"` (higher is better, differences compared), `"error"` (lower is better, ratios
        compared), or `"disagreement"`: relative distance of outputs from the finest manifestation's, which
        needs neither labels nor truth and tells only whether the trained outputs are those of the flow.
      tolerance: largest loss; `None` for 0.1, 3 and 0.05 in this order.
      span: t1 - t0; floor: errors below it count as it, see `rounding`.
      finer: solvers of equal or smaller error, the finest last; `None` finds them by order and steps.
      entropies: cross-entropies by the same keys, that of `trained` among them; entropy_tolerance: largest ratio.
      entropy_floor: at least 0; for n samples at least 1 / n is sensible, which one wrong answer is worth.

    Raises:
      ValueError: for nothing to compare with, an unknown measure, an `own` that is not finite, accuracies outside
        [0, 1], a tolerance that is not above 0, or solvers without their cross-entropies.
    """
    _check(measure, tolerance, [own, *quality.values()])
    tolerance = TOLERANCES[measure] if tolerance is None else tolerance
    able = _able(quality, trained)
    if entropies is not None and (absent := {trained, *able, *(finer or ())} - set(entropies)):
        raise ValueError(f"entropies hold {[*entropies]}: expected {sorted(absent)} among them")
    ladder: list[Key] = [*able] if finer is None else [trained, *finer]
    if finer is None:
        finer = [key for key in able if key[1] >= trained[1] and key != trained]
    if not finer:
        raise ValueError(f"quality holds {[*quality]}: expected solvers of equal or smaller error than {trained}")
    converged = quality[ladder[-1]]
    # Without labels or truth it is the trained outputs themselves that are, or are not, those of the flow.
    losses = {key: loss_of(measure, quality[key], own, floor) for key in finer}
    if measure == "disagreement":
        losses = {trained: own}
    worst = max(losses, key=lambda key: losses[key])
    failed, ratios = {key for key in losses if not losses[key] <= tolerance}, {}
    if entropies is not None:
        ratios = {k: loss_of("error", entropies[k], entropies[trained], entropy_floor) for k in finer}
        failed |= {key for key in ratios if not ratios[key] <= entropy_tolerance}

    def is_converged(key: Key) -> bool:
        same = agrees(measure, quality[key], converged, own, tolerance, floor)
        if entropies is None:
            return same
        last, first = entropies[ladder[-1]], entropies[trained]
        return same and agrees("error", entropies[key], last, first, entropy_tolerance, entropy_floor)

    coarser = itertools.groupby(reversed(able), key=lambda key: key[1])
    holds = lambda at: all(is_converged(key) and key not in failed for key in at[1])
    good = [n for n, _ in itertools.takewhile(holds, coarser)]
    return Exchange(
        measure=measure,
        tolerance=tolerance,
        own=own,
        converged=converged,
        worst=worst,
        loss=losses[worst],
        passed=not failed,
        converged_enough=len(ladder) > 1 and is_converged(ladder[-2]),
        critical_step=span / good[-1] if good else math.nan,
        entropy_ratio=max(ratios.values(), default=None),
        entropy_worst=max(ratios, key=lambda key: ratios[key], default=None),
        entropy_tolerance=entropy_tolerance if ratios else None,
    )


def _check(measure: Measure, tolerance: float | None, qualities: Sequence[float]) -> None:
    """That an exchange can be judged; the first of the qualities is the trained manifestation's own."""
    if measure not in get_args(Measure):
        raise ValueError(f"measure={measure!r}: expected one of {', '.join(get_args(Measure))}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: expected a number above 0")
    own, finite = qualities[0], [value for value in qualities if math.isfinite(value)]
    if not math.isfinite(own):
        raise ValueError(f"own={own}: expected a finite number; a model that fails as trained has nothing to lose")
    if measure == "accuracy" and not 0 <= min(finite) <= max(finite) <= 1:
        raise ValueError(f"accuracies from {min(finite)} to {max(finite)}: expected fractions in [0, 1], not percent")


def _able(quality: Mapping[Any, float], trained: Key) -> list[tuple[str, int]]:
    """Fixed solvers of the trained order or a higher one, from coarse to fine."""
    order = get_tableau(trained[0]).order
    return sorted((key for key in quality if len(key) == 2 and get_tableau(key[0]).order >= order), key=fineness)


def fineness(key: Key) -> tuple[int, int]:
    """Steps, and then order: the largest is the solver to trust."""
    return key[1], get_tableau(key[0]).order


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
