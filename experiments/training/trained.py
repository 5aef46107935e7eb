"""What a run trained, for those who use it: from uint8 images to class probabilities."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.images import data
from experiments.records.files import RunError
from experiments.training.config import Config
from experiments.training.run import load_run

PyTree = Any


@partial(jax.jit, static_argnames="net")
def _probabilities(net: nn.Module, variables: PyTree, images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    logits: Any = net.apply(variables, data.normalize(images, mean, std))
    return jax.nn.softmax(logits.astype(jnp.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network with what belongs to its inputs and outputs. Made by `experiments.load`.

    Attributes:
      net: the description; `net.clone(solver=...)` is another manifestation of the same variables.
      variables: `{"params", "batch_stats"}`, averages over training if the run kept them.
      image_shape: height, width and channels of its images.
      n_classes: length of its output.
      class_names: in the order of the outputs; empty where the data had none.
      mean, std: of each channel, float32, where 255 counts as 1.
      config: what it was trained with.
      step: how many steps it was trained for.
    """

    net: nn.Module
    variables: PyTree
    image_shape: tuple[int, int, int]
    n_classes: int
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    config: Config
    step: int

    def normalize(self, images: Any) -> jax.Array:
        """Images as the network takes them, float32, from those of 0..255."""
        return data.normalize(jnp.asarray(images), self.mean, self.std)

    def predict(self, images: Any) -> np.ndarray:
        """Class probabilities of images, float32 `[n, n_classes]`.

        Args:
          images: uint8 `[n, *image_shape]`.

        Raises:
          ValueError: for images of another dtype or shape, and where the solver diverges on some; it says how many.

        Cost: each new n compiles once.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            hint = "; of one image give image[None]" if images.shape == self.image_shape else ""
            raise ValueError(
                f"images are {images.dtype} of shape {images.shape}: expected uint8 of 0..255, not normalized, of "
                f"shape (n, {shape}){hint}"
            )
        probabilities = np.asarray(_probabilities(self.net, self.variables, images, self.mean, self.std))
        if bad := int((~np.isfinite(probabilities)).any(1).sum()):
            raise ValueError(f"the outputs of {bad} of {len(images)} images are not finite: a solver diverges on them")
        return probabilities


def load(folder: str | Path, checkpoint: str = "latest") -> Trained:
    """As `experiments.load`."""
    config, net, variables, notes = load_run(folder, checkpoint)
    kept = notes["data"]
    if kept is None:
        raise RunError(f"the run in {folder} kept nothing about its data, as of an early version: train it anew")
    return Trained(
        net=net,
        variables=variables,
        image_shape=tuple(kept.get("image_shape") or kept["arrays"]["x_train"]["shape"][1:]),
        n_classes=kept["n_classes"],
        class_names=tuple(kept.get("class_names") or ()),
        mean=np.asarray(kept["mean"], np.float32),
        std=np.asarray(kept["std"], np.float32),
        config=config,
        step=notes["step"],
    )
