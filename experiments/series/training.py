"""The loop that trains on series, in the folder of a run, and what is drawn and kept of its end."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

from experiments.records.files import RunError
from experiments.series.config import SeriesConfig
from experiments.series.data import Series
from experiments.series.steps import evaluate_batch, init_state, train_step
from experiments.training.checkpoints import read_variables, steps_in
from experiments.training.progress import Interrupted, NonFiniteError, StopSignals
from experiments.training.run import Run, check_start

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of this changes a result."""

    run_dir: Path | None = None
    """Folder of the run; default below runs/."""
    resume: bool = False
    """Go on with the interrupted run in the folder; or for longer, with more epochs."""
    overwrite: bool = False
    """Delete the run in the folder and start anew."""
    checkpoint_seconds: float = 120.0
    """Time between two checkpoints inside an epoch; there is one after each epoch."""


def train(config: SeriesConfig, series: Series, options: Options, folder: Path, console: Console) -> dict[str, Any]:
    """Train to the end, or until interrupted; the results in the manifest.

    Raises:
      RunError: for a folder that holds another run or one of other data, a non-finite loss, or an interruption.
    """
    flags = {"resume": options.resume, "overwrite": options.overwrite}
    found, data = check_start(folder, config, **flags), series.fingerprint()
    if options.resume:
        if found.get("data") != data:
            raise RunError(f"--resume: the data is not that of the run in {folder}; --run-dir starts elsewhere")
        if found["status"] == "finished" and found["config"]["epochs"] == config.epochs:
            return dict(found["results"])
    parts = series.split(config)
    run = Run.start(folder, config, **flags, data=data)
    try:
        results = fit(config, series, parts, run, options, console)
        run.update(status="finished", results=results)
    except BaseException as error:
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        # Where the disk is full or the folder gone, the first error is the one to tell of.
        with contextlib.suppress(OSError, RunError):
            run.update(status="interrupted" if stopped else f"failed: {type(error).__name__}")
        with contextlib.suppress(OSError, RunError):
            run.close()
        raise
    run.close()
    return results


def fit(
    config: SeriesConfig, series: Series, parts: dict[str, np.ndarray], run: Run, options: Options, console: Console
) -> dict[str, Any]:
    """Take a run from its newest checkpoint to its end; the results, once everything is on disk."""
    data = tuple(map(jnp.asarray, (series.times, series.values, series.mask)))
    n_steps = len(parts["train"]) // config.batch_size
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: init_state(config, data))
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    if (found := run.newest(lambda _: like)) is None:
        step, notes = 0, {"best": float("inf"), "best_step": 0, "seconds": 0.0, "history": []}
        state = jax.jit(init_state, static_argnums=0)(config, data)
    else:
        step, notes, state = found
    run.forget_after(step, notes["history"])
    clock = time.perf_counter()

    def save(which: str) -> None:
        nonlocal clock
        read(state)
        now = time.perf_counter()
        notes["seconds"], clock = notes["seconds"] + now - clock, now
        run.save(which, step, state, dict(notes))

    with StopSignals() as signals, Progress(console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=config.epochs * n_steps, completed=step)
        for epoch in range(step // n_steps, config.epochs):
            order = order_of(config, parts["train"], epoch)
            while step < (epoch + 1) * n_steps:
                state, metrics = train_step(config, state, data, order)
                step += 1
                bar.update(shown, completed=step, description=f"epoch {epoch + 1}/{config.epochs}")
                inside = step % n_steps
                if inside and signals.noted:
                    save("latest")
                    raise Interrupted(signals.noted, step)
                if inside and time.perf_counter() - clock > options.checkpoint_seconds:
                    save("latest")
            loss = read(metrics) / n_steps
            error, n_failed = evaluate(config, state["params"], data, parts["validation"])
            if n_failed:
                raise NonFiniteError(
                    f"predictions of {n_failed} of {len(parts['validation'])} validation series are not finite: a "
                    "solve failed; a larger --max-steps may help, with --overwrite or another --run-dir"
                )
            record = {"step": step, "epoch": epoch + 1, "train_loss": loss, "validation_mse": error}
            record["seconds"] = notes["seconds"] + time.perf_counter() - clock
            notes["history"] = [*notes["history"], record]
            if error < notes["best"]:
                notes |= {"best": error, "best_step": step}
                save("best")
            save("latest")
            run.log(record)
            console.print(
                f"epoch {epoch + 1:3d}  loss {loss:.4g}  validation MSE {error:.4g}  {record['seconds']:.0f} s"
            )
            if signals.noted and step < config.epochs * n_steps:
                raise Interrupted(signals.noted, step)
    run.wait()
    params = best_of(run.folder)
    error, n_failed = evaluate(config, params, data, parts["test"])
    if n_failed:
        console.print(f"predictions of {n_failed} of {len(parts['test'])} test series are not finite, and left out")
    return {
        "test_mse": error,
        "n_failed": n_failed,
        "validation_mse": notes["best"],
        "best_epoch": notes["best_step"] // n_steps,
        "n_train": len(parts["train"]),
        "n_test": len(parts["test"]),
        "n_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "train_seconds": notes["seconds"],
    }


def order_of(config: SeriesConfig, train: np.ndarray, epoch: int) -> np.ndarray:
    """The series of each batch of an epoch, `[steps, batch_size]`."""
    order = np.random.default_rng([config.seed, epoch]).permutation(train)
    n = len(order) // config.batch_size
    return order[: n * config.batch_size].reshape(n, config.batch_size)


def read(metrics: PyTree) -> float:
    """The loss summed over the epoch so far.

    Raises:
      NonFiniteError: if training has left the finite numbers.
    """
    if bad := int(metrics["bad_step"]):
        raise NonFiniteError(
            f"the loss or the weights were not finite at step {bad}; no checkpoint was written from there on. A "
            "smaller --learning-rate, a larger --max-steps or --sigma may help, with --overwrite or another --run-dir"
        )
    return float(metrics["loss"])


def evaluate(config: SeriesConfig, params: PyTree, data: PyTree, index: np.ndarray) -> tuple[float, int]:
    """Mean squared error over all observed, scaled values of some series and all samples; the same draws every time.

    Series whose solve failed are left out; the second number is how many.

    Raises:
      NonFiniteError: if none is left.
    """
    size, totals = min(4 * config.batch_size, len(index)), []
    for i, start in enumerate(range(0, len(index), size)):
        part = index[start : start + size]
        # The last batch is filled up with its own series again, which do not count.
        padded, counts = part[np.arange(size) % len(part)], np.arange(size) < len(part)
        # Steps of training are numbered from 0 upwards.
        key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1 - i)
        totals.append(evaluate_batch(config, params, data, padded, counts, key))
    error, n, n_failed = np.sum(jax.device_get(totals), axis=0, dtype=np.float64)
    if not n:
        raise NonFiniteError("no prediction is finite: all solves failed; a larger --max-steps may help")
    return float(error / n), int(n_failed)


def best_of(folder: Path) -> PyTree:
    """The parameters of the best epoch of a run."""
    best = (folder / "checkpoints" / "best").absolute()
    return read_variables(best / str(steps_in(best)[-1]), ("params",))[1]["params"]
