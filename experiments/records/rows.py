"""Rows of a long experiment, written as they are measured, so that an interrupted one goes on with the next."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.records.files import write_json
from experiments.records.progress import working

Row = dict[str, Any]
KEPT = ("date", "device", "n_devices", "cpu", "n_cores", "versions", "revision", "dirty")
"""Of the environment, what every row keeps: those of one file may come from several runs."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """What has been measured with the same settings: a JSON file, and an .npz beside it for arrays."""

    path: Path
    head: dict[str, Any]
    rows: dict[str, Row]
    arrays: dict[str, np.ndarray]
    here: dict[str, Any]
    """The environment of what is measured from now on; the head keeps that of the rows that are there until then."""

    @classmethod
    def open(cls, path: Path, head: dict[str, Any], overwrite: bool = False) -> Rows:
        """The rows that are there, or none.

        Args:
          path: of the JSON file.
          head: what is written before the rows; its `settings` tell whether rows belong together, and its
            `environment` is that of the rows that are measured from now on.
          overwrite: whether to start anew.

        Raises:
          ValueError: where there are rows of other settings, or their arrays cannot be read, without `overwrite`.
        """
        here = head.get("environment", {})
        if overwrite or not path.exists():
            return cls(path, dict(head), {}, {}, here)
        found = json.loads(path.read_text())
        if found["settings"] != json.loads(json.dumps(head["settings"])):
            raise ValueError(f"{path} holds rows of other settings: --overwrite deletes them, --out goes elsewhere")
        head = head | {"environment": found.get("environment", here)}
        if not path.with_suffix(".npz").exists():
            return cls(path, head, found["rows"], {}, here)
        try:
            with np.load(path.with_suffix(".npz")) as arrays:
                return cls(path, head, found["rows"], dict(arrays), here)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path.with_suffix('.npz')} cannot be read ({error}): put back a copy, or measure all rows anew with "
                "--overwrite"
            ) from error

    def fill(self, key: str, measure: Callable[[], tuple[Row, dict[str, np.ndarray]]], console: Console) -> Row:
        """A row, measured and written unless it is there.

        Args:
          key: of the row.
          measure: gives it, with its `seconds` and what is `said` of it, and arrays by name.
          console: where that goes.
        """
        if key not in self.rows:
            with working(f"{self.path.stem} {key}"):
                row, arrays = measure()
            if self.here:
                self.head["environment"] = self.here
            self.rows[key] = row | {"environment": {name: self.here[name] for name in KEPT if name in self.here}}
            self.arrays.update(arrays)
            self.write({})
        row = self.rows[key]
        console.print(f"{self.path.stem} {key}: {row['said']}, {row['seconds']:.0f} s", markup=False)
        return row

    def write(self, summary: dict[str, Any]) -> None:
        """All rows, with a summary of them; arrays first, so that no row is without its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.arrays:
            arrays: dict[str, Any] = self.arrays
            part = self.path.with_suffix(".part.npz")
            np.savez_compressed(part, **arrays)
            part.replace(self.path.with_suffix(".npz"))
        seconds = sum(row["seconds"] for row in self.rows.values())
        write_json(self.path, self.head | summary | {"rows": self.rows, "seconds": seconds})
