"""Which manifestation of a model is meant: a scheme on a grid, as a key to look measures up by."""

from __future__ import annotations

import dataclasses

import numpy as np

from ode_nets.arguments import Count, Positive, checked, is_real, shown
from ode_nets.integrate import Adaptive, FixedStep


@dataclasses.dataclass(frozen=True, repr=False)
@checked
class Manifestation:
    """One manifestation of a trained model: the scheme and the grid that it is evaluated with.

        `ContinuousNet[scheme, n_steps][theta]`               (ContinuousNet sec. 5.3, eq. 27)

    Args:
      scheme: the name of a scheme, `solver.scheme.name`.
      n_steps: steps of a uniform grid; of an adaptive one the steps that were accepted, or `None` if not counted.
      rtol: relative tolerance of an adaptive grid; `None` for a uniform one.

    Raises:
      ValueError: for a scheme without a name, steps that are not an integer of at least 1, a tolerance that is not
        above 0, and a uniform grid without steps.

    Example:
        >>> own, finer = Manifestation("rk4", 4), Manifestation.of(FixedStep("rk4", 8))
        >>> accuracies = {own: 0.98, finer: 0.97, Manifestation("dopri5", 7, rtol=1e-3): 0.97}
        >>> print(own)
        rk4 with 4 steps
    """

    scheme: str
    n_steps: Count | None = None
    rtol: Positive | None = None

    def __post_init__(self) -> None:
        n, rtol = self.n_steps, self.rtol
        if not self.scheme:
            raise ValueError(f"scheme={self.scheme!r}: expected a name, as `solver.scheme.name` has it")
        if n is None and rtol is None:
            raise ValueError("n_steps and rtol are both None: expected the steps of a uniform grid, or a tolerance")

    @classmethod
    @checked
    def of(cls, solver: FixedStep | Adaptive, n_accepted: Count | None = None) -> Manifestation:
        """That of a `FixedStep`, or of an `Adaptive` that accepted so many steps.

        Raises:
          ValueError: for another solver, and for a relative tolerance that is not one number.
        """
        if not solver.estimates:
            return cls(solver.scheme.name, int(solver.n_steps))
        if not is_real(solver.rtol) or np.ndim(solver.rtol):
            raise ValueError(f"rtol={shown(solver.rtol)}: expected one number, by which a manifestation is known")
        return cls(solver.scheme.name, n_accepted, float(solver.rtol))

    @property
    def adaptive(self) -> bool:
        """Whether the steps follow a tolerance."""
        return self.rtol is not None

    @property
    def counted(self) -> int:
        """Steps of the grid; 0 where those of an adaptive one were not counted."""
        return self.n_steps or 0

    def __repr__(self) -> str:
        steps = "" if self.n_steps is None else f", {self.n_steps}"
        return f"Manifestation({self.scheme!r}{steps}" + (f", rtol={self.rtol:g})" if self.adaptive else ")")

    def __str__(self) -> str:
        steps = "" if self.n_steps is None else f" with {self.n_steps} step{'s' * (self.n_steps != 1)}"
        return f"{self.scheme}{steps}" + ("" if self.rtol is None else f" at rtol {self.rtol:.3g}")
