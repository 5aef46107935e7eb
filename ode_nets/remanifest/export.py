"""A trained model as one serialized function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from ode_nets.arguments import Count, checked

PyTree = Any


@checked
def export_inference(
    net: nn.Module,
    variables: PyTree,
    image_shape: tuple[Count, Count, Count],
    *,
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    dtype: str = "float32",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """A trained model as one serialized function that runs without `ode_nets` and without Flax.

        logits = jax.export.deserialize(bytearray(data)).call(images)

    The weights and the preprocessing are inside; the batch may have any size.

    Args:
      net, variables: a trained model.
      image_shape: height, width, channels.
      preprocess: what is done to images before the net, e.g. scaling; pure.
      dtype: of the images that the function takes, `[batch, *image_shape]`.
      platforms: to lower for.

    Returns:
      Bytes to write to a file.

    Example:
        >>> net = ContinuousNet(widths=(2,), basis=PiecewiseConstant(1), solver=FixedStep("euler", 1))
        >>> variables = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
        >>> data = export_inference(net, variables, image_shape=(8, 8, 1), platforms=["cpu"])
        >>> jax.export.deserialize(bytearray(data)).out_avals[0].shape
        (batch, 10)
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    function = jax.jit(lambda images: net.apply(variables, preprocess(images)))
    return bytes(jax.export.export(function, platforms=tuple(platforms))(images).serialize())
