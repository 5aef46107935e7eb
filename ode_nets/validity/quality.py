"""How good each manifestation of a model is, and how two qualities are compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from ode_nets.arguments import NotNegative, Numbers, Positive, checked
from ode_nets.remanifest import Manifestation
from ode_nets.validity.convergence import ratio

Measure = Literal["accuracy", "error", "disagreement", "cross_entropy"]
TOLERANCES: dict[str, float] = {"accuracy": 0.1, "error": 3.0, "disagreement": 0.05, "cross_entropy": 3.0}
"""Default tolerances: 0.1 is Ott's (algorithm 1), the others are ours."""
ENTROPY_FLOOR = 0.01
"""Cross-entropy below which a network is sure of everything: the true class has a probability of 0.99."""


@dataclasses.dataclass(frozen=True)
@checked
class Quality:
    """One number a manifestation, and how two of them are compared.

    Args:
      values: by manifestation.
      measure: `"accuracy"` (a fraction; higher is better, differences are compared), `"error"` or
        `"cross_entropy"` (lower is better, ratios are compared), or `"disagreement"`: relative distance of outputs
        from the finest manifestation's, which needs neither labels nor truth and tells only whether the trained
        outputs are those of the flow.
      tolerance: largest loss; `None` for 0.1 of accuracy, a factor of 3, or 0.05.
      floor: errors below it count as it, see `rounding`; `None` for 0, and for 0.01 of cross-entropies, as
        over-confident networks have 1e-5 and a hundred times that is no wrong answer. For n samples at least 1 / n
        is sensible, which one wrong answer is worth.

    Raises:
      ValueError: for an unknown measure, a tolerance that is not above 0, a floor below 0, or accuracies outside
        [0, 1].

    Example:
      few, many = Manifestation("euler", 4), Manifestation("euler", 8)
      accuracies = Quality({few: 0.98, many: 0.61}, "accuracy")
      accuracies.loss(many, of=few)             # 0.37
    """

    values: Mapping[Manifestation, Numbers]
    measure: Measure
    tolerance: Positive | None = None
    floor: NotNegative | None = None

    def __post_init__(self) -> None:
        finite = [value for value in self.values.values() if math.isfinite(value)]
        if self.measure == "accuracy" and finite and not 0 <= min(finite) <= max(finite) <= 1:
            raise ValueError(
                f"accuracies from {min(finite)} to {max(finite)}: expected fractions in [0, 1], not percent"
            )

    @property
    def most(self) -> float:
        """The largest loss that is tolerated."""
        return TOLERANCES[self.measure] if self.tolerance is None else self.tolerance

    @property
    def least(self) -> float:
        """The floor of errors."""
        return (ENTROPY_FLOOR if self.measure == "cross_entropy" else 0.0) if self.floor is None else self.floor

    def loss(self, at: Manifestation, of: Manifestation) -> float:
        """How much worse one manifestation is than another: a difference, or a ratio of errors.

        Of disagreements the distance of `at` itself. Anything that is not finite loses infinitely much.
        """
        value, own = self.values[at], self.values[of]
        if not math.isfinite(value):
            return math.inf
        if self.measure == "accuracy":
            return own - value
        return value if self.measure == "disagreement" else ratio(value, own, self.least)

    def tolerates(self, loss: float) -> bool:
        """Whether a loss is none to speak of."""
        return loss <= self.most

    def agrees(self, at: Manifestation, converged: Manifestation, own: Manifestation) -> bool:
        """Whether a quality is the converged one within the tolerance, whichever is better."""
        value, last = self.values[at], self.values[converged]
        if not (math.isfinite(value) and math.isfinite(last)):
            return False
        if self.measure in ("error", "cross_entropy"):
            # Errors below the trained one's are as good as it; how far they fall is a matter of rounding.
            least = max(self.values[own], self.least)
            high, low = sorted((max(value, least), max(last, least)), reverse=True)
            return high <= self.most * low
        return abs(value - last) <= self.most
