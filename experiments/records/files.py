"""Plain files of runs and scripts: JSON that is whole or not there, and the folder that results go to.

A run lies in a folder of this machine or in a bucket: `place` makes its path, and what the two do in different ways is
done by the functions below it, from `in_bucket` to `holds_files`. All else goes to this machine alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.records import buckets
from experiments.records.digests import sealed, unsealed


class RunError(Exception):
    """A run that cannot start or go on; the message says what to do."""


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file whole or not at all."""
    make_folder(path.parent)
    write(path, (json.dumps(record, indent=2) + "\n").encode())


def destination(name: str, out: Path | None, record: bool) -> Path:
    """The folder of a script's results: runs/<name>, `--out`, or with `--record` results/<name>, which git keeps.

    Raises:
      ValueError: for both at once, and for an address such as gs://.
    """
    if record and out is not None:
        raise ValueError(f"out={str(out)!r} beside --record, which writes into results/{name}: give one of them")
    return local(out) if out else Path("results" if record else "runs") / name


def expand(options: Any, *names: str, to: Callable[[Any], Path] | None = None) -> None:
    """Make settings of a frozen dataclass that are paths, or tuples of them, `local`; by default all that are.

    Args:
      options: the dataclass.
      *names: of its settings.
      to: in the place of `local`, `place` for folders of runs.
    """
    # What `place` has made is left as it is.
    to = to or (lambda path: local(path) if isinstance(path, str | Path) else path)
    for name in names or [field.name for field in dataclasses.fields(options)]:
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            expand(value)
        elif isinstance(value, tuple) and (names or any(isinstance(path, Path) for path in value)):
            object.__setattr__(options, name, tuple(map(to, value)))
        elif isinstance(value, Path) or (names and value is not None):
            object.__setattr__(options, name, to(value))


def local(path: str | Path) -> Path:
    """A path with the home folder in the place of `~`.

    Raises:
      ValueError: for an address such as gs://, which would be taken for a folder of that name.
    """
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(path)):
        raise ValueError(
            f"{match[1]}://{str(path)[match.end() :]} is an address of {match[1]}, expected a place on this machine "
            "(or gs://BUCKET/FOLDER, for runs of experiments.train alone): mount it, as gcsfuse does with buckets, and "
            "give the folder that it is mounted to"
        )
    return Path(path).expanduser()


def place(path: str | Path) -> Path:
    """The folder of a run: `local`, or for gs://BUCKET/FOLDER a path of etils, which nothing is asked of yet.

    Raises:
      ValueError: for a bucket without a folder, and for other addresses.
    """
    # pathlib makes one slash of two.
    if match := re.match(r"gs:/+([^/]*)/*(.*)", str(path)):
        if not all(match.groups()):
            raise ValueError(f"{match[0]!r} names no folder in a bucket: expected gs://BUCKET/FOLDER")
        return buckets.path(f"gs://{match[1]}/{match[2]}")
    return local(path)


def reached(path: str | Path) -> Path:
    """`place` of a run that is there, seen to answer.

    Raises:
      RunError: for an address that is none, and for a bucket that cannot be read.
    """
    try:
        folder = place(path)
        if in_bucket(folder):
            buckets.reach(folder)
    except (ValueError, buckets.BucketError) as error:
        raise RunError(str(error)) from error
    return folder


def in_bucket(path: Path) -> bool:
    """Whether `place` made a path of a bucket."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """A path that stays the same whatever the working folder becomes."""
    return path if in_bucket(path) else path.absolute()


def above(path: Path) -> Sequence[Path]:
    """The folders that a path lies in, from the nearest to the root, or to those of a bucket."""
    return [folder for folder in path.parents if len(folder.parts) > 3] if in_bucket(path) else path.absolute().parents


def results_in(folder: Path, name: str) -> Path:
    """The folder of results in that of a run; for a run in a bucket runs/BUCKET/FOLDER/<name>, as they are local."""
    return Path("runs", *folder.parts[2:], name) if in_bucket(folder) else folder / name


def make_folder(folder: Path) -> None:
    """Make a folder where it is not there; a bucket has none to make."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def is_folder(folder: Path) -> bool:
    """Whether there is a folder, which is a question that a bucket does not have: any may be written to."""
    return in_bucket(folder) or folder.is_dir()


def answering(path: Path) -> contextlib.AbstractContextManager[None]:
    """Within it, what a bucket fails with is an `OSError`, as for a disk."""
    return buckets.answering(path) if in_bucket(path) else contextlib.nullcontext()


def read(path: Path) -> bytes:
    """What a file holds.

    Raises:
      OSError: where it cannot be read; `FileNotFoundError` where there is none.
    """
    return buckets.read(path) if in_bucket(path) else path.read_bytes()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is there.

    Raises:
      OSError: where it cannot be written.
    """
    if in_bucket(path):
        buckets.write(path, content)
    else:
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_bytes(content)
        os.replace(partial, path)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; in a bucket, by writing it anew.

    Raises:
      OSError: where it cannot be written.
    """
    if in_bucket(path):
        before = b""
        with contextlib.suppress(FileNotFoundError):
            before = read(path)
        write(path, before + content)
    else:
        with path.open("ab") as file:
            file.write(content)


def remove_tree(folder: Path) -> None:
    """Delete a folder with all in it, if it is there."""
    if in_bucket(folder):
        buckets.remove_tree(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Give a folder another name, beside folders that may not be there yet."""
    if in_bucket(source):
        buckets.move(source, target)
    else:
        target.parent.mkdir(exist_ok=True)
        os.rename(source, target)


def holds_files(folder: Path) -> bool:
    """Whether there is a file in a folder or below it; empty folders are what a start that was killed leaves."""
    if in_bucket(folder):
        return buckets.holds_files(folder)
    return any(path.is_file() for path in folder.rglob("*"))


def check_place(folder: Path) -> None:
    """See whether a run can be written into a folder and read again.

    Raises:
      RunError: for an address of neither this machine nor a bucket, for a name that checkpoints are not found under
        again, where a file is in the way, and for a bucket that cannot be written into.
    """
    try:
        folder = place(folder)
        if bad := sorted(set("[]*?") & set(str(absolute(folder)))):
            found = f"{folder} has {' '.join(bad)} in its name"
            raise RunError(f"{found}, which checkpoints are not found under: rename it")
        if in_bucket(folder):
            buckets.reach(folder, to_write=True)
            return
    except (ValueError, buckets.BucketError) as error:
        raise RunError(str(error)) from error
    for on_the_way in (folder.absolute(), *above(folder)):
        if on_the_way.exists() and not on_the_way.is_dir():
            raise RunError(f"{on_the_way} is a file, expected the folder of a run, or none yet")


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
        manifest = json.loads(read(path))
    except FileNotFoundError:
        return None
    except buckets.BucketError as error:
        raise RunError(str(error)) from error
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
        lines = read(path).splitlines()
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
