"""Plain files of runs and scripts: JSON that is whole or not there, and the folder that results go to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.records.digests import sealed, unsealed


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
      ValueError: for both at once, and for an address such as gs://.
    """
    if record and out is not None:
        raise ValueError(f"out={str(out)!r} beside --record, which writes into results/{name}: give one of them")
    return local(out) if out else Path("results" if record else "runs") / name


def expand(options: Any, *names: str) -> None:
    """Make settings of a frozen dataclass that are paths, or tuples of them, `local`; by default all that are."""
    for name in names or [field.name for field in dataclasses.fields(options)]:
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            expand(value)
        elif isinstance(value, tuple) and (names or any(isinstance(path, Path) for path in value)):
            object.__setattr__(options, name, tuple(map(local, value)))
        elif isinstance(value, Path) or (names and value is not None):
            object.__setattr__(options, name, local(value))


def local(path: str | Path) -> Path:
    """A path with the home folder in the place of `~`.

    Raises:
      ValueError: for an address such as gs://, which would be taken for a folder of that name.
    """
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(path)):
        raise ValueError(
            f"{match[1]}://{str(path)[match.end() :]} is an address of {match[1]}, expected a place on this machine: "
            "mount the bucket, as with gcsfuse, and give the folder it is mounted to"
        )
    return Path(path).expanduser()


def check_place(folder: Path) -> None:
    """See whether a run can be written into a folder and read again.

    Raises:
      RunError: for an address such as gs://, for a name that checkpoints are not found under again, and where a file
        is in the way.
    """
    try:
        local(folder)
    except ValueError as error:
        raise RunError(str(error)) from error
    if bad := sorted(set("[]*?") & set(str(folder.absolute()))):
        raise RunError(f"{folder} has {' '.join(bad)} in its name, which checkpoints are not found under: rename it")
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.exists() and not place.is_dir():
            raise RunError(f"{place} is a file, expected the folder of a run, or none yet")


def check_writable(folder: Path, remedy: str) -> None:
    """See whether anything can be written in a folder, or where it is to be made.

    Raises:
      RunError: if not, with what to do.
    """
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise RunError(f"nothing can be written in {place} ({error.strerror}): {remedy}") from error


def say(text: str) -> None:
    """One line on standard error; where none can be written, it is left out and nothing else happens."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a run, whole or not at all, with its own digest."""
    write_json(folder / "manifest.json", sealed(manifest))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run without its digest, or `None` where there is none.

    One that has no digest, of an earlier version or edited by hand, is taken as it is, and that is said.

    Raises:
      RunError: for one that cannot be read, that is not what a run writes, or not what its digest was made of.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise RunError(f"{folder} is not a folder: give the folder of a run") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): {_REPAIR}") from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} holds a {type(manifest).__name__}, expected a record of a run: {_REPAIR}")
    if "sha256" in manifest:
        try:
            manifest = unsealed(manifest)
        except ValueError as error:
            raise RunError(f"{path} is damaged or was edited, as {error}: {_REPAIR}; {_EDITED}") from error
    else:
        _say_not_checked(path)
    expected = {"status": str, "config": dict}
    if wrong := [key for key, kind in expected.items() if not isinstance(manifest.get(key), kind)]:
        raise RunError(f"{path} lacks {' and '.join(wrong)}, or holds something else there: {_REPAIR}")
    kinds = {"results": dict, "resumed": list}
    for key, kind in kinds.items():
        if not isinstance(manifest.setdefault(key, kind()), kind):
            raise RunError(f"{path} has {key}={manifest[key]!r}, expected a {kind.__name__}: {_REPAIR}")
    return manifest


_REPAIR = "put back a copy, or start anew with --overwrite"
_EDITED = 'to keep what was edited by hand, delete its entry "sha256"'


@functools.cache
def _say_not_checked(path: Path) -> None:
    say(f'{path} has no entry "sha256": it is taken as it is, unchecked')


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict an epoch; a line that is damaged, as by a kill, is left out and named."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    records, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no record of a step")
            records.append(record)
        except ValueError:
            damaged.append(number)
    if damaged:
        say(f"{path}: line {', '.join(map(str, damaged[:5]))} of {len(lines)} cannot be read and is left out")
    return records
