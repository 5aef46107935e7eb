"""Train an image classifier: SGD with momentum, step decay, and refinement in depth while it trains.

    python -m experiments.train digits                      a config of experiments/configs
    python -m experiments.train digits --epochs 5 --run-dir runs/short
    python -m experiments.train digits --resume             go on after Ctrl-C, SIGTERM or a kill

A run writes manifest.json, metrics.jsonl, TensorBoard curves and checkpoints into its folder. The test images
are read once, when training is over.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from experiments import configs, data, models
from experiments.config import Config
from experiments.progress import Bar, Interrupted, StopSignals, read, summary
from experiments.run import Run, RunError, check_start
from ode_nets import manifest

PyTree = Any
REFINED = ("params", "batch_stats", "opt_state")
"""Parts of the state that go through a refinement: momentum is split as the parameters are."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of this changes a result."""

    run_dir: Path | None = None
    """Folder of the run; default runs/<config>."""
    resume: bool = False
    """Go on with the interrupted run in the folder."""
    overwrite: bool = False
    """Delete the run in the folder and start anew."""
    checkpoint_seconds: float = 120.0
    """Time between two checkpoints inside an epoch, 0 for one a step; there is one after each epoch."""
    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds={self.checkpoint_seconds}: expected at least 0")


# ---------------------------------------------------------------------------------------------------------
# One step, compiled once a level of refinement
# ---------------------------------------------------------------------------------------------------------


@lru_cache
def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with momentum on the loss plus weight decay, its rate decaying in steps."""
    decay = {epoch * steps_per_epoch: config.decay_factor for epoch in config.decay_epochs}
    rate = optax.piecewise_constant_schedule(config.learning_rate, decay)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, config.momentum))


@partial(jax.jit, static_argnames=("config", "net", "optimizer"), donate_argnames="state")
def train_step(
    config: Config,
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    state: PyTree,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    scaling: tuple[jax.Array, jax.Array],
) -> tuple[PyTree, PyTree]:
    """One step on the batch that `state["step"]` points to in `order`; the new state and its metrics.

    Metrics are sums over the images of the epoch so far, and the first step after which the loss or the
    weights were not finite, counted from 1 (0: none).
    """
    step = state["step"]
    in_epoch = step % (images.shape[0] // config.batch_size)
    index = jax.lax.dynamic_slice(order, (in_epoch * config.batch_size,), (config.batch_size,))
    # Epochs draw their order from the same seed, numbered upwards from 0; steps are numbered downwards.
    key = jax.random.fold_in(jax.random.key(config.seed), -1 - step)
    x = data.augment(key, images[index], pad=config.crop_pad, flip=config.flip)
    x, y = data.normalize(x, *scaling), labels[index]

    def loss_of(params: PyTree) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits, changed = net.apply(variables, x, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (jnp.sum(jnp.argmax(logits, -1) == y), changed["batch_stats"])

    (loss, (correct, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
    updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)

    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, params, batch_stats))]
    before = jax.tree.map(lambda total: jnp.where(in_epoch == 0, 0, total), state["metrics"]["epoch"])
    bad_step = state["metrics"]["bad_step"]
    metrics = {
        "epoch": {
            "loss": before["loss"] + config.batch_size * loss,
            "correct": before["correct"] + correct.astype(jnp.int32),
            "images": before["images"] + config.batch_size,
        },
        "bad_step": jnp.where((bad_step == 0) & ~jnp.stack(finite).all(), step + 1, bad_step),
    }
    new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
    # The state is donated to the next step; the second copy of its metrics stays readable.
    return new | {"step": step + 1, "metrics": metrics}, metrics


@partial(jax.jit, static_argnames="net")
def evaluate_batch(
    net: nn.Module,
    variables: PyTree,
    images: jax.Array,
    labels: jax.Array,
    scaling: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Summed loss and number of hits; images with label -1 are padding and count nowhere."""
    logits = net.apply(variables, data.normalize(images, *scaling))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(jnp.where(labels >= 0, loss, 0.0)), jnp.sum((logits.argmax(-1) == labels) & (labels >= 0))


