"""Solvers as frozen data: a scheme and how its steps are chosen."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax

from ode_nets.control import Norm, StepController
from ode_nets.tableaus import Tableau, get_tableau


@dataclasses.dataclass(frozen=True)
class FixedStep:
    """`n_steps` equal steps of an explicit Runge-Kutta scheme.

    Args:
      tableau: a `Tableau` or the key of one (`"euler"`, `"midpoint"`, `"rk4"`, ...).
      n_steps: number of steps, at least 1. Compile time does not depend on it.

    Raises:
      ValueError: for an unknown scheme or fewer than one step.
    """

    tableau: Tableau
    n_steps: int

    def __init__(self, tableau: Tableau | str, n_steps: int):
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise ValueError(f"n_steps={n_steps!r}: expected an integer of at least 1")
        object.__setattr__(self, "tableau", get_tableau(tableau))
        object.__setattr__(self, "n_steps", n_steps)

    @property
    def scheme(self) -> str:
        """Key of the tableau."""
        return self.tableau.name


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Steps of an embedded Runge-Kutta pair, sized by their error.

    Args:
      tableau: an embedded `Tableau` or the key of one: `"heun_euler"`, `"bosh3"`, `"fehlberg21"`, `"dopri5"`,
        `"tsit5"`.
      rtol, atol: relative and absolute tolerance, scalars above 0 (atol may be 0); may be traced.
      first_step: size of the first trial, above 0, may be traced; `None` for Hairer's estimate, which costs
        one evaluation more.
      max_steps: bound on trials, accepted and rejected together.
      min_step: smallest step before the solve gives up; `None` for the spacing of floating-point times.
      controller: next step from error.
      norm: `"batch"` controls the error of the whole state, `"sample"` that of the worst sample
        (leading axis).
      outputs: how asked times `ts` are met: `"clip"` shortens steps to land on them, `"dense"` leaves the
        steps alone and uses the tableau's interpolant.

    Raises:
      ValueError: for tableaus without error weights or, with `"dense"`, without an interpolant, and for
        values out of range.
    """

    tableau: Tableau
    rtol: Any = 1e-3
    atol: Any = 1e-6
    first_step: Any = None
    max_steps: int = 4096
    min_step: float | None = None
    controller: StepController = StepController()
    norm: Norm = "batch"
    outputs: Literal["clip", "dense"] = "clip"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tableau", get_tableau(self.tableau))
        if self.tableau.b_error is None:
            raise ValueError(
                f"tableau {self.tableau.name!r} has no error estimate; use heun_euler, bosh3, fehlberg21, "
                "dopri5 or tsit5, or FixedStep"
            )
        for name, lowest in (
            ("rtol", "above 0"),
            ("atol", "at least 0"),
            ("first_step", "above 0"),
            ("min_step", "above 0"),
        ):
            value = getattr(self, name)
            if value is None or isinstance(value, jax.core.Tracer):
                continue
            if not (value > 0 or (value == 0 and name == "atol")):
                raise ValueError(f"{name}={value}: expected a number {lowest}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: expected at least 1")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm={self.norm!r}: expected 'batch' or 'sample'")
        if self.outputs not in ("clip", "dense"):
            raise ValueError(f"outputs={self.outputs!r}: expected 'clip' or 'dense'")
        if self.outputs == "dense" and self.tableau.b_dense is None:
            raise ValueError(f"tableau {self.tableau.name!r} has no interpolant; use outputs='clip'")

    @property
    def scheme(self) -> str:
        """Key of the tableau."""
        return self.tableau.name

    @property
    def embedded_order(self) -> int:
        """Order q of the embedded solution, whose error is controlled."""
        return self.tableau.embedded_order or 0
