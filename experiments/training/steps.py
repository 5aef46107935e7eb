"""One training step and the evaluation of one batch, each compiled once for a network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.images import data
from experiments.records.files import RunError
from experiments.training import adapt, parallel
from experiments.training.config import Config
from experiments.training.feed import Feed, pick
from experiments.training.parallel import by_block

PyTree = Any
COUNTS = ("nfe", "n_accepted", "n_rejected")
REFINED = ("params", "batch_stats", "opt_state")
"""Parts of the state that go through a refinement: momentum is split as the parameters are."""


def dataset_of(config: Config) -> data.Dataset:
    """The images of a run, split as it saw them."""
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        limit=config.limit,
        image_size=config.image_size,
    )


def init_state(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    one_image: jax.Array,
    seed: jax.Array | int,
    n_classes: int | None = None,
) -> PyTree:
    """A new training state for images `[1, height, width, channels]`, and so many classes if that is to be checked.

    Raises:
      RunError: for a net that keeps other variables than parameters and batch statistics, has no parameters, or whose
        outputs are no logits of the classes.
    """
    logits, variables = net.init_with_output(jax.random.key(seed), one_image)
    if other := sorted(set(variables) - {"params", "batch_stats", "solution", "quantities"}):
        raise RunError(f"a {type(net).__name__} has variables in {', '.join(other)}: expected params and batch_stats")
    if "params" not in variables:
        raise RunError(f"a {type(net).__name__} has no parameters, expected some to train")
    if n_classes is not None and jnp.shape(logits) != (1, n_classes):
        found = f"outputs of shape {jnp.shape(logits)} for one image"
        raise RunError(f"a {type(net).__name__} has {found}, expected logits {(1, n_classes)}, one a class")
    blocks = by_block(variables.get("solution", {}))
    sums = {"loss": jnp.float32(0), "correct": jnp.int32(0), "images": jnp.int32(0)}
    sums["counts"] = {block: {name: jnp.int32(0) for name in COUNTS} for block in blocks}
    results = {block: jnp.int32(0) for block in blocks}
    return {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
        "opt_state": optimizer.init(variables["params"]),
        "step": jnp.int32(0),
        "metrics": {"epoch": sums, "bad_step": jnp.int32(0), "results": results},
    }


def averaged(decay: float, average: PyTree, now: PyTree, step: jax.Array) -> PyTree:
    """The moving average of weights and statistics after one more step, counted from 0."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
    return jax.tree.map(lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), average, now)


