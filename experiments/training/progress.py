"""What a training loop tells the terminal and hears from it: the progress bar, and signals to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import deque
from typing import Any, TextIO, cast

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.records.files import RunError
from experiments.training.config import Config
from ode_nets.integrate import Result

PyTree = Any


class NonFiniteError(RunError):
    """The loss or the weights left the finite numbers, or the solver of a block did not reach its end."""


class Interrupted(RunError):  # noqa: N818 - it is no fault
    """A signal asked the run to stop, and it did, resumable."""

    def __init__(self, noted: list[int], step: int):
        # Where there are several processes, another one may have been told.
        self.signum = noted[0] if noted else signal.SIGTERM
        self.name, self.step = signal.Signals(self.signum).name, step
        super().__init__(f"stopped by {self.name} at step {step}; --resume goes on from there")


class _Unfailing:
    """A stream to print to, which is given up in silence when nobody can hear it any more."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text) or 0)
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        # What the stream still holds would fail once more at the end of the process.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unfailing_console(**options: Any) -> Console:
    """A console on standard output whose failure, as of a closed pipe or a full disk, never reaches the training."""
    return Console(file=cast(TextIO, _Unfailing(sys.stdout or open(os.devnull, "w"))), **options)


class StopSignals:
    """Within it, Ctrl-C, SIGTERM and SIGHUP are noted, so that the loop can save; a second Ctrl-C does not wait."""

    def __enter__(self) -> StopSignals:
        self.noted: list[int] = []
        # Windows has no SIGHUP; and what the process was started to ignore, as by nohup, it goes on to ignore.
        known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        heard = [s for s in known if signal.getsignal(s) != signal.SIG_IGN]
        self._previous = {s: signal.signal(s, self._note) for s in heard}
        return self

    def _note(self, signum: int, frame: Any) -> None:
        if self.noted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted.append(signum)
        # Not print, which the signal may have interrupted; and a terminal that hung up takes nothing.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step and a checkpoint; Ctrl-C stops at once\n")

    def __exit__(self, *exception: Any) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)


def read(metrics: PyTree) -> tuple[float, float]:
    """Mean loss and accuracy so far in the epoch, from the metrics of `train_step`.

    Raises:
      NonFiniteError: if training has left the finite numbers.
    """
    values = jax.device_get(metrics)
    if values["bad_step"] > 0:
        failed = failures(values.get("results", {}))
        what = f"the solver of {failed}" if failed else "the loss or the weights were not finite"
        help_ = "A larger --model.max-steps or --model.rtol or a" if failed else "A"
        raise NonFiniteError(
            f"{what} at step {values['bad_step']}; no checkpoint was written from there on. "
            f"{help_} smaller --learning-rate may help, with --overwrite or another --run-dir"
        )
    sums = values["epoch"]
    return float(sums["loss"] / sums["images"]), float(sums["correct"] / sums["images"])


def failures(results: dict[str, Any]) -> str:
    """Which solvers failed and how, e.g. `block ode2_1 ended with MAX_STEPS`; empty if none did."""
    codes = {name: Result(int(code)) for name, code in sorted(results.items())}
    return ", ".join(f"block {name} ended with {code.name}" for name, code in codes.items() if code)


def mean_counts(metrics: PyTree, batch_size: int) -> dict[str, float]:
    """What each block's solver counted, a mean over the steps of the epoch: `{"nfe/ode1_1": 13.2, ...}`."""
    sums = jax.device_get(metrics["epoch"])
    steps = int(sums["images"]) / batch_size
    counts = sums["counts"].items()
    return {f"{name}/{block}": int(n) / steps for block, of in counts for name, n in of.items()}


def summary(record: dict[str, Any]) -> str:
    """One line on an epoch."""
    parts = [
        f"epoch {record['epoch']:3d}",
        f"{record['n_parameters']:,} parameters",
        f"loss {record['train_loss']:.4f}",
        f"accuracy {record['train_accuracy']:.4f}",
    ]
    if "validation_accuracy" in record:
        parts.append(f"validation {record['validation_accuracy']:.4f}")
    if nfe := sum(value for key, value in record.items() if key.startswith("nfe/")):
        parts.append(f"nfe {nfe:.1f}")
    return "  ".join([*parts, f"{record['images_per_second']:.0f} images/s"])


class Bar(Progress):
    """A progress bar with loss, accuracy, images a second and the time left.

    It reads metrics `LAG` steps after they were computed, so that the device never waits for the host.
    """

    LAG = 10

    def __init__(self, console: Console, config: Config, steps_per_epoch: int):
        text = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}"))
        shown = console.is_terminal and not console.quiet
        super().__init__(*text, TimeRemainingColumn(), console=console, disable=not shown, speed_estimate_period=300)
        self.batch_size, self.steps_per_epoch = config.batch_size, steps_per_epoch
        # A step takes time in proportion to N_t, so an epoch weighs as much as its N_t.
        self.weights = [2 ** config.level(epoch) for epoch in range(config.epochs)]
        self.compiled = 0
        self.rate = 0.0
        self.add_task("", total=sum(self.weights), text="")

    def start_epoch(self, step: int) -> None:
        """Begin an epoch, or the rest of one, at a step."""
        self.waiting: deque[tuple[int, PyTree]] = deque()
        self.seen: deque[tuple[float, int]] = deque(maxlen=50)
        epoch = step // self.steps_per_epoch
        if self.weights[epoch] != self.compiled:
            self.update(self.task_ids[0], **self._place(step, epoch), text="compiling")

    def push(self, step: int, metrics: PyTree) -> None:
        """Take the metrics after a step, and show those of an earlier one.

        Raises:
          NonFiniteError: as `read`.
        """
        self.waiting.append((step, metrics))
        if len(self.waiting) > self.LAG:
            done, metrics = self.waiting.popleft()
            self.seen.append((time.perf_counter(), done))
            (start, first), (now, last) = self.seen[0], self.seen[-1]
            if last - first >= self.LAG:
                self.rate = (last - first) * self.batch_size / (now - start)
            self.show(done, *read(metrics))

    def show(self, step: int, loss: float, accuracy: float) -> None:
        """Show what an epoch came to up to a step."""
        epoch = (step - 1) // self.steps_per_epoch
        rate = f"  {self.rate:.0f} images/s" if self.rate else ""
        text = f"loss {loss:.3f}  accuracy {accuracy:.3f}{rate}"
        # The time left is estimated from what came after the last compilation.
        change = self.update if self.weights[epoch] == self.compiled else self.reset
        change(self.task_ids[0], **self._place(step, epoch), text=text)
        self.compiled = self.weights[epoch]

    def _place(self, step: int, epoch: int) -> dict[str, Any]:
        inside = self.weights[epoch] * (step / self.steps_per_epoch - epoch)
        name = f"epoch {epoch + 1}/{len(self.weights)}"
        return {"completed": sum(self.weights[:epoch]) + inside, "description": name}
