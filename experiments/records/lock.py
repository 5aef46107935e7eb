"""One process at a time writes into a run's folder."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from experiments.records.files import RunError, in_bucket, make_folder, read, write

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

NAME = "lock.json"
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Where schedulers say which job this is; a requeued one keeps its own."""


class Lock:
    """A run's folder, held for as long as this process lives or until `release`.

    The system lets go of the lock with the process, however that ends, so that a file that is left behind holds nobody
    up. In a bucket, and where else a file system has no locks, the process that is named in the file counts as alive
    unless it ran on this host and is gone, or belonged to the job that is running now, requeued.

    Args:
      folder: of the run; made if it is not there.

    Raises:
      RunError: if another process holds it; it names host and process.
    """

    def __init__(self, folder: Path):
        make_folder(folder)
        self._file: BinaryIO | None = _opened(folder / NAME)
        refuse_if_held(folder, self._file)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(_this_process()).encode() + b"\n")
        self._file.flush()

    def release(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            # A file that stays, empty, cannot be taken away from under one who waits for it.
            with contextlib.suppress(OSError):
                self._file.truncate(0)
                self._file.flush()
            self._file.close()
            self._file = None


def check_free(folder: Path) -> None:
    """Raises:
    RunError: if another process holds a run's folder.
    """
    path = folder / NAME
    if path.exists():
        with contextlib.suppress(OSError), _opened(path) as file:
            refuse_if_held(folder, file)


def refuse_if_held(folder: Path, file: BinaryIO) -> None:
    """Take the lock of an open file, which is let go of when it is closed.

    Raises:
      RunError: if another process has it; the file is closed.
    """
    file.seek(0)
    try:
        other = json.loads(file.read() or b"{}")
        other = other if isinstance(other, dict) else {}
    except ValueError:
        other = {}
    if _held(file, other):
        file.close()
        names = ("host", "pid", "started")
        host, pid, started = (other.get(name, "unknown") for name in names)
        raise RunError(
            f"{folder} is in use by process {pid} on {host}, which started {started}: wait for it or end it, or "
            f"start elsewhere with --run-dir; if it is gone, delete {folder / NAME}"
        )


class _Object(io.BytesIO):
    """A file in a bucket, which is read when it is opened and written whole when it is flushed."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        with contextlib.suppress(FileNotFoundError):
            self.write(read(path))

    def flush(self) -> None:
        write(self._path, self.getvalue())


def _opened(path: Path) -> BinaryIO:
    if in_bucket(path):
        return _Object(path)
    # Neither truncated, as another may hold it, nor given on to processes that this one starts.
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")


def _held(file: BinaryIO, other: dict[str, Any]) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return True
    mine = _this_process()
    if not other or other == mine or (other.get("job") is not None and other.get("job") == mine["job"]):
        return False
    return other.get("host") != mine["host"] or other.get("born") == _born(other.get("pid"))


def _this_process() -> dict[str, Any]:
    job = next((os.environ[name] for name in JOBS if name in os.environ), None)
    pid, started = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "started": started, "job": job}


def _born(pid: Any) -> str | None:
    """When a process of this host began, in ticks since boot, as another one may have its number by now."""
    try:
        # The name of a program, in brackets, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