@partial(jax.jit, static_argnames=("config", "net", "optimizer", "mesh", "feed"), donate_argnames="state")
def train_step(
    config: Config,
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    state: PyTree,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    scaling: tuple[jax.Array, jax.Array],
    seed: jax.Array | int,
    mesh: Mesh | None = None,
    feed: Feed = "whole",
) -> tuple[PyTree, PyTree]:
    """One step on the batch that `state["step"]` points to in `order`; the new state and its metrics.

    Args:
      images, labels: all training images.
      order: indices of an epoch, `[steps_per_epoch, batch_size]`. Spread over devices along its second axis, it
        spreads the images that it picks, and with them all that follows, in the same way.
      seed: of the augmentation.
      mesh: devices that share the batch, see `parallel.slope_of_batch`; `None` for one.
      feed: where images are, see `feed.pick`.

    Metrics are sums over the epoch so far, of images (their loss without penalties and smoothing) and of what the
    solver of each ODE block counted; the first step after which the loss or the weights were not finite or a solver had
    failed, counted from 1 (0: none); and each block's result code at that step.
    """
    step = state["step"]
    in_epoch = step % order.shape[0]
    index = order[in_epoch]
    # Epochs draw their order from the same seed, numbered upwards from 0; steps are numbered downwards.
    key = jax.random.fold_in(jax.random.key(seed), -1 - step)
    x, y = pick(images, labels, index, feed, mesh)
    x = data.normalize(data.augment(key, x, pad=config.crop_pad, flip=config.flip), *scaling)

    gradient, (loss, correct, batch_stats, solution) = parallel.slope_of_batch(config, net, mesh, state, x, y, key)
    updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)

    good = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, params, batch_stats))]
    good += [block["result"] == 0 for block in solution.values()]
    before = jax.tree.map(lambda total: jnp.where(in_epoch == 0, 0, total), state["metrics"]["epoch"])
    new = {
        "loss": config.batch_size * loss,
        "correct": correct.astype(jnp.int32),
        "images": jnp.int32(config.batch_size),
        "counts": {name: {count: block[count] for count in COUNTS} for name, block in solution.items()},
    }
    bad_step, results = state["metrics"]["bad_step"], state["metrics"]["results"]
    metrics = {
        "epoch": jax.tree.map(jnp.add, before, new),
        "bad_step": jnp.where((bad_step == 0) & ~jnp.stack(good).all(), step + 1, bad_step),
        "results": {name: jnp.where(bad_step == 0, solution[name]["result"], old) for name, old in results.items()},
    }
    trained = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
    if "adaptation" in state:
        judged = {"params": params, "batch_stats": batch_stats}
        trained["adaptation"] = adapt.checked(config, net, state["adaptation"], judged, x, y, step + 1)
    if "ema" in state:
        now = {"params": params, "batch_stats": batch_stats}
        trained["ema"] = averaged(config.ema_decay, state["ema"], now, step)
    # The state is donated to the next step; the second copy of its metrics stays readable.
    return trained | {"step": step + 1, "metrics": metrics}, metrics


@partial(jax.jit, static_argnames=("config", "net", "optimizer", "mesh", "feed"), donate_argnames="state")
def train_steps(
    config: Config,
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    state: PyTree,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    scaling: tuple[jax.Array, jax.Array],
    seed: jax.Array | int,
    n_steps: jax.Array | int,
    mesh: Mesh | None = None,
    feed: Feed = "whole",
) -> tuple[PyTree, PyTree]:
    """`n_steps` times `train_step` in one program, which is the same for any number of them."""

    def body(_: jax.Array, state: PyTree) -> PyTree:
        return train_step(config, net, optimizer, state, images, labels, order, scaling, seed, mesh, feed)[0]

    state = jax.lax.fori_loop(0, n_steps, body, state)
    return state, state["metrics"]


@partial(jax.jit, static_argnames="net")
def evaluate_batch(
    net: nn.Module,
    variables: PyTree,
    images: jax.Array,
    labels: jax.Array,
    scaling: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Summed loss and number of hits; images with label -1 are padding and count nowhere."""
    net = adapt.solved(net, variables.get("adaptation"))
    logits: Any = net.apply(variables, data.normalize(images, *scaling))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(jnp.where(labels >= 0, loss, 0.0)), jnp.sum((logits.argmax(-1) == labels) & (labels >= 0))


@partial(jax.jit, static_argnames="net")
def result_codes(
    net: nn.Module, variables: PyTree, images: jax.Array, scaling: tuple[jax.Array, jax.Array]
) -> dict[str, jax.Array]:
    """How the solver of each ODE block ended on a batch."""
    net = adapt.solved(net, variables.get("adaptation"))
    _, changed = net.apply(variables, data.normalize(images, *scaling), mutable=["solution"])
    return {name: block["result"] for name, block in by_block(changed.get("solution", {})).items()}


def padded_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Batches of one size, so that they share one program.

    The last is filled up with its own images again, now labelled -1, so that adaptive steps follow these alone.
    """
    for start in range(0, len(images), batch_size):
        x, y = images[start : start + batch_size], labels[start : start + batch_size]
        missing = batch_size - len(x)
        index = np.arange(batch_size) % len(x)
        yield x[index], np.pad(y, (0, missing), constant_values=-1)
