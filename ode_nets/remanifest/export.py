"""A trained model as one serialized function, of jax or of ONNX, and calls of it at a few batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Count, Variables, checked
from ode_nets.remanifest.flatten import flattened
from ode_nets.remanifest.quantize import dequantize

PyTree = Any
Preprocess = Callable[[jax.Array], jax.Array]


@checked
def export_inference(
    net: nn.Module,
    variables: Variables,
    image_shape: tuple[Count, Count, Count],
    *,
    preprocess: Preprocess = lambda images: images,
    dtype: str = "float32",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch_size: Count | None = None,
) -> bytes:
    """A trained model as one serialized function that runs without `ode_nets` and without Flax.

        logits = jax.export.deserialize(bytearray(data)).call(images)

    The weights and the preprocessing are inside. The batch may have any size, and each new size compiles once where
    the function is called; `padded` keeps to a few.

    Args:
      net, variables: a trained model; of `quantize`d variables the function holds the int8 values, and makes the
        weights from them when it runs.
      image_shape: height, width, channels.
      preprocess: what is done to images before the net, e.g. scaling; pure.
      dtype: of the images that the function takes, `[batch, *image_shape]`.
      platforms: to lower for.
      batch_size: the one size that it takes; `None` for any.

    Returns:
      Bytes to write to a file.

    Example:
        >>> net = ContinuousNet(widths=(2,), basis=PiecewiseConstant(1), solver=FixedStep("euler", 1))
        >>> variables = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
        >>> data = export_inference(net, variables, image_shape=(8, 8, 1), platforms=["cpu"])
        >>> jax.export.deserialize(bytearray(data)).out_avals[0].shape
        (batch, 10)
    """
    images = _images(batch_size, image_shape, dtype)
    function = jax.jit(lambda images: net.apply(dequantize(variables), preprocess(images)))
    return bytes(jax.export.export(function, platforms=tuple(platforms))(images).serialize())


@checked
def export_onnx(
    net: nn.Module,
    variables: Variables,
    image_shape: tuple[Count, Count, Count],
    *,
    preprocess: Preprocess = lambda images: images,
    dtype: str = "float32",
    batch_size: Count | None = None,
) -> bytes:
    """A trained model as an ONNX file, from `images` to `logits`, written by `jax2onnx` (extra `onnx`).

        session = onnxruntime.InferenceSession(data)
        (logits,) = session.run(None, {"images": images})

    Steps are unrolled and theta(t) is computed at each stage, so that the file is a chain of convolutions with as many
    of them as the network has field evaluations; what several stages read is in it once.

    Args, but for `platforms`, as of `export_inference`. Weights are float32, quantized or not.

    Returns:
      Bytes to write to a file.

    Raises:
      ValueError: for a network whose number of steps depends on the images, as with an adaptive solver, or with an
        operation that `jax2onnx` does not know.
      ImportError: without `jax2onnx`.
    """
    # The converter loads onnx and equinox, which no other part of this library needs.
    from jax2onnx import to_onnx

    images = _images(batch_size, image_shape, dtype)
    # While it converts, it puts other functions in the place of some of jax and Flax: the network is traced before.
    function = flattened(lambda images: net.apply(dequantize(variables), preprocess(images)), images)
    try:
        model = to_onnx(function, [images], model_name="model", input_names=["images"], output_names=["logits"])
    except RuntimeError as error:  # by which it says what it cannot do
        raise ValueError(f"jax2onnx cannot write this network, export_inference can: {error}") from error
    return bytes(model.SerializeToString())


@checked
def padded(function: Callable[[np.ndarray], Any], sizes: Sequence[Count] = (1, 8, 64)) -> Callable[[Any], np.ndarray]:
    """A function of batches of any size, from one that is called at a few sizes alone.

    A batch is padded with zeros to the next size; one beyond the largest is cut into pieces of that size. Rows must
    not depend on each other. In a trained network they do not, under fixed steps; an adaptive solver chooses its steps
    for the batch as a whole, so that other rows, zeros too, move the result within its tolerance.

    Args:
      function: from images `[batch, ...]` to rows `[batch, ...]`, compiled for each size it meets.
      sizes: that it may meet.

    Returns:
      A function from images `[batch, ...]`, with `batch` at least 1, to rows `[batch, ...]`, as arrays of NumPy.

    Example:
        >>> seen = []
        >>> serve = padded(lambda x: seen.append(len(x)) or 2 * x, sizes=(1, 4))
        >>> serve(jnp.arange(6.0)).tolist(), seen
        ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [4, 4])
    """
    if not sizes:
        raise ValueError("sizes=(): expected one size or more")
    largest = max(sizes)

    def call(images: Any) -> np.ndarray:
        if not len(images):
            raise ValueError("images has no rows: expected a batch of at least 1")
        rows = []
        for start in range(0, len(images), largest):
            some = np.asarray(images[start : start + largest])
            room = np.zeros((min(size for size in sizes if size >= len(some)), *some.shape[1:]), some.dtype)
            room[: len(some)] = some
            rows.append(np.asarray(function(room))[: len(some)])
        return np.concatenate(rows)

    return call


def _images(batch_size: int | None, image_shape: tuple[int, int, int], dtype: str) -> jax.ShapeDtypeStruct:
    batch = jax.export.symbolic_shape("batch")[0] if batch_size is None else batch_size
    return jax.ShapeDtypeStruct((batch, *image_shape), jnp.dtype(dtype))
