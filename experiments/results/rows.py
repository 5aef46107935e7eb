"""A row of the table of results: text with places that are filled from a JSON, so that no number is typed in."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PLACE = re.compile(r"\{([^{}]*)\}")
REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "median": np.median,
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
    "last": lambda values: values[-1],
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure or table of a paper.

    Attributes:
      of: the figure or table; what: what it shows; paper: the paper's values, quoted.
      source: the JSON below the repository's root that `ours`, `reduced`, `seeds` and `minutes` are filled from; empty
        if it was not run.
      ours: what was measured, with places `{path|operation|...:format}`, see `fill`.
      reduced: what is smaller than in the paper; empty if it was run in full.
      seeds, minutes: how many seeds, and how long it took.
      command: that measures it; empty where there is none yet.
      why: a sentence where ours contradicts the paper, as far as an experiment shows it.
      takes: why it was not run, and how long it would take.
    """

    of: str
    what: str
    paper: str
    command: str
    source: str = ""
    ours: str = ""
    reduced: str = ""
    seeds: str = ""
    minutes: str = ""
    why: str = ""
    takes: str = ""

    def __post_init__(self) -> None:
        if bool(self.source) != bool(self.ours) or bool(self.source) == bool(self.takes):
            raise ValueError(f"{self.of}: expected a source and ours, or how long it takes to run")

    @property
    def status(self) -> str:
        """`in full`, `reduced` or `not run`."""
        return "not run" if not self.source else "reduced" if self.reduced else "in full"


def fill(text: str, record: Any) -> str:
    """A text with its places filled from a record.

    A place is `{path|operation|...:format}`. A path has steps parted by `/`: a key, a number in a list, `*` for all
    members, `[key=value&...]` for those members of a list that have them. Operations are `median`, `mean`, `std`,
    `min`, `max`, `sum`, `count`, `last`, and `x FACTOR`.

    Raises:
      ValueError: where nothing is found.

    Example:
        fill("{rows/[n=2]/accuracy|mean|x 100:.1f} %", {"rows": [{"n": 2, "accuracy": [0.5, 0.7]}]})  # "60.0 %"
    """

    def place(match: re.Match[str]) -> str:
        path, *operations = match[1].rpartition(":")[0].split("|") if ":" in match[1] else match[1].split("|")
        value: Any = find(record, path)
        for operation in operations:
            if operation.startswith("x "):
                value = np.asarray(value) * float(operation[2:])
            else:
                value = len(value) if operation == "count" else REDUCTIONS[operation](np.asarray(value).ravel())
        if isinstance(value, list | np.ndarray):
            if np.size(value) != 1:
                raise ValueError(
                    f"{{{match[1]}}}: {np.size(value)} values; expected one, or an operation that gives one"
                )
            value = np.ravel(np.asarray(value))[0]
        return "none" if value is None else format(value, match[1].rpartition(":")[2] if ":" in match[1] else "")

    return PLACE.sub(place, text)


def find(record: Any, path: str) -> list[Any]:
    """All values at a path, lists among them flat."""
    nodes = [record]
    for step in path.split("/"):
        if step == "*":
            nodes = [each for node in nodes for each in (node.values() if isinstance(node, dict) else node)]
        elif step.startswith("["):
            wanted = dict(pair.split("=") for pair in step[1:-1].split("&"))
            nodes = [
                each
                for node in nodes
                for each in node
                if all(str(each.get(key)) == value for key, value in wanted.items())
            ]
        else:
            # Members that have no such key are left out, as the first row of a column of orders.
            nodes = [
                node[int(step)] if isinstance(node, list) else node[step]
                for node in nodes
                if isinstance(node, list) or step in node
            ]
    flat = [each for node in nodes for each in (node if isinstance(node, list) else [node])]
    if not flat:
        raise ValueError(f"{path}: nothing there")
    return flat


@functools.cache
def load(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def made(record: Mapping[str, Any]) -> tuple[str, str]:
    """Device and revision of a record: of its own environment, or of the last row that has one."""
    inside = [row["environment"] for row in _values(record.get("rows", {})) if "revision" in row.get("environment", {})]
    environment = inside[-1] if inside else record["environment"]
    return f"{environment['n_cores']} x {environment['cpu']}", environment["revision"]


def _values(rows: Any) -> list[Any]:
    return list(rows.values()) if isinstance(rows, dict) else [row for row in rows if isinstance(row, dict)]


def render(papers: Mapping[str, Sequence[Row]], root: Path) -> str:
    """The table of every paper in Markdown, and how many rows were run."""
    statuses = [row.status for rows in papers.values() for row in rows]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("in full", "reduced", "not run"))
    lines = [
        f"\n{len(statuses)} figures and tables: {counts}. Numbers of ours are read from the JSON that a row links."
    ]
    for paper, rows in papers.items():
        lines += [f"\n### {paper}\n", "| what | the paper | here | how | command |", "|---|---|---|---|---|"]
        lines += [line(row, root) for row in rows]
    return "\n".join(lines) + "\n"


def line(row: Row, root: Path) -> str:
    """A row in Markdown."""
    if not row.source:
        here, how = f"not run: {row.takes}", ""
    else:
        record = load(root / row.source)
        device, revision = made(record)
        link = "../" + row.source if not row.source.startswith("results/") else row.source.removeprefix("results/")
        parts = [fill(row.reduced, record) if row.reduced else "in full"]
        parts += [fill(row.seeds, record)] if row.seeds else []
        parts += [f"{fill(row.minutes, record)} min"] if row.minutes else []
        parts += [device, revision[:7]]
        here = f"[{fill(row.ours, record)}]({link})" + (f". {row.why}" if row.why else "")
        how = "; ".join(parts)
    cells = [f"**{row.of}** {row.what}", row.paper, here, how, f"`{row.command}`" if row.command else "none yet"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
