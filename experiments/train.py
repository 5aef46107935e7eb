"""Train an image classifier by any optimizer of optax, refined in depth while it trains.

    python -m experiments.train digits                      a config of experiments/configs
    python -m experiments.train digits --epochs 5 --run-dir runs/short
    python -m experiments.train digits --model my_package.my_module:make    a network of your own
    python -m experiments.train --resume runs/digits        go on after Ctrl-C, SIGTERM or a kill, as it was started
    python -m experiments.train --resume runs/digits --epochs 40  go on for longer, with no other setting changed
    python -m experiments.train digits --run-dir gs://bucket/run  a run in a bucket, with the extra `gcs`

A run writes manifest.json, metrics.jsonl, TensorBoard curves (not into a bucket) and checkpoints into its folder. The
test images are read once, when training is over. Epochs before which the rate decays or the network is refined are
counted from the start, so that a run that goes on for longer becomes the one that was started with so many epochs; its
test images are then read again, and manifest.json keeps the results before. A damaged checkpoint is set aside, and an
older one taken. All devices share every batch; experiments/run_pod.sh starts several hosts, and
experiments/training/devices.py says what is shared how.

The digits take a minute on two cores; the docstring of each config states its time and what to expect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from experiments import configs
from experiments.records.buckets import is_lost
from experiments.records.files import RunError, expand, in_bucket, is_folder, place, reached, read_manifest, say
from experiments.training import own
from experiments.training.config import Config
from experiments.training.devices import Agreement, is_first, join
from experiments.training.feed import Choice
from experiments.training.fingerprint import changes, fingerprint
from experiments.training.progress import Bar, Interrupted, StopSignals, read, summary, unfailing_console
from experiments.training.run import Run, check_start, stored_config
from experiments.training.steps import REFINED, train_step, train_steps
from experiments.training.task import Task, variables_of
from ode_nets import remanifest


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of this changes a result."""

    run_dir: Path | None = None
    """Folder of the run, on this machine or as gs://BUCKET/FOLDER; default runs/<config>."""
    resume: bool = False
    """Go on with the interrupted run in the folder, with the settings given beside it; `--resume RUN` in the place of a
    config takes those of the run."""
    overwrite: bool = False
    """Delete the run in the folder and start anew."""
    checkpoint_seconds: float = 120.0
    """Time between two checkpoints inside an epoch, 0 for one a step; there is one after each epoch."""
    accept_new_data: bool = False
    """Go on where the data is not that of the run; the run keeps a record of both."""
    quiet: bool = False
    """Print nothing but errors."""
    steps_per_dispatch: int = 1
    """Training steps in one call, 0 for an epoch; checkpoints, signals and the progress bar come between calls."""
    feed: Choice = "auto"
    """Where training images are: the `whole` set on every device, `spread` over all of them, or on the host, which
    reads batches ahead (`stream`); by default the first of these that fits into a quarter of a device's memory."""
    n_devices: int | None = None
    """Use so many devices; default all."""
    distributed: bool = False
    """Train with the other processes that are started in the same way, each with its own devices."""
    coordinator: str | None = None
    """HOST:PORT of process 0; not needed on a TPU pod, under Slurm or Open MPI, nor are the next two."""
    n_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    local_device_ids: tuple[int, ...] | None = None
    """Devices of its host that this process takes; default all, under Slurm and Open MPI one."""
    lost_after: int = 100
    """Seconds after which a silent process counts as lost, and ends the others."""

    def __post_init__(self) -> None:
        expand(self, "run_dir", to=place)
        for name in ("n_devices", "n_processes", "lost_after"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        for name in ("coordinator", "n_processes", "process_id", "local_device_ids"):
            if getattr(self, name) is not None and not self.distributed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected beside --distributed alone")
        if self.process_id is not None and not 0 <= self.process_id < (self.n_processes or 0):
            raise ValueError(f"process_id={self.process_id}: expected one from 0 below n_processes={self.n_processes}")
        for name in ("checkpoint_seconds", "steps_per_dispatch"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")
        if self.feed == "stream" and self.steps_per_dispatch != 1:
            raise ValueError(f"steps_per_dispatch={self.steps_per_dispatch}: expected 1 beside --feed stream")


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def train(config: Config, options: Options, folder: Path) -> dict[str, Any]:
    """Train to the end, or until interrupted; the results in the manifest.

    Raises:
      RunError: for a folder that holds another run, data that cannot be had, a non-finite loss, or an
        interruption.
    """
    folder = reached(folder)
    console = unfailing_console(quiet=options.quiet or not is_first(), highlight=False)
    flags = {"resume": options.resume, "overwrite": options.overwrite}
    found = check_start(folder, config, **flags)
    if options.resume and found["status"] == "finished" and found["config"].get("epochs") == config.epochs:
        results = found["results"]
    else:
        kept = found.get("data") if options.resume else None
        moved = options.resume and config.data_dir != stored_config(folder, found).data_dir
        own.find(config, found.get("source"))
        where = {"kept": kept, "data_dir": config.data_dir if moved else None}
        task = Task(config, options.n_devices, **where, accept_new_data=options.accept_new_data, feed=options.feed)
        run = Run.start(folder, config, **flags, data=known(kept, fingerprint(task.dataset)))
        try:
            results = fit(task, run, options, console)
            run.update(status="finished", results=results)
        except BaseException as error:
            if in_bucket(folder) and is_lost(error):
                # Neither can anything be noted there, nor are retries of what is still being written waited for.
                raise
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            # Where the disk is full or the folder gone, the first error is the one to tell of.
            with contextlib.suppress(OSError, RunError):
                run.update(status="interrupted" if stopped else f"failed: {type(error).__name__}")
            with contextlib.suppress(OSError, RunError):
                run.close()
            raise
        run.close()
    accuracy = f"{results['test_accuracy']:.4f} on {results['n_test']} images"
    console.print(f"test accuracy {accuracy}; run in {escape(str(folder))}", soft_wrap=True)
    return results


def known(kept: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint that a run keeps; where its data changed, with the ones before and the scaling as it was."""
    before = list((kept or {}).get("before", []))
    if kept is not None and changes(kept, now):
        before.append({name: value for name, value in kept.items() if name != "before"})
    return now | ({"before": before} if before else {})


def fit(task: Task, run: Run, options: Options, console: Console) -> dict[str, Any]:
    """Take a run from its newest checkpoint to its end; the results, once everything is on disk."""
    config, n_steps = task.config, task.steps_per_epoch
    step, notes, state = task.start(run)
    run.forget_after(step, notes.get("history"))
    clock, agreement = time.perf_counter(), Agreement(task.devices)

    def save(which: str) -> None:
        nonlocal clock
        agreement.forget()
        # Bad weights raise here, and never replace good ones.
        read(state["metrics"])
        now = time.perf_counter()
        notes["seconds"], clock = notes["seconds"] + now - clock, now
        if "adaptation" in state:
            notes["adapted"] = float(state["adaptation"]["value"])
        run.save(which, step, state, dict(notes))

    if step and not run.checkpoints.has("latest", step):
        # It goes on from the best one, as newer ones were damaged or not yet there.
        save("latest")
    with StopSignals() as signals, Bar(console, config, n_steps) as bar:
        for epoch in range(step // n_steps, config.epochs):
            # More coefficients and steps of the same function.
            while notes["level"] < config.level(epoch):
                run.snapshot(notes["level"], variables_of(state)["params"])
                parts = {name: state[name] for name in REFINED}
                state = state | remanifest.refine(task.nets[notes["level"]], parts)[1]
                if "ema" in state:
                    state["ema"] = remanifest.refine(task.nets[notes["level"]], state["ema"])[1]
                notes["level"] += 1
            net, end = task.nets[notes["level"]], (epoch + 1) * n_steps
            order, seed = task.order(epoch), np.int32(config.seed)

            # The steps of the epoch.
            began, first, stop = 0.0, step, False
            batches = task.batches(order, step % n_steps)
            bar.start_epoch(step)
            while step < end and not stop:
                taken = min(options.steps_per_dispatch or n_steps, end - step)
                many = partial(train_steps, n_steps=np.int32(taken))
                data = *next(batches), order, task.scaling, seed
                state, metrics = (train_step if options.steps_per_dispatch == 1 else many)(
                    config, net, task.optimizer, state, *data, mesh=task.devices.mesh, feed=task.feed
                )
                # The first call of a level returns when it is compiled, and any call before it is computed.
                began = began or time.perf_counter()
                step += taken
                bar.push(step, metrics)
                due = time.perf_counter() - clock > options.checkpoint_seconds
                stop, due = agreement.hear(bool(signals.noted), due)
                if due and step % n_steps:
                    save("latest")
            if step < end:
                save("latest")
                raise Interrupted(signals.noted, step)

            # What the epoch came to.
            loss, accuracy = read(state["metrics"])
            bar.show(step, loss, accuracy)
            seconds = time.perf_counter() - began
            record = {"step": step, "epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy}
            record |= {"seconds": seconds, "images_per_second": (step - first) * config.batch_size / seconds}
            record |= task.describe(notes["level"], state)
            # What is saved comes before what is said of it.
            if "history" in notes:
                notes["history"] = [*notes["history"], record]
            if record.get("validation_accuracy", -1.0) > notes["best"]:
                notes |= {"best": record["validation_accuracy"], "best_step": step}
                save("best")
            save("latest")
            run.log(record)
            console.print(summary(record), soft_wrap=True)
            (stop,) = agreement.hear_now(bool(signals.noted))
            if stop and step < config.epochs * n_steps:
                raise Interrupted(signals.noted, step)

        # The test images, once, and only when the weights that they judge are safe.
        run.snapshot(notes["level"], variables_of(state)["params"])
        run.wait()
        test_loss, test_accuracy = task.evaluate(notes["level"], state, "test")
    return {
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "n_test": len(task.dataset.x_test),
        "best_validation_accuracy": notes["best"] if notes["best"] >= 0 else None,
        "n_parameters": remanifest.n_parameters(state),
        "train_seconds": notes["seconds"],
        "data": task.dataset.source,
    }


def command_line(args: list[str]) -> tuple[Config, Options, Path]:
    """Config, options and folder that a command line asks for: by a config's name, or by `--resume RUN`.

    Raises:
      RunError: for `--resume RUN` where there is no run, or one that cannot be read.
    """
    prog = "python -m experiments.train"
    if "--resume" not in args or not args[0].startswith("-"):
        name, config, options = configs.command_line(Options, prog, args)
        return config, options, options.run_dir or Path("runs") / name
    at = args.index("--resume")
    found, keys = args[at + 1 : at + 2], [*args[:at], *args[at + 2 :]]
    if not found or found[0].startswith("-"):
        raise RunError("--resume: expected the folder of a run after it, or the name of a config before it")
    folder = reached(found[0])
    if (manifest := read_manifest(folder)) is None:
        raise RunError(f"--resume: there is no run in {folder}: it has no manifest.json; give the folder of a run")
    config, called = stored_config(folder, manifest), f"{prog} --resume {folder}"
    return *configs.keyed(config, Options(resume=True), called, f"The run in {folder}.", keys), folder


def main() -> None:
    """The command line."""
    options, folder = Options(), None
    try:
        config, options, wanted = command_line(sys.argv[1:])
        if options.distributed:
            processes = (options.coordinator, options.n_processes, options.process_id, options.local_device_ids)
            join(*processes, timeout=options.lost_after)
        folder = wanted
        train(config, options, folder)
    except Interrupted as stop:
        say(f"\n{stop}")
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        begun = folder is not None and is_folder(folder / "checkpoints")
        say(f"\nstopped {'at once; --resume goes on from the last checkpoint' if begun else 'before training began'}")
        leave(options, folder, 128 + signal.SIGINT)
    except (RunError, OSError) as error:
        say(f"error: {error}")
        leave(options, folder, 1)
    except Exception as error:
        if folder is not None and in_bucket(folder) and is_lost(error):
            say(f"error: {folder}: {error}")
        else:
            with contextlib.suppress(OSError):
                traceback.print_exc()
        leave(options, folder, 1)


def leave(options: Options, folder: Path | None, status: int) -> None:
    """End a process that failed; not in step with others, nor with a bucket, which a usual exit would wait for."""
    if options.distributed or (folder is not None and in_bucket(folder)):
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
