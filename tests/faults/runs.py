"""Runs that are cut off between two file operations, or damaged, and then resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.records.files import RunError, read_manifest
from experiments.train import Options, train
from experiments.training.checkpoints import DamagedError, read_variables
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings
from experiments.training.run import load_run
from tests.faults.tally import Trials, outcome_of
from tests.faults.test_checkpoints import files_of, flip, saved_run, state_of
from tests.faults.test_checkpoints import resumed as restored

CONFIG = Config(
    limit=16, batch_size=8, crop_pad=0, flip=False, model=ContinuousNetSettings(widths=(2,), scheme="euler"), epochs=2,
    refine_epochs=(1,), decay_epochs=(),
)  # fmt: skip
QUIET: dict[str, Any] = {"quiet": True, "checkpoint_seconds": 0.0}
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime", "shutil.rmtree", "shutil.move")
"""What the interpreter tells of before it changes a folder, beside files that it opens to write."""


class Watched:
    """Copies of a folder, each as it was before one of its files was changed; those that differ are kept."""

    def __init__(self, folder: Path, copies: Path):
        self.folder, self.copies, self.seen, self.on = folder, copies, set[str](), True
        self._busy = threading.RLock()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or (event != "open" and event not in CHANGES):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not str(arguments[0]).startswith(str(self.folder)):
            return
        with self._busy:
            self.on = False
            try:
                self._copy()
            finally:
                self.on = True

    def _copy(self) -> None:
        if not self.folder.is_dir():
            return
        key = contents(self.folder)
        if key not in self.seen:
            self.seen.add(key)
            with contextlib.suppress(shutil.Error):  # files that are gone before they are copied
                shutil.copytree(self.folder, self.copies / f"{len(self.seen):05d}")


def contents(folder: Path) -> str:
    """A digest of all names and contents below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        with contextlib.suppress(OSError):
            if path.is_file():
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def whole(folder: Path) -> Any:
    """What a run that nothing happened to comes to."""
    train(CONFIG, Options(**QUIET), folder)
    return found_in(folder)


def found_in(folder: Path) -> Any:
    """Losses and weights of a finished run."""
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["status"] == "finished"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, CONFIG.epochs + 1)), lines
    losses = [line["train_loss"] for line in lines]
    return manifest["results"]["test_loss"], losses, jax.device_get(load_run(folder)[2])


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, bit by bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def resumed(folder: Path, expected: Any) -> tuple[str, str]:
    """Resume a folder, or start there where no run is, and compare what it comes to."""
    try:
        try:
            train(CONFIG, Options(resume=True, **QUIET), folder)
        except RunError as error:
            if "there is no run in" not in str(error):
                return ("clear error" if str(folder) in str(error) else "unclear"), str(error)[:200]
            train(CONFIG, Options(**QUIET), folder)
        return ("right", "") if same(found_in(folder), expected) else ("silent", "other weights")
    except RunError as error:
        return ("clear error" if str(folder) in str(error) else "unclear"), str(error)[:200]
    except Exception as error:
        return "unclear", f"{type(error).__name__}: {str(error)[:200]}"


def crash_states(place: Path, at_most: int | None = None) -> Trials:
    """Every state that a run's folder passes through between two file operations of the interpreter, resumed."""
    expected = whole(place / "whole")
    watched = Watched(place / "run", place / "copies")
    try:
        whole(place / "run")
    finally:
        watched.on = False
    copies = sorted((place / "copies").iterdir())
    step = 1 if at_most is None else max(1, -(-len(copies) // at_most))
    for copy in copies[::step]:
        outcome, what = resumed(copy, expected)
        yield "crash states", outcome, f"state {copy.name} of {len(copies)}: {what}"
        shutil.rmtree(copy)


def flipped_records(place: Path, name: str, n: int, seed: int) -> Trials:
    """One bit of the manifest, or of the metrics, of a run that was stopped, flipped."""
    expected, rng = whole(place / "whole"), np.random.default_rng(seed)
    half = place / "half"
    _stop_early(half)
    content = (half / name).read_bytes()
    for _ in range(n):
        again, bit = shutil.copytree(half, place / "flipped"), int(rng.integers(8 * len(content)))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (again / name).write_bytes(bytes(damaged))
        outcome, what = resumed(again, expected)
        yield f"bits of {name}", outcome, f"bit {bit}: {what}"
        shutil.rmtree(again)


def _stop_early(folder: Path) -> None:
    with contextlib.suppress(RunError):
        timer = threading.Thread(target=_signal_once_saved, args=(folder,))
        timer.start()
        train(CONFIG, Options(**QUIET), folder)
        timer.join()


def _signal_once_saved(folder: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(folder.glob("checkpoints/latest/[0-9]*")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)


def flipped_checkpoints(place: Path, n: int, seed: int) -> Trials:
    """One bit of the newest checkpoint of a run, flipped.

    What reads this checkpoint alone gets what was saved, or an error; a resume, that or the one before.
    """
    folder, rng = saved_run(place / "saved"), np.random.default_rng(seed)
    step = folder / "checkpoints" / "latest" / "3"
    for path in rng.choice(np.array(files_of(step), dtype=object), n // 2):
        again = shutil.copytree(folder, place / "bit")
        bit = int(rng.integers(8 * path.stat().st_size))
        where = f"{path.relative_to(folder)} bit {bit}"
        flip(again / path.relative_to(folder), bit)
        params = state_of(3)["params"]
        read = lambda again=again: read_variables(again / "checkpoints" / "latest" / "3", ("params",))
        is_good = lambda found, params=params: same(found[1]["params"], params)
        outcome, what = outcome_of(read, ("",), is_good, (DamagedError,))
        yield "checkpoint bits, loaded", outcome, f"{where}: {what}"
        is_good = lambda found: found[0] in (2, 3) and same(found[2], state_of(found[0]))
        outcome, what = outcome_of(lambda again=again: restored(again), (str(again),), is_good, (RunError,))
        yield "checkpoint bits, resumed", outcome, f"{where}: {what}"
        shutil.rmtree(again)
