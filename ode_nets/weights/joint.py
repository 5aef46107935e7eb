"""Several weight functions read side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joint:
    """A theta whose named parts are weight functions of their own, each with its own basis.

        theta(t) = {name: part(t)}

    Args:
      parts: weight functions over one domain.

    Raises:
      ValueError: if there is no part or the domains differ.
    """

    parts: Mapping[str, Any]

    @property
    def domain(self) -> tuple[float, float]:
        """The interval that all parts are defined on."""
        domains = {part.domain for part in self.parts.values()}
        if len(domains) != 1:
            raise ValueError(f"parts have the domains {sorted(domains)}: expected one domain for all")
        return domains.pop()

    @property
    def continuous(self) -> bool:
        """Whether no part has jumps."""
        return all(part.continuous for part in self.parts.values())

    def at(self, t: Any, side: Any = 1) -> PyTree:
        """Every part at time t."""
        return {name: part.at(t, side) for name, part in self.parts.items()}

    def n_sections(self, n_steps: int) -> int:
        """Sections that all parts can be cut into."""
        return math.gcd(*(part.n_sections(n_steps) for part in self.parts.values()))

    def on_grid(self, n_steps: int, c: Sequence[Fraction | float], n_sections: int) -> tuple[PyTree, Any]:
        """Every part on the grid; see `WeightFunction.on_grid`."""
        grids = {name: part.on_grid(n_steps, c, n_sections) for name, part in self.parts.items()}

        def read(section: PyTree, step: Any, i: int) -> PyTree:
            return {name: grids[name][1](section[name], step, i) for name in grids}

        return {name: sections for name, (sections, _) in grids.items()}, read

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """Every part at one stage node; see `WeightFunction.at_node`."""
        return {
            name: part.at_node(step, n_steps, numerator, denominator) for name, part in self.parts.items()
        }
