"""What an evaluation under other solvers leaves in a run's folder, for those who print or draw it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.records.files import RunError, results_in
from ode_nets.remanifest import Manifestation

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Swapped:
    """The grid of one run: what was measured, and under what."""

    name: str
    trained: Manifestation
    rows: list[Row]
    record: dict[str, Any]

    def error(self, scheme: str) -> tuple[list[int], list[float]]:
        """Step counts and test errors in percent under one scheme."""
        rows = sorted((row["n_steps"], row["accuracy"]) for row in self.rows if row["scheme"] == scheme)
        return [n for n, _ in rows], [100 * (1 - accuracy) for _, accuracy in rows]

    @property
    def own(self) -> Row:
        """The manifestation that was trained."""
        return next(row for row in self.rows if Manifestation(row["scheme"], row["n_steps"]) == self.trained)


def read_swap(folder: Path) -> Swapped:
    """What `evaluate_solvers.swap_run` wrote.

    Raises:
      RunError: if it wrote nothing there.
    """
    path = results_in(folder, "swap") / "swap.json"
    if not path.exists():
        raise RunError(f"there is no {path}; python -m experiments.evaluate_solvers {folder} writes it")
    record = json.loads(path.read_text())
    trained = record["trained"]
    return Swapped(folder.name, Manifestation(trained["scheme"], trained["n_steps"]), record["rows"], record)


def outcome(row: Row) -> str:
    """Accuracy in percent and loss, or how many images diverged."""
    loss = f"{row['diverged']} diverged" if row["loss"] is None else f"{row['loss']:.3f}"
    return f"{100 * row['accuracy']:.2f} {loss}"
