"""Ott's test: does a model keep its quality under solvers of equal or smaller error?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from ode_nets.arguments import Count, Positive, checked
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import get_tableau
from ode_nets.validity.quality import Measure, Quality


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the exchange of solvers came to.

    Attributes:
      measure, tolerance: how quality was compared, see `Quality`.
      own: quality of the trained manifestation; converged: of the finest.
      worst: the solver of equal or smaller error that loses most.
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
    worst: Manifestation
    loss: float
    passed: bool
    converged_enough: bool
    critical_step: float
    entropy_ratio: float | None = None
    entropy_worst: Manifestation | None = None
    entropy_tolerance: float | None = None


@checked
def exchange(
    quality: Quality,
    trained: Manifestation,
    *,
    entropies: Quality | None = None,
    finer: Sequence[Manifestation] | None = None,
    span: Positive = 1.0,
) -> Exchange:
    """Compare a trained manifestation with others of the same weights (Ott sec. 4, Figs 3 and 4).

    A solver has equal or smaller error where its order is at least the trained one's and its step at most. That is
    no measure of an adaptive solver, whose steps lie where they are needed, nor of steps that theta jumps inside of:
    name what is `finer` then.

    Accuracy is a coarse measure: a network may lose six points and multiply its cross-entropy by seven. So with
    `entropies` a model is tied, too, where such a solver multiplies the cross-entropy by more than their tolerance.
    Without them the test is Ott's, but for |difference| in algorithm 1: here a solver may be better than the trained
    one by any amount. A model that gains from finer steps is not tied to its own, and `critical_step` then lies below
    the trained step.

    Args:
      quality: of the trained manifestation and of others.
      trained: the one of training.
      entropies: cross-entropies of the same manifestations.
      finer: solvers of equal or smaller error, the finest last; `None` finds them by order and steps.
      span: t1 - t0.

    Raises:
      ValueError: for nothing to compare with, a trained manifestation that was not measured or whose quality is not
        finite, or solvers without their cross-entropies.

    Example:
      accuracies = {Manifestation("euler", 4): 0.98, Manifestation("euler", 8): 0.61, Manifestation("rk4", 4): 0.55}
      found = exchange(Quality(accuracies, "accuracy"), Manifestation("euler", 4))
      found.passed, found.worst                 # False, Manifestation('rk4', 4)
    """
    able = _able(quality.values, trained)
    ladder = [*able] if finer is None else [trained, *finer]
    if finer is None:
        finer = [at for at in able if at.counted >= trained.counted and at != trained]
    if not finer or trained not in quality.values:
        held = [*quality.values]
        raise ValueError(f"quality holds {held}: expected {trained!r} and solvers of equal or smaller error than it")
    own, converged = quality.values[trained], ladder[-1]
    if not math.isfinite(own):
        raise ValueError(f"own={own}: expected a finite number; a model that fails as trained has nothing to lose")
    if entropies is not None and (absent := {trained, *able, *finer} - set(entropies.values)):
        raise ValueError(f"entropies hold {[*entropies.values]}: expected {sorted(absent, key=str)} among them")
    # Without labels or truth it is the trained outputs themselves that are, or are not, those of the flow.
    losses = {at: quality.loss(at, trained) for at in ([trained] if quality.measure == "disagreement" else finer)}
    ratios = {} if entropies is None else {at: entropies.loss(at, trained) for at in finer}
    worst = max(losses, key=lambda at: losses[at])
    failed = {at for at, loss in losses.items() if not quality.tolerates(loss)}
    failed |= {at for at, loss in ratios.items() if entropies is not None and not entropies.tolerates(loss)}

    def is_converged(at: Manifestation) -> bool:
        return all(q.agrees(at, converged, trained) for q in (quality, entropies) if q is not None)

    def holds(group: tuple[int, Iterable[Manifestation]]) -> bool:
        return all(is_converged(at) and at not in failed for at in group[1])

    good = [n for n, _ in itertools.takewhile(holds, itertools.groupby(reversed(able), key=lambda at: at.counted))]
    return Exchange(
        measure=quality.measure,
        tolerance=quality.most,
        own=own,
        converged=quality.values[converged],
        worst=worst,
        loss=losses[worst],
        passed=not failed,
        converged_enough=len(ladder) > 1 and is_converged(ladder[-2]),
        critical_step=span / good[-1] if good else math.nan,
        entropy_ratio=max(ratios.values(), default=None),
        entropy_worst=max(ratios, key=lambda at: ratios[at], default=None),
        entropy_tolerance=None if entropies is None else entropies.most,
    )


def fineness(at: Manifestation) -> tuple[int, int]:
    """Steps, and then order: the largest is the solver to trust."""
    return at.counted, get_tableau(at.scheme).order


def _able(values: Iterable[Manifestation], trained: Manifestation) -> list[Manifestation]:
    """Fixed solvers of the trained order or a higher one, from coarse to fine."""
    order = get_tableau(trained.scheme).order
    return sorted((at for at in values if not at.adaptive and get_tableau(at.scheme).order >= order), key=fineness)


@checked
def critical_training_step(passed: Mapping[Count, bool], span: Positive = 1.0) -> tuple[float, float]:
    """Between which training steps models stop being ODEs (Ott table 1).

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
