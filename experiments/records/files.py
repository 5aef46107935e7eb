"""Plain files of runs and scripts: JSON that is whole or not there, and the folder that results go to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class RunError(Exception):
    """A run that cannot start or go on; the message says what to do."""


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, path)


def destination(name: str, out: Path | None, record: bool) -> Path:
    """The folder of a script's results: runs/<name>, `--out`, or with `--record` results/<name>, which git keeps.

    Raises:
      ValueError: for both at once.
    """
    if record and out is not None:
        raise ValueError(f"out={str(out)!r} beside --record, which writes into results/{name}: give one of them")
    return out or Path("results" if record else "runs") / name


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run, or `None` where there is none."""
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict an epoch; a line cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
