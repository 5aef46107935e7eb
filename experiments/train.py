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
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import configs, data, models
from experiments.config import Config
from experiments.run import Run, RunError
from ode_nets import manifest

PyTree = Any
READ_EVERY = 10
"""Steps between two looks at the loss; what is read was computed as many steps ago, so the device never waits."""
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
    """Time between two checkpoints inside an epoch; there is one after each epoch."""
    quiet: bool = False
    """No progress bar."""


class NonFiniteLossError(RunError):
    """The loss left the finite numbers."""


# ---------------------------------------------------------------------------------------------------------
# One step, compiled once a level of refinement
# ---------------------------------------------------------------------------------------------------------


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with momentum on the loss plus weight decay, its rate decaying in steps."""
    decay = {epoch * steps_per_epoch: config.decay_factor for epoch in config.decay_epochs}
    rate = optax.piecewise_constant_schedule(config.learning_rate, decay)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, config.momentum))


def new_metrics() -> PyTree:
    """Sums over the steps of an epoch, and the first step whose loss was not finite (-1: none)."""
    return {"loss": jnp.zeros(()), "correct": jnp.int32(0), "count": jnp.int32(0), "bad_step": jnp.int32(-1)}


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
    """One step on the batch that `state["step"]` points to in `order`; the new state and its metrics."""
    step = state["step"]
    in_epoch = step % (images.shape[0] // config.batch_size)
    index = jax.lax.dynamic_slice(order, (in_epoch * config.batch_size,), (config.batch_size,))
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    x = data.augment(key, images[index], pad=config.crop_pad, flip=config.flip)
    x, y = data.normalize(x, *scaling), labels[index]

    def loss_of(params: PyTree) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits, changed = net.apply(variables, x, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (jnp.sum(logits.argmax(-1) == y), changed["batch_stats"])

    (loss, (correct, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
    updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
    first_bad = (state["metrics"]["bad_step"] < 0) & ~jnp.isfinite(loss)
    metrics = {
        "loss": state["metrics"]["loss"] + loss,
        "correct": state["metrics"]["correct"] + correct.astype(jnp.int32),
        "count": state["metrics"]["count"] + 1,
        "bad_step": jnp.where(first_bad, step, state["metrics"]["bad_step"]),
    }
    new_state = {
        "params": optax.apply_updates(state["params"], updates),
        "batch_stats": batch_stats,
        "opt_state": opt_state,
        "step": step + 1,
        "metrics": metrics,
    }
    return new_state, jax.tree.map(lambda leaf: leaf + 0, metrics)


@partial(jax.jit, static_argnames="net")
def evaluate_batch(
    net: nn.Module, variables: PyTree, images: jax.Array, labels: jax.Array, scaling: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Summed loss and number of hits; images with label -1 are padding and count nowhere."""
    logits = net.apply(variables, data.normalize(images, *scaling))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(jnp.where(labels >= 0, loss, 0.0)), jnp.sum((logits.argmax(-1) == labels) & (labels >= 0))


