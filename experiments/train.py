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
from experiments.run import Run, RunError, read_manifest
from ode_nets import manifest

PyTree = Any
READ_EVERY = 10
"""Steps between two looks at the loss; what is read was computed as many steps ago, so the device never waits."""


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


def evaluate(
    net: nn.Module, variables: PyTree, images: np.ndarray, labels: np.ndarray, scaling: Any, batch_size: int = 250
) -> tuple[float, float]:
    """Mean loss and accuracy over a set of images."""
    sums = []
    for x, y in data.padded_batches(images, labels, min(batch_size, len(images))):
        sums.append(evaluate_batch(net, variables, x, y, scaling))
    loss, hits = np.sum(jax.device_get(sums), axis=0)
    return float(loss) / len(images), float(hits) / len(images)


def train(config: Config, options: Options, folder: Path) -> dict[str, Any]:
    """Train to the end, or until interrupted; the results in the manifest.

    Raises:
      RunError: for a folder that holds another run, a non-finite loss, or an interruption.
    """
    console = Console(quiet=options.quiet)

    # -----------------------------------------------------------------------------------------------------
    # Data: decoded once, the training images on the device as uint8
    # -----------------------------------------------------------------------------------------------------
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        limit=config.limit,
    )
    scaling = (jnp.asarray(dataset.mean), jnp.asarray(dataset.std))
    n_train = len(dataset.x_train)
    steps_per_epoch = n_train // config.batch_size
    if steps_per_epoch == 0:
        raise RunError(f"batch_size={config.batch_size} exceeds the {n_train} training images; make it smaller")
    images, labels = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)

    # -----------------------------------------------------------------------------------------------------
    # State: new, or the newest whole checkpoint
    # -----------------------------------------------------------------------------------------------------
    run = Run.start(folder, config, resume=options.resume, overwrite=options.overwrite)
    if (stored := read_manifest(folder)) and stored["status"] == "finished":
        console.print(f"{folder} is finished: {stored['results']}")
        run.close()
        return stored["results"]
    optimizer = make_optimizer(config, steps_per_epoch)

    def initial_state(level: int) -> PyTree:
        net = models.build(config, dataset.n_classes, level)
        variables = net.init(jax.random.key(config.seed), data.normalize(images[:1], *scaling))
        return {
            "params": variables["params"],
            "batch_stats": variables["batch_stats"],
            "opt_state": optimizer.init(variables["params"]),
            "step": jnp.int32(0),
            "metrics": new_metrics(),
        }

    notes: dict[str, Any] = {"level": 0, "best": -1.0, "seconds": 0.0}
    if (found := run.restore_meta() if options.resume else None) is not None:
        step, notes = found
        state = run.restore(step, jax.eval_shape(partial(initial_state, notes["level"])))
    else:
        step, state = 0, jax.jit(partial(initial_state, 0))()
    run.forget_after(step)
    net = models.build(config, dataset.n_classes, notes["level"])

    # -----------------------------------------------------------------------------------------------------
    # Ctrl-C and SIGTERM ask for a checkpoint; a second Ctrl-C does not wait for it
    # -----------------------------------------------------------------------------------------------------
    asked_to_stop: list[int] = []

    def ask_to_stop(signum: int, frame: Any) -> None:
        if asked_to_stop and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked_to_stop.append(signum)

    previous = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}

    # -----------------------------------------------------------------------------------------------------
    # The loop
    # -----------------------------------------------------------------------------------------------------
    total_steps = config.epochs * steps_per_epoch
    pending: deque[PyTree] = deque()
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}/" + str(config.epochs)),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  acc {task.fields[accuracy]:.3f}  {task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("", total=total_steps, completed=step, epoch=0, loss=np.nan, accuracy=np.nan, rate=0)
    last_save = clock = time.perf_counter()

    def look(metrics: PyTree) -> tuple[float, float]:
        """Mean loss and accuracy so far in the epoch; refuses a loss that is not finite."""
        values = jax.device_get(metrics)
        if values["bad_step"] >= 0:
            raise NonFiniteLossError(
                f"the loss was not finite at step {int(values['bad_step'])}; the checkpoint before it is kept in "
                f"{folder}. A smaller --learning-rate may help"
            )
        count = max(int(values["count"]), 1)
        return float(values["loss"]) / count, int(values["correct"]) / (count * config.batch_size)

    def save(which: str = "latest") -> None:
        look(state["metrics"])
        notes["seconds"] += time.perf_counter() - clock
        run.save(which, int(state["step"]), state, dict(notes))

    try:
        with bar:
            while step < total_steps:
                epoch = step // steps_per_epoch
                if config.level(epoch) > notes["level"]:
                    net, state = refine(config, dataset.n_classes, net, state)
                    notes["level"] += 1
                    continue
                order = data.epoch_permutation(config.seed, epoch, n_train)
                began, first_step = time.perf_counter(), step
                while step < (epoch + 1) * steps_per_epoch:
                    state, metrics = train_step(
                        config, net, optimizer, state, images, labels, order, scaling
                    )
                    step += 1
                    pending.append(metrics)
                    if len(pending) > READ_EVERY:
                        loss, accuracy = look(pending.popleft())
                        rate = (step - first_step) * config.batch_size / (time.perf_counter() - began)
                        bar.update(task, completed=step, epoch=epoch + 1, loss=loss, accuracy=accuracy, rate=rate)
                    overdue = time.perf_counter() - last_save > options.checkpoint_seconds
                    if asked_to_stop or overdue:
                        save()
                        last_save = clock = time.perf_counter()
                    if asked_to_stop:
                        raise RunError(f"interrupted at step {step}; --resume goes on from there")
                loss, accuracy = look(state["metrics"])
                seconds = time.perf_counter() - began
                pending.clear()
                variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
                record = {
                    "step": step,
                    "epoch": epoch + 1,
                    "train_loss": loss,
                    "train_accuracy": accuracy,
                    "n_basis": config.n_basis * 2 ** notes["level"],
                    "n_parameters": sum(leaf.size for leaf in jax.tree.leaves(state["params"])),
                    "seconds": seconds,
                    "images_per_second": (step - first_step) * config.batch_size / seconds,
                }
                if len(dataset.x_validation):
                    held_out = evaluate(net, variables, dataset.x_validation, dataset.y_validation, scaling)
                    record["validation_loss"], record["validation_accuracy"] = held_out
                    if record["validation_accuracy"] > notes["best"]:
                        notes["best"] = record["validation_accuracy"]
                        save("best")
                        clock = time.perf_counter()
                run.log(record)
                state["metrics"] = new_metrics()
                save()
                last_save = clock = time.perf_counter()
        # -------------------------------------------------------------------------------------------------
        # The test set, once
        # -------------------------------------------------------------------------------------------------
        variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
        test_loss, test_accuracy = evaluate(net, variables, dataset.x_test, dataset.y_test, scaling)
        results = {"test_loss": test_loss, "test_accuracy": test_accuracy, "n_test": len(dataset.x_test)}
        results |= {"train_seconds": notes["seconds"], "n_parameters": manifest.n_parameters(variables)}
        results |= {"data": dataset.source}
        run.update(status="finished", results=results)
        console.print(f"test accuracy {test_accuracy:.4f} on {len(dataset.x_test)} images; run in {folder}")
        return results
    except NonFiniteLossError:
        run.update(status="failed: non-finite loss")
        raise
    except (RunError, KeyboardInterrupt):
        run.update(status="interrupted")
        raise
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
        run.close()


def refine(config: Config, n_classes: int, net: nn.Module, state: PyTree) -> tuple[nn.Module, PyTree]:
    """Double M and N_t: parameters, batch statistics and momentum go through the same split."""
    refined, state_parts = manifest.refine(
        net, {name: state[name] for name in ("params", "batch_stats", "opt_state")}
    )
    return refined, state | state_parts


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
