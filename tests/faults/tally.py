"""Faults that were tried and what came of them: right, a clear error, or what must not be, silence and confusion."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OUTCOMES = ("right", "clear error", "silent", "unclear")
KEPT = 20
"""Findings of each category that are written down in full."""


@dataclasses.dataclass
class Tally:
    """Counts by category, and what was found to be silent or unclear."""

    counts: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    findings: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    revisions: dict[str, set[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(set))

    def add(self, category: str, outcome: str, what: str) -> None:
        """One trial."""
        assert outcome in OUTCOMES, outcome
        self.counts[category][outcome] += 1
        if outcome in ("silent", "unclear") and len(self.findings[category]) < KEPT:
            self.findings[category].append(f"{outcome}: {what}")

    def take(self, record: dict[str, Any], revision: str | None) -> None:
        """The trials of a record, which were made by a revision."""
        for row in record["rows"]:
            self.counts[row["category"]].update({outcome: row[outcome] for outcome in OUTCOMES})
            self.revisions[row["category"]].add(revision or "unknown")
        for category, findings in record["findings"].items():
            self.findings[category] += findings[: KEPT - len(self.findings[category])]

    @property
    def tried(self) -> int:
        """Trials of all categories."""
        return sum(sum(row.values()) for row in self.counts.values())

    def bad(self) -> list[str]:
        """What must not be."""
        return [finding for several in self.findings.values() for finding in several]

    def rows(self) -> list[dict[str, Any]]:
        """A row a category: tried, and how many came to what."""
        names = sorted(self.counts)
        return [
            {"category": name, "tried": sum(self.counts[name].values())}
            | {outcome: self.counts[name][outcome] for outcome in OUTCOMES}
            | ({"revisions": sorted(self.revisions[name])} if self.revisions[name] else {})
            for name in names
        ]

    def table(self) -> str:
        """The rows as text."""
        head = ["category", "tried", *OUTCOMES]
        lines = [head, *([str(row[name]) for name in head] for row in self.rows())]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)

    def record(self, **more: Any) -> dict[str, Any]:
        """All of it, for JSON."""
        return more | {"tried": self.tried, "rows": self.rows(), "findings": dict(self.findings)}

    def write(self, path: Path, **more: Any) -> None:
        """Write the record."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record(**more), indent=2) + "\n")


Trials = Iterator[tuple[str, str, str]]
"""`(category, outcome, what was tried and what came of it)`."""


def outcome_of(
    run: Callable[[], Any], named: tuple[str, ...], good: Callable[[Any], bool], errors: Any
) -> tuple[str, str]:
    """What came of a trial.

    Args:
      run: what is tried.
      named: words of which a clear error says one.
      good: whether a result is right, or tells of the fault.
      errors: kinds of a clear error.
    """
    try:
        result = run()
    except errors as error:
        text = str(error)
        clear = any(name.lower() in text.lower() for name in named) and "Traceback" not in text
        return ("clear error" if clear else "unclear"), f"{type(error).__name__}: {text[:200]}"
    except Exception as error:
        return "unclear", f"{type(error).__name__}: {str(error)[:200]}"
    return ("right", "") if good(result) else ("silent", f"gave a {type(result).__name__}")
