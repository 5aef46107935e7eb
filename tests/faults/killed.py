"""Processes that are killed, or told to stop, at random moments, again and again until one ends by itself."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.runs import found_in, same
from tests.faults.tally import Trials

COMMAND = [
    *("train", "digits", "--limit", "16", "--batch-size", "8", "--crop-pad", "0", "--no-flip", "--model.widths", "2"),
    *("--model.scheme", "euler", "--model.n-basis", "1", "--model.n-steps", "1", "--validation-fraction", "0.01"),
    *("--epochs", "2", "--refine-epochs", "1", "--decay-epochs", "--quiet", "--checkpoint-seconds", "0"),
]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AT_MOST = 10
"""Processes that one run is killed in, before one is let be."""


def kills(place: Path, n: int, seed: int) -> Trials:
    """A small run by its command: it comes to what it comes to when nothing happens."""
    rng, start, done = np.random.default_rng(seed), _server(place), 0
    # The first one compiles.
    for name in ("compiled", "uncut"):
        began = time.monotonic()
        start(place / name, "").join()
        seconds = time.monotonic() - began
    expected = found_in(place / "uncut")
    while done < n:
        folder = place / f"killed_{done}"
        ends, said, status = _until_it_ends(start, folder, rng, seconds, min(AT_MOST, n - done))
        outcome, what = _judged(folder, expected, said, status)
        for end in ends:
            yield "kills and signals", outcome, f"{end} of {ends}: {what}"
        done += len(ends)
        shutil.rmtree(folder)


def _judged(folder: Path, expected: Any, said: str, status: int | None) -> tuple[str, str]:
    if "Traceback" in said or status != 0:
        return "unclear", f"exit status {status}: {said[-500:]}"
    try:
        return ("right", "") if same(found_in(folder), expected) else ("silent", "other weights")
    except Exception as error:
        return "silent", f"no finished run: {type(error).__name__}: {str(error)[:200]}"


def _until_it_ends(
    start: Any, folder: Path, rng: np.random.Generator, seconds: float, at_most: int
) -> tuple[list[str], str, int | None]:
    """Signals and moments, all that was said, and the last exit status."""
    ends: list[str] = []
    while True:
        resume = "--resume" if (folder / "manifest.json").exists() else ""
        process = start(folder, resume)
        number = int(rng.choice(SIGNALS))
        # A process that goes on with a run has less to do than the first, so that few come to their end.
        process.join(float(rng.uniform(0.0, 0.7 * seconds)) if len(ends) < at_most else None)
        if process.exitcode is not None:
            return ends, Path(f"{folder}.said").read_text(), process.exitcode
        step = sorted(int(path.name) for path in folder.glob("checkpoints/latest/[0-9]*") if path.name.isdigit())
        ends.append(f"{signal.Signals(number).name} after {step[-1] if step else 'no'} steps")
        os.kill(process.pid, number)
        process.join()


def _server(place: Path) -> Any:
    """What starts a process that trains, from one that has imported everything and has not begun."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(place / "cache"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.train", "sklearn.datasets"])

    def start(folder: Path, resume: str) -> Any:
        process = context.Process(target=_train, args=(folder, resume))
        process.start()
        begun = Path(f"{folder}.begun")
        while not begun.exists() and process.exitcode is None:
            time.sleep(0.01)
        begun.unlink(missing_ok=True)
        return process

    return start


def _train(folder: Path, resume: str) -> None:
    # In the process: the command, with what it says in a file.
    from experiments import train

    said = os.open(f"{folder}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = [*COMMAND, "--run-dir", str(folder), *([resume] if resume else [])]
    Path(f"{folder}.begun").touch()
    train.main()
