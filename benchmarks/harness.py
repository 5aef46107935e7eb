"""What benchmarks share: one way to time programs, one JSON record each, one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.records import tables
from experiments.records.environment import environment
from experiments.records.timing import Measurement, compare, measure

__all__ = ["Measurement", "compare", "default_path", "measure", "show", "write"]


def default_path(name: str) -> Path:
    """Where a benchmark's record goes that is told nothing else; accelerators overwrite no CPU's."""
    return Path(f"benchmarks/results/{name}_{jax.devices()[0].platform}.json")


def write(path: str | Path, name: str, results: Any) -> Path:
    """Writes one benchmark's record: its name, the environment and the results, as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "environment": environment(), "results": results}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    return path


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table, the first column to the left and numbers to three digits or more."""

    def text(cell: Any) -> str:
        if not isinstance(cell, float):
            return str(cell)
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:.0f}"

    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(text, row))
    # In a file no number is cut off for want of room.
    tables.show(table, Console(highlight=False))
