"""How sure a verdict is that rests on a finite number of test samples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Real

from ode_nets.arguments import NotNegative, checked
from ode_nets.validity.exchange import Exchange

Samples = Real[np.ndarray, "n"]
Hits = Bool[np.ndarray, "n"] | Samples


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Standard errors of what an exchange test compared, over the samples that it was given.

    They speak of the samples alone: another seed of training, or another machine, gives another network, which may
    differ by more.

    Attributes:
      n_samples: labelled test samples.
      loss: standard error of the accuracy that the worst solver loses, a fraction. Both solvers see the same samples,
        so it is that of the difference sample by sample, and at least 1 / n_samples.
      entropy_ratio: that of the largest ratio of cross-entropies.
      certain: whether the verdict would be the same two standard errors further, each way.
    """

    n_samples: int
    loss: float
    entropy_ratio: float
    certain: bool


@checked
def uncertainty(
    test: Exchange, *, hits: tuple[Hits, Hits], entropies: tuple[Samples, Samples], floor: NotNegative
) -> Uncertainty:
    """The uncertainty of an exchange test of accuracies and cross-entropies.

        se(loss)^2 = var(hit_own - hit_worst) / n,    se(ratio)^2 = var(e_worst - ratio e_own) / (n mean(e_own)^2)

    the second by linearization of a ratio of means over the same samples.

    Args:
      test: what was found.
      hits: of each sample, whether it was classified rightly as trained and by `test.worst`.
      entropies: of each sample, as trained and by `test.entropy_worst`.
      floor: cross-entropies below it counted as it.

    Example:
        >>> import numpy as np
        >>> from ode_nets.validity import Manifestation, Quality, exchange, uncertainty
        >>> few, many = Manifestation("euler", 4), Manifestation("euler", 8)
        >>> found = exchange(Quality({few: 0.9, many: 0.7}, "accuracy"), few)
        >>> own, other = np.arange(100) < 90, np.arange(100) < 70
        >>> sure = uncertainty(found, hits=(own, other), entropies=(np.ones(100), np.ones(100)), floor=0.01)
        >>> round(sure.loss, 3), sure.certain
        (0.04, True)
    """
    own, worst = (np.asarray(each, float) for each in hits)
    n = len(own)
    loss = max(float((own - worst).std()) / math.sqrt(n), 1 / n)
    base, other = (np.asarray(each, float) for each in entropies)
    scale = max(float(base.mean()), floor)
    ratio = max(float(other.mean()), floor) / scale
    spread = other - ratio * base if scale > floor else other
    error = float(spread.std()) / (math.sqrt(n) * scale)
    distances = [(test.loss - test.tolerance, loss)]
    if test.entropy_ratio is not None and test.entropy_tolerance is not None:
        distances.append((test.entropy_ratio - test.entropy_tolerance, error))
    # A model is tied by one of the two, and an ODE by both.
    passes = [distance <= -2 * each for distance, each in distances]
    fails = [distance > 2 * each for distance, each in distances]
    return Uncertainty(n, loss, error, all(passes) if test.passed else any(fails))
