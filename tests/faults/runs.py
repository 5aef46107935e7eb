"""Runs that are killed, signalled, cut off between two file operations, or damaged, and then resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.records.files import RunError, read_manifest
from experiments.train import Options, train
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings
from experiments.training.run import load_run
from tests.faults.tally import Trials

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    limit=16, batch_size=8, crop_pad=0, flip=False, model=ContinuousNetSettings(widths=(2,)), epochs=2,
    refine_epochs=(1,), decay_epochs=(),
)  # fmt: skip
COMMAND = [
    *(sys.executable, "-m", "experiments.train", "digits", "--limit", "16", "--batch-size", "8", "--crop-pad", "0"),
    *("--no-flip", "--model.widths", "2", "--epochs", "2", "--refine-epochs", "1", "--decay-epochs", "--quiet"),
    *("--checkpoint-seconds", "0"),
]
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
        key = state_of(self.folder)
        if key not in self.seen:
            self.seen.add(key)
            with contextlib.suppress(shutil.Error):  # files that are gone before they are copied
                shutil.copytree(self.folder, self.copies / f"{len(self.seen):05d}")


def state_of(folder: Path) -> str:
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
    """Test loss and weights of a finished run."""
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["status"] == "finished"
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, CONFIG.epochs + 1)), epochs
    return manifest["results"]["test_loss"], jax.device_get(load_run(folder)[2])


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


def flipped_manifests(place: Path, n: int, seed: int) -> Trials:
    """One bit of the manifest of a run that was stopped, flipped."""
    expected, rng = whole(place / "whole_"), np.random.default_rng(seed)
    half = place / "half"
    _stop_early(half)
    content = (half / "manifest.json").read_bytes()
    for _ in range(n):
        again, bit = shutil.copytree(half, place / "flipped"), int(rng.integers(8 * len(content)))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (again / "manifest.json").write_bytes(bytes(damaged))
        outcome, what = resumed(again, expected)
        if "another config" in what or "the data is not that" in what:
            outcome = "clear error"
        yield "manifest bits", outcome, f"bit {bit}: {what}"
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


def kills(place: Path, n: int, seed: int) -> Trials:
    """Processes that are killed, or told to stop, at random moments, again and again until one ends by itself."""
    expected, rng = whole(place / "uncut"), np.random.default_rng(seed)
    done = 0
    while done < n:
        folder = place / f"killed_{done}"
        ends = _until_it_ends(folder, rng)
        for how in ends[: n - done]:
            done += 1
            yield "kills and signals", "right", how
        outcome = ("right", "") if same(found_in(folder), expected) else ("silent", "other weights")
        if outcome[0] != "right":
            yield "kills and signals", outcome[0], f"after {ends}: {outcome[1]}"
        shutil.rmtree(folder)


def _until_it_ends(folder: Path, rng: np.random.Generator) -> list[str]:
    how: list[str] = []
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for _ in range(40):
        resume = ["--resume"] if (folder / "manifest.json").exists() else []
        process = subprocess.Popen(
            [*COMMAND, "--run-dir", str(folder), *resume], cwd=ROOT, env=environment, stderr=subprocess.PIPE
        )
        number = int(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
        try:
            process.wait(float(rng.uniform(1.0, 9.0)))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            how.append(signal.Signals(number).name)
        said = process.communicate()[1].decode()
        assert "Traceback" not in said, said
        if process.returncode == 0:
            return how
    return how


def flipped_checkpoints(place: Path, n: int, seed: int) -> Trials:
    """One bit of the newest checkpoint of a run, flipped: the arrays that were saved, or those of the one before."""
    from tests.faults.test_checkpoints import files_of, flip, saved_run, state_of
    from tests.faults.test_checkpoints import resumed as restored

    folder, rng = saved_run(place / "saved"), np.random.default_rng(seed)
    step = folder / "checkpoints" / "latest" / "3"
    for path in rng.choice(np.array(files_of(step), dtype=object), n):
        again = shutil.copytree(folder, place / "bit")
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(again / path.relative_to(folder), bit)
        try:
            found = restored(again)
            good = found is not None and same(found[2], state_of(found[0])) and found[0] in (2, 3)
            outcome, what = ("right" if good else "silent"), ""
        except Exception as error:
            outcome, what = "unclear", f"{type(error).__name__}: {str(error)[:200]}"
        yield "checkpoint bits", outcome, f"{path.relative_to(folder)} bit {bit}: {what}"
        shutil.rmtree(again)


def all_trials(place: Path, n: int, n_kills: int, seed: int) -> Iterator[Trials]:
    """The kinds of this file, the cheap ones first."""
    yield flipped_checkpoints(place, n, seed)
    yield flipped_manifests(place, n // 10, seed)
    yield crash_states(place)
    yield kills(place, n_kills, seed)
