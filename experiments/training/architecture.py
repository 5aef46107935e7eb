"""What the settings of every architecture are, and the bases that they name."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn

from ode_nets.weights import Basis, Chebyshev, Fourier, Legendre, PiecewiseConstant, PiecewiseLinear

BasisName = Literal["piecewise_constant", "piecewise_linear", "legendre", "chebyshev", "fourier"]
BASES: dict[str, type[Basis]] = {
    "piecewise_constant": PiecewiseConstant,
    "piecewise_linear": PiecewiseLinear,
    "legendre": Legendre,
    "chebyshev": Chebyshev,
    "fourier": Fourier,
}


def basis_name(basis: Basis) -> str:
    """The name of a basis, by its kind; that of the class for one that has none here."""
    return next((name for name, kind in BASES.items() if type(basis) is kind), type(basis).__name__)


@dataclasses.dataclass(frozen=True)
class ModelSettings(abc.ABC):
    """Settings of one architecture.

    Attributes:
      REFINES: whether `build` has levels, at each of which coefficients and steps are doubled.
      ADAPTS: whether its solver can be adapted while it trains.
      INTEGRATES: whether its blocks integrate quantities along their solutions, for training to penalize.
    """

    REFINES: ClassVar[bool] = False
    ADAPTS: ClassVar[bool] = False
    INTEGRATES: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        """The network after `level` refinements."""

    def check(self, name: str, allowed: str, good: bool) -> None:
        """Refuse a value.

        Raises:
          ValueError: unless it is good; names the key and what is allowed.
        """
        if not good:
            raise ValueError(f"model.{name}={getattr(self, name)!r}: expected {allowed}")

    def check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        """Refuse what is none of some values."""
        self.check(name, f"one of {', '.join(map(str, choices))}", getattr(self, name) in choices)

    def check_counts(self, *names: str) -> None:
        """Refuse numbers below 1."""
        for name in names:
            self.check(name, "at least 1", getattr(self, name) >= 1)

    def check_widths(self) -> None:
        """Make a tuple of `widths`, and refuse none and zeros."""
        # A list, which JSON has in a tuple's place, could not be hashed.
        widths = tuple(self.widths)  # type: ignore[attr-defined]
        object.__setattr__(self, "widths", widths)
        self.check("widths", "one width or more, each at least 1", bool(widths) and min(widths) >= 1)
