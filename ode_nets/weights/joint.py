"""Several weight functions read side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ode_nets.arguments import Numbers, checked, shown
from ode_nets.integrate import theta_at
from ode_nets.trees import pytree

PyTree = Any


@pytree("parts")
@dataclasses.dataclass(frozen=True)
@checked
class Joint:
    """A theta whose named parts are weight functions of their own, each with its own basis.

        theta(t) = {name: part(t)}

    Args:
      parts: weight functions over one domain.

    Raises:
      ValueError: if there is no part or the domains differ.

    Example:
        >>> force = BasisExpansion(PiecewiseConstant(2), jnp.array([1.0, 3.0]))
        >>> weights = Joint({"drift": Constant(1.0), "force": force})
        >>> {name: float(value) for name, value in weights.at(0.75).items()}
        {'drift': 1.0, 'force': 3.0}
    """

    parts: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(f"parts={self.parts}: expected at least one weight function")
        for name, part in self.parts.items():
            if isinstance(part, type) or not hasattr(part, "at"):
                raise ValueError(f"parts[{name!r}]={shown(part)}: expected a weight function")
        domains = {part.domain for part in self.parts.values() if hasattr(part, "domain")}
        if len(domains) > 1:
            raise ValueError(f"parts have the domains {sorted(domains)}: expected one domain for all")

    @property
    def domain(self) -> tuple[float, float]:
        """The interval that all parts are defined on."""
        domain: tuple[float, float] = next(iter(self.parts.values())).domain
        return domain

    @property
    def constant(self) -> bool:
        """Whether no part depends on time."""
        return all(getattr(part, "constant", False) for part in self.parts.values())

    @property
    def continuous(self) -> bool:
        """Whether no part has jumps."""
        return all(part.continuous for part in self.parts.values())

    @checked
    def at(self, t: Numbers, side: Numbers = 1) -> PyTree:
        """Every part at time t."""
        return {name: part.at(t, side) for name, part in self.parts.items()}

    def read(self, t: Any, side: Any = 1) -> PyTree:
        """Every part at a time that is a number; see `BasisExpansion.read`."""
        return {name: theta_at(part, t, side) for name, part in self.parts.items()}

    def n_sections(self, n_steps: int) -> int:
        """Sections that all parts can be cut into."""
        return math.gcd(*(part.n_sections(n_steps) for part in self.parts.values()))

    def sections(self, n_sections: int) -> Joint:
        """Every part in sections; see `WeightFunction.sections`."""
        return Joint({name: part.sections(n_sections) for name, part in self.parts.items()})

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """Every part at one stage node; see `WeightFunction.at_node`."""
        return {name: part.at_node(step, n_steps, numerator, denominator) for name, part in self.parts.items()}