def padded_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Batches of one size, so that they share one program; the last is filled up with images of label -1."""
    for start in range(0, len(images), batch_size):
        x, y = images[start : start + batch_size], labels[start : start + batch_size]
        missing = batch_size - len(x)
        yield np.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0))), np.pad(y, (0, missing), constant_values=-1)


# ---------------------------------------------------------------------------------------------------------
# What the loop works on
# ---------------------------------------------------------------------------------------------------------


class Task:
    """The data of a run, its training images on the device as uint8, and what follows from their number.

    Raises:
      RunError: for data that is absent or broken, or fewer images than a batch.
    """

    def __init__(self, config: Config):
        self.config = config
        try:
            self.dataset = data.load(
                config.dataset,
                data_dir=config.data_dir,
                validation_fraction=config.validation_fraction,
                seed=config.seed,
                limit=config.limit,
            )
        except (ValueError, OSError, ImportError) as error:
            raise RunError(str(error)) from error
        n_train = len(self.dataset.x_train)
        self.steps_per_epoch = n_train // config.batch_size
        if self.steps_per_epoch == 0:
            raise RunError(f"batch_size={config.batch_size} exceeds the {n_train} training images: lower it")
        levels = range(config.level(config.epochs - 1) + 1)
        self.nets = [models.build(config, self.dataset.n_classes, level) for level in levels]
        self.optimizer = make_optimizer(config, self.steps_per_epoch)
        self.device = jax.devices()[0]
        held = (self.dataset.x_train, self.dataset.y_train, (self.dataset.mean, self.dataset.std))
        self.images, self.labels, self.scaling = jax.device_put(held, self.device)

    def init(self, level: int) -> PyTree:
        """A new training state, in the shapes of a level."""
        one_image = jnp.zeros((1, *self.images.shape[1:]))
        variables = self.nets[level].init(jax.random.key(self.config.seed), one_image)
        sums = {"loss": jnp.float32(0), "correct": jnp.int32(0), "images": jnp.int32(0)}
        return {
            "params": variables["params"],
            "batch_stats": variables["batch_stats"],
            "opt_state": self.optimizer.init(variables["params"]),
            "step": jnp.int32(0),
            "metrics": {"epoch": sums, "bad_step": jnp.int32(0)},
        }

    def start(self, run: Run) -> tuple[int, dict[str, Any], PyTree]:
        """Step, notes and state of the newest whole checkpoint of a run, or new ones."""
        if (found := run.restore_notes()) is None:
            state = jax.jit(partial(self.init, 0))()
            return 0, {"level": 0, "best": -1.0, "seconds": 0.0}, jax.device_put(state, self.device)
        step, notes = found
        there = jax.sharding.SingleDeviceSharding(self.device)
        shapes = jax.eval_shape(partial(self.init, notes["level"]))
        like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=there), shapes)
        return step, notes, run.restore(step, like)

    def evaluate(self, level: int, state: PyTree, split: str) -> tuple[float, float]:
        """Mean loss and accuracy over the validation or the test images."""
        images, labels = getattr(self.dataset, f"x_{split}"), getattr(self.dataset, f"y_{split}")
        # Both splits in batches of one size, so that a level compiles one program for them.
        batch_size = min(250, max(len(self.dataset.x_validation), len(self.dataset.x_test)))
        variables = {name: state[name] for name in ("params", "batch_stats")}
        batches = padded_batches(images, labels, batch_size)
        sums = [evaluate_batch(self.nets[level], variables, x, y, self.scaling) for x, y in batches]
        loss, hits = np.sum(jax.device_get(sums), axis=0)
        return float(loss) / len(images), float(hits) / len(images)


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def train(config: Config, options: Options, folder: Path) -> dict[str, Any]:
    """Train to the end, or until interrupted; the results in the manifest.

    Raises:
      RunError: for a folder that holds another run, data that cannot be had, a non-finite loss, or an
        interruption.
    """
    console = Console(quiet=options.quiet, highlight=False)
    flags = {"resume": options.resume, "overwrite": options.overwrite}
    found = check_start(folder, config, **flags)
    if options.resume and found["status"] == "finished":
        results = found["results"]
    else:
        task = Task(config)
        run = Run.start(folder, config, **flags)
        try:
            results = fit(task, run, options.checkpoint_seconds, console)
            run.update(status="finished", results=results)
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            run.update(status="interrupted" if stopped else f"failed: {type(error).__name__}")
            raise
        finally:
            run.close()
    accuracy = f"{results['test_accuracy']:.4f} on {results['n_test']} images"
    console.print(f"test accuracy {accuracy}; run in {folder}", soft_wrap=True)
    return results


def fit(task: Task, run: Run, checkpoint_seconds: float, console: Console) -> dict[str, Any]:
    """Take a run from its newest checkpoint to its end; the results, once everything is on disk."""
    config, n_steps = task.config, task.steps_per_epoch
    step, notes, state = task.start(run)
    run.forget_after(step)
    clock = time.perf_counter()

    def save(which: str) -> None:
        nonlocal clock
        # Bad weights raise here, and never replace good ones.
        read(state["metrics"])
        now = time.perf_counter()
        notes["seconds"], clock = notes["seconds"] + now - clock, now
        run.save(which, step, state, dict(notes))

    with StopSignals() as signals, Bar(console, config, n_steps) as bar:
        for epoch in range(step // n_steps, config.epochs):
            # More coefficients and steps of the same function.
            while notes["level"] < config.level(epoch):
                run.snapshot(notes["level"], state["params"])
                parts = {name: state[name] for name in REFINED}
                state = state | manifest.refine(task.nets[notes["level"]], parts)[1]
                notes["level"] += 1
            net = task.nets[notes["level"]]
            order = data.epoch_permutation(config.seed, epoch, len(task.images))

            # The steps of the epoch.
            began, first = 0.0, step
            bar.start_epoch(step)
            while step < (epoch + 1) * n_steps and not signals.noted:
                state, metrics = train_step(
                    config, net, task.optimizer, state, task.images, task.labels, order, task.scaling
                )
                # The first call of a level returns when it is compiled, and any call before it is computed.
                began = began or time.perf_counter()
                step += 1
                bar.push(step, metrics)
                if time.perf_counter() - clock > checkpoint_seconds and step % n_steps:
                    save("latest")
            if step < (epoch + 1) * n_steps:
                save("latest")
                raise Interrupted(signals.noted[0], step)

            # What the epoch came to.
            loss, accuracy = read(state["metrics"])
            bar.show(step, loss, accuracy)
            seconds = time.perf_counter() - began
            record = {
                "step": step,
                "epoch": epoch + 1,
                "level": notes["level"],
                "n_parameters": manifest.n_parameters(state),
                "train_loss": loss,
                "train_accuracy": accuracy,
                "seconds": seconds,
                "images_per_second": (step - first) * config.batch_size / seconds,
            }
            if len(task.dataset.x_validation):
                held_out = task.evaluate(notes["level"], state, "validation")
                record["validation_loss"], record["validation_accuracy"] = held_out
            run.log(record)
            console.print(summary(record), soft_wrap=True)
            if record.get("validation_accuracy", -1.0) > notes["best"]:
                notes["best"] = record["validation_accuracy"]
                save("best")
            save("latest")
            if signals.noted and step < config.epochs * n_steps:
                raise Interrupted(signals.noted[0], step)

        # The test images, once, and only when the weights that they judge are safe.
        run.snapshot(notes["level"], state["params"])
        run.wait()
        test_loss, test_accuracy = task.evaluate(notes["level"], state, "test")
    return {
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "n_test": len(task.dataset.x_test),
        "best_validation_accuracy": notes["best"] if len(task.dataset.x_validation) else None,
        "n_parameters": manifest.n_parameters(state),
        "train_seconds": notes["seconds"],
        "data": task.dataset.source,
    }


def main() -> None:
    """The command line."""
    name, config, options = configs.command_line(Options, "python -m experiments.train")
    try:
        train(config, options, options.run_dir or Path("runs") / name)
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print("\nstopped at once; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except RunError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
