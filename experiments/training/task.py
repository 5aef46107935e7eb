"""What the loop of training works on: the data of a run, on the devices, and what follows from their number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.images import data
from experiments.records.files import RunError, say
from experiments.training import adapt, models
from experiments.training.config import Config
from experiments.training.devices import Devices
from experiments.training.feed import Choice, chosen, in_parts, stream
from experiments.training.fingerprint import data_of_run
from experiments.training.optimizers import make_optimizer
from experiments.training.progress import NonFiniteError, failures, mean_counts
from experiments.training.run import Run
from experiments.training.steps import (
    evaluate_batch,
    init_state,
    padded_batches,
    result_codes,
)
from ode_nets import remanifest

PyTree = Any


class Task:
    """The data of a run, its training images on the devices as uint8, and what follows from their number.

    Args:
      config: what is trained.
      n_devices: default all.
      kept: fingerprint of the data of the run that goes on; `None` for a new run.
      data_dir: the folder that this data lies in now, if it was moved.
      accept_new_data: whether other data will do.
      feed: how images come to the devices, see `feed.chosen`.

    Raises:
      RunError: for data that is absent, broken or not that of the run, fewer images than a batch, a batch that the
        devices cannot share equally, or a network that is no classifier of these images.
    """

    def __init__(
        self,
        config: Config,
        n_devices: int | None = None,
        *,
        kept: dict[str, Any] | None = None,
        data_dir: str | None = None,
        accept_new_data: bool = False,
        feed: Choice = "auto",
    ):
        self.config = config
        try:
            self.devices = Devices.take(n_devices)
            self.dataset = data_of_run(config, kept, accept_new_data, data_dir)
        except (ValueError, OSError, ImportError) as error:
            raise RunError(str(error)) from error
        n_train = len(self.dataset.x_train)
        self.steps_per_epoch = n_train // config.batch_size
        if self.steps_per_epoch == 0:
            raise RunError(f"batch_size={config.batch_size} exceeds the {n_train} training images: lower it")
        if config.batch_size % len(self.devices):
            raise RunError(
                f"batch_size={config.batch_size} on {len(self.devices)} devices: expected a multiple of their "
                "number; --n-devices takes fewer"
            )
        levels = range(config.level(config.epochs - 1) + 1)
        self.nets = [models.build(config, self.dataset.n_classes, level) for level in levels]
        self.optimizer = make_optimizer(config, self.steps_per_epoch)
        self.scaling = self.devices.put((self.dataset.mean, self.dataset.std), self.devices.everywhere)
        self.feed = chosen(feed, self.dataset.x_train, self.devices)
        held = self.dataset.x_train, self.dataset.y_train
        if self.feed == "whole":
            self.images, self.labels = self.devices.put(held, self.devices.everywhere)
        elif self.feed == "spread":
            held = jax.tree.map(partial(in_parts, n_devices=len(self.devices)), held)
            self.images, self.labels = self.devices.put(held, self.devices.spread())
        # What the network cannot be trained on is found before a run is begun.
        jax.eval_shape(partial(self.init, 0))
        self._order = jax.jit(self.order_of, out_shardings=self.devices.spread(axis=1))

    def init(self, level: int) -> PyTree:
        """A new training state, in the shapes of a level."""
        one_image = jnp.zeros((1, *self.dataset.x_train.shape[1:]))
        n_classes = self.dataset.n_classes
        state = init_state(self.nets[level], self.optimizer, one_image, self.config.seed, n_classes)
        if self.config.ema_decay:
            state["ema"] = {name: state[name] for name in ("params", "batch_stats")}
        if self.config.adapt == "none":
            return state
        first = self.dataset.x_train[: self.config.batch_size]
        images = data.normalize(jnp.asarray(first), self.dataset.mean, self.dataset.std)
        return state | {"adaptation": adapt.begin(self.config, self.nets[level], variables_of(state), images)}

    def order(self, epoch: int) -> jax.Array:
        """The training images of each batch of an epoch, `[steps_per_epoch, batch_size]`, spread over the devices."""
        return self._order(np.int32(self.config.seed), np.int32(epoch))

    def order_of(self, seed: jax.Array, epoch: jax.Array) -> jax.Array:
        """The same of any seed, to be compiled."""
        order = data.epoch_permutation(seed, epoch, len(self.dataset.x_train))
        shape = (self.steps_per_epoch, self.config.batch_size)
        return order[: shape[0] * shape[1]].reshape(shape)

    def batches(self, order: jax.Array, start: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Images and labels as `train_step` takes them, for the steps of an epoch from one of them on."""
        if self.feed != "stream":
            return itertools.repeat((self.images, self.labels))
        spans = multihost_utils.process_allgather(order, tiled=True)
        return stream(self.dataset.x_train, self.dataset.y_train, np.asarray(spans), self.devices, start=start)

    def start(self, run: Run) -> tuple[int, dict[str, Any], PyTree]:
        """Step, notes and state of the newest whole checkpoint of a run, or new ones.

        Raises:
          RunError: as `Run.newest`.
        """

        def like(notes: dict[str, Any]) -> PyTree:
            shapes, there = jax.eval_shape(partial(self.init, notes["level"])), self.devices.everywhere
            return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=there), shapes)

        if (found := run.newest(like)) is None:
            state = jax.jit(partial(self.init, 0), out_shardings=self.devices.everywhere)()
            return 0, {"level": 0, "best": -1.0, "seconds": 0.0, "best_step": 0, "history": []}, state
        step, notes, state = found
        best = notes.get("best_step", 0)
        if best and not run.checkpoints.has("best", best):
            say(f"the best checkpoint so far, of step {best}, is gone: the best of the epochs to come takes its place")
            notes |= {"best": -1.0, "best_step": 0}
        return step, notes, state

    def evaluate(self, level: int, state: PyTree, split: str) -> tuple[float, float]:
        """Mean loss and accuracy over the validation or the test images.

        Raises:
          NonFiniteError: if a solver did not reach its end, or the loss is not finite.
        """
        images, labels = getattr(self.dataset, f"x_{split}"), getattr(self.dataset, f"y_{split}")
        # One size for all splits, so that a level compiles one program, and for all usual numbers of devices, as
        # adaptive steps follow the whole batch.
        batch_size = -(-256 // len(self.devices)) * len(self.devices)
        net, variables = self.nets[level], variables_of(state)
        batches = (
            self.devices.put(batch, self.devices.spread()) for batch in padded_batches(images, labels, batch_size)
        )
        sums = [(evaluate_batch(net, variables, x, y, self.scaling), x) for x, y in batches]
        sums, inputs = [jax.device_get(total) for total, _ in sums], [x for _, x in sums]
        loss, hits = np.sum(sums, axis=0)
        if not math.isfinite(loss):
            bad = next(x for (total, _), x in zip(sums, inputs, strict=True) if not math.isfinite(total))
            failed = failures(jax.device_get(result_codes(net, variables, bad, self.scaling)))
            if failed:
                raise NonFiniteError(f"on the {split} images the solver of {failed}; more --model.max-steps may help")
            raise NonFiniteError(f"on the {split} images the loss is not finite; a smaller --learning-rate may help")
        return float(loss) / len(images), float(hits) / len(images)

    def describe(self, level: int, state: PyTree) -> dict[str, Any]:
        """What a record says of a state: its size, its solvers' counts, its adaptation, and validation if any."""
        record = {"level": level, "n_parameters": remanifest.n_parameters(state)}
        record |= mean_counts(state["metrics"], self.config.batch_size)
        if "adaptation" in state:
            record["adapted"] = float(state["adaptation"]["value"])
        if len(self.dataset.x_validation):
            held_out = self.evaluate(level, state, "validation")
            record["validation_loss"], record["validation_accuracy"] = held_out
        return record


def variables_of(state: PyTree) -> PyTree:
    """What a network is evaluated with, averages if there are any, and where its adaptation stands, if it has one."""
    kept = {name: state[name] for name in ("params", "batch_stats", "adaptation") if name in state}
    return kept | state.get("ema", {})