def padded_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one size, so that they share one program; the last is filled up with images of label -1."""
    batch_size = min(batch_size, len(images))
    for start in range(0, len(images), batch_size):
        x, y = images[start : start + batch_size], labels[start : start + batch_size]
        missing = batch_size - len(x)
        yield np.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0))), np.pad(y, (0, missing), constant_values=-1)


def evaluate(
    net: nn.Module, state: PyTree, images: np.ndarray, labels: np.ndarray, scaling: Any, batch_size: int = 250
) -> tuple[float, float]:
    """Mean loss and accuracy over a set of images."""
    variables = {name: state[name] for name in ("params", "batch_stats")}
    sums = [evaluate_batch(net, variables, x, y, scaling) for x, y in padded_batches(images, labels, batch_size)]
    loss, hits = np.sum(jax.device_get(sums), axis=0)
    return float(loss) / len(images), float(hits) / len(images)


# ---------------------------------------------------------------------------------------------------------
# What the loop works on
# ---------------------------------------------------------------------------------------------------------


class Task:
    """The data of a run, its training images on the device as uint8, and what follows from their number."""

    def __init__(self, config: Config):
        self.config = config
        self.dataset = data.load(
            config.dataset,
            data_dir=config.data_dir,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
            limit=config.limit,
        )
        n_train = len(self.dataset.x_train)
        self.steps_per_epoch = n_train // config.batch_size
        if self.steps_per_epoch == 0:
            raise RunError(f"batch_size={config.batch_size} exceeds the {n_train} training images; make it smaller")
        self.images, self.labels = jnp.asarray(self.dataset.x_train), jnp.asarray(self.dataset.y_train)
        self.scaling = (jnp.asarray(self.dataset.mean), jnp.asarray(self.dataset.std))
        self.optimizer = make_optimizer(config, self.steps_per_epoch)

    def net(self, level: int) -> nn.Module:
        """The network after `level` refinements."""
        return models.build(self.config, self.dataset.n_classes, level)

    def first_state(self, level: int) -> PyTree:
        """A new training state, in the shapes of a level."""
        one_image = data.normalize(self.images[:1], *self.scaling)
        variables = self.net(level).init(jax.random.key(self.config.seed), one_image)
        return {
            "params": variables["params"],
            "batch_stats": variables["batch_stats"],
            "opt_state": self.optimizer.init(variables["params"]),
            "step": jnp.int32(0),
            "metrics": new_metrics(),
        }

    def order(self, epoch: int) -> jax.Array:
        """Which image comes when in an epoch."""
        return data.epoch_permutation(self.config.seed, epoch, len(self.images))


class StopSignals:
    """Within it, Ctrl-C and SIGTERM are noted, so that the loop can save; a second Ctrl-C does not wait."""

    def __enter__(self) -> StopSignals:
        self.noted: list[int] = []
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, signum: int, frame: Any) -> None:
        if self.noted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted.append(signum)

    def __exit__(self, *exception: Any) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)


def read(metrics: PyTree, batch_size: int) -> tuple[float, float]:
    """Mean loss and accuracy so far in the epoch.

    Raises:
      NonFiniteLossError: if a loss was not finite.
    """
    values = jax.device_get(metrics)
    if values["bad_step"] >= 0:
        raise NonFiniteLossError(
            f"the loss was not finite at step {int(values['bad_step'])}; the last checkpoint before it is kept. "
            "A smaller --learning-rate may help"
        )
    count = max(int(values["count"]), 1)
    return float(values["loss"]) / count, int(values["correct"]) / (count * batch_size)


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def train(config: Config, options: Options, folder: Path) -> dict[str, Any]:
    """Train to the end, or until interrupted; the results in the manifest.

    Raises:
      RunError: for a folder that holds another run, a non-finite loss, or an interruption.
    """
    console = Console(quiet=options.quiet)
    task = Task(config)
    run = Run.start(folder, config, resume=options.resume, overwrite=options.overwrite)
    try:
        if (results := run.results()) is None:
            results = _train(task, options, run, console)
        console.print(f"test accuracy {results['test_accuracy']:.4f} on {results['n_test']} images; run in {folder}")
        return results
    except NonFiniteLossError:
        run.update(status="failed: non-finite loss")
        raise
    except (RunError, KeyboardInterrupt):
        run.update(status="interrupted")
        raise
    finally:
        run.close()


def _train(task: Task, options: Options, run: Run, console: Console) -> dict[str, Any]:
    config, total_steps = task.config, task.config.epochs * task.steps_per_epoch
    # A new state, or the newest whole checkpoint.
    step, notes = run.restore_notes() or (0, {"level": 0, "best": -1.0, "seconds": 0.0})
    if step > 0:
        state = run.restore(step, jax.eval_shape(partial(task.first_state, notes["level"])))
    else:
        state = jax.jit(task.first_state, static_argnums=0)(0)
    run.forget_after(step)
    net = task.net(notes["level"])
    clock = saved = time.perf_counter()

    def save(which: str = "latest") -> None:
        nonlocal clock, saved
        read(state["metrics"], config.batch_size)
        notes["seconds"] += time.perf_counter() - clock
        run.save(which, step, state, dict(notes))
        clock = saved = time.perf_counter()

    with StopSignals() as signals, progress(console, config.epochs, total_steps) as bar:
        while step < total_steps:
            epoch = step // task.steps_per_epoch
            while config.level(epoch) > notes["level"]:
                net, parts = manifest.refine(net, {name: state[name] for name in REFINED})
                state |= parts
                notes["level"] += 1
            order = task.order(epoch)
            began, first_step = time.perf_counter(), step
            pending: deque[PyTree] = deque()
            while step < (epoch + 1) * task.steps_per_epoch:
                state, metrics = train_step(
                    config, net, task.optimizer, state, task.images, task.labels, order, task.scaling
                )
                step += 1
                pending.append(metrics)
                if len(pending) > READ_EVERY:
                    loss, accuracy = read(pending.popleft(), config.batch_size)
                    rate = (step - first_step) * config.batch_size / (time.perf_counter() - began)
                    bar.update(0, completed=step, epoch=epoch + 1, loss=loss, accuracy=accuracy, rate=rate)
                if signals.noted or time.perf_counter() - saved > options.checkpoint_seconds:
                    save()
                if signals.noted:
                    raise RunError(f"interrupted at step {step}; --resume goes on from there")
            loss, accuracy = read(state["metrics"], config.batch_size)
            seconds = time.perf_counter() - began
            record = {
                "step": step,
                "epoch": epoch + 1,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "level": notes["level"],
                "n_parameters": manifest.n_parameters(state),
                "seconds": seconds,
                "images_per_second": (step - first_step) * config.batch_size / seconds,
            }
            if len(task.dataset.x_validation):
                held_out = evaluate(net, state, task.dataset.x_validation, task.dataset.y_validation, task.scaling)
                record["validation_loss"], record["validation_accuracy"] = held_out
                if record["validation_accuracy"] > notes["best"]:
                    notes["best"] = record["validation_accuracy"]
                    save("best")
            run.log(record)
            state["metrics"] = new_metrics()
            save()
    # The test set, once.
    test_loss, test_accuracy = evaluate(net, state, task.dataset.x_test, task.dataset.y_test, task.scaling)
    results = {
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "n_test": len(task.dataset.x_test),
        "n_parameters": manifest.n_parameters(state),
        "train_seconds": notes["seconds"],
        "data": task.dataset.source,
    }
    run.update(status="finished", results=results)
    return results


def progress(console: Console, epochs: int, total_steps: int) -> Progress:
    """A bar over all steps with loss, accuracy, images a second and the time left."""
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  acc {task.fields[accuracy]:.3f}  {task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
    )
    bar.add_task("", total=total_steps, epoch=0, loss=np.nan, accuracy=np.nan, rate=0)
    return bar


def main() -> None:
    """The command line."""
    name, config, options = configs.command_line(Options, "python -m experiments.train")
    folder = options.run_dir or Path("runs") / name
    try:
        train(config, options, folder)
    except (RunError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
