"""A two-dimensional convolution whose derivatives stay fast inside `scan` and `while_loop` on every platform.

On a CPU, XLA runs the gradients of `lax.conv_general_dilated` tens of times slower inside a loop than
outside one, because only outside loops are convolutions brought into the layout its fast kernels need. The
convolution is therefore lowered on CPUs as one matrix product between shifts of the image; its derivatives,
forward and reverse and of any order, are again matrix products and shifts, so it needs no derivative rule of
its own and refuses none. Every other platform gets the native convolution and its native gradients, chosen
when the program is lowered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from ode_nets.arguments import Count, checked

Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


class Layout(NamedTuple):
    """Where the entries of a kernel lie on the image, and which channels it connects; hashable."""

    pads: Pads
    rates: tuple[int, int]
    groups: int


@checked
def convolution(
    x: Float[Array, "batch height width in_channels"],
    kernel: Float[Array, "kernel_height kernel_width group_channels out_channels"],
    *,
    strides: Any = 1,
    padding: Any = "SAME",
    groups: Count = 1,
    dilation: Any = 1,
    dtype: DTypeLike | None = None,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """Cross-correlates a batch of images with a kernel.

        y[n, h, w, d] = sum_{i, j, c} x[n, s_h h + r_h i - p_h, s_w w + r_w j - p_w, g(d) + c] kernel[i, j, c, d]

    the Conv of every residual unit (R in ContinuousNet eq. 20-22), with zeros outside the image; `r` is the dilation,
    and `g(d)` the first input channel of the group that `d` is in, 0 where there is one group.

    Args:
        x: images, `[batch, height, width, in_channels]`.
        kernel: `[kernel_height, kernel_width, in_channels / groups, out_channels]`, at least 1x1.
        strides: `s`, one positive integer or one for each of height and width.
        padding: "SAME" (`ceil(size / stride)` outputs), "VALID" (no padding), or the zeros to add,
            `((above, below), (left, right))`.
        groups: into how many equal parts, in their order, input and output channels are divided, each output reading
            the inputs of its own part: with `groups=in_channels` a depthwise convolution.
        dilation: `r`, the distance of the kernel's entries on the image, one positive integer or one for each of
            height and width.
        dtype: computation dtype, such as `jnp.bfloat16`; by default the common dtype of `x` and `kernel`.
            Sums are accumulated in float32 or wider.

    Returns:
        `[batch, out_height, out_width, out_channels]` in the dtype of `x`, so that a state keeps its dtype.

    Raises:
        ValueError: at trace time, on wrong ranks, channels that differ or that `groups` does not divide, non-floating
            dtypes, strides or dilations that are not positive, an unknown or negative padding, or an output that
            would be empty.

    Differentiable in `x` and `kernel`, in forward and reverse mode and to any order; reverse mode keeps only
    `x` and `kernel`. With stride 1 a CPU needs temporary memory for `kernel_height` copies of `x` and
    `kernel_width` of `y`. With a larger stride every platform takes the native convolution, whose gradient is
    slow inside a loop on a CPU.

    Example:
        >>> convolution(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5)), strides=2).shape
        (2, 4, 4, 5)
        >>> convolution(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 1, 3)), groups=3, dilation=2).shape
        (2, 8, 8, 3)
    """
    compute_dtype = _check_arrays(x, kernel, groups, dtype)
    stride_pair, rates = _check_pair("strides", strides), _check_pair("dilation", dilation)
    extents = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape[:2], rates, strict=True)]
    layout = Layout(_resolve_pads(padding, x.shape[1:3], extents, stride_pair), rates, groups)
    if stride_pair == (1, 1):
        convolve = partial(_unit_stride, layout=layout)
    else:
        convolve = partial(_native, strides=stride_pair, layout=layout)
    return convolve(x.astype(compute_dtype), kernel.astype(compute_dtype)).astype(x.dtype)


def _native(x: Array, kernel: Array, *, strides: tuple[int, int], layout: Layout) -> Array:
    return lax.conv_general_dilated(
        *(x, kernel, strides, layout.pads),
        rhs_dilation=layout.rates,
        dimension_numbers=_DIMENSION_NUMBERS,
        feature_group_count=layout.groups,
    )


# jit caches the trace of a convolution met again with the same shapes; inline leaves no call behind.
@partial(jax.jit, static_argnames=("layout",), inline=True)
def _unit_stride(x: Array, kernel: Array, *, layout: Layout) -> Array:
    def lowered(x: Array, kernel: Array) -> Array:
        cpu = partial(_on_cpu, layout=layout)
        default = partial(_native, strides=(1, 1), layout=layout)
        return lax.platform_dependent(x, kernel, cpu=cpu, default=default)

    # Else reverse mode would keep the gathered rows of x, and placeholders for the platforms not taken.
    return jax.checkpoint(lowered, prevent_cse=False)(x, kernel)


def _on_cpu(x: Array, kernel: Array, *, layout: Layout) -> Array:
    if layout.groups == 1:
        return _matrix_product(x, kernel, layout)
    if kernel.shape[2] == 1:
        return _depthwise(x, kernel, layout)
    split = lambda a: a.reshape(*a.shape[:3], layout.groups, a.shape[3] // layout.groups)
    y = jax.vmap(partial(_matrix_product, layout=layout), in_axes=3, out_axes=3)(split(x), split(kernel))
    return y.reshape(*y.shape[:3], kernel.shape[3])


def _shifts(layout: Layout, kernel: Array) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The zeros before and after the image, from which each row and each column of the kernel reads it."""
    pads = (
        [(before - rate * i, after - rate * (size - 1 - i)) for i in range(size)]
        for size, rate, (before, after) in zip(kernel.shape[:2], layout.rates, layout.pads, strict=True)
    )
    rows, columns = pads
    return rows, columns


def _matrix_product(x: Array, kernel: Array, layout: Layout) -> Array:
    """Computes a convolution of stride 1 by gathering rows, one matrix product, and scattering columns.

        y = sum_j S_j(X K_j),    X = [R_0 x, R_1 x, ...],    K_j = [kernel[0, j]; kernel[1, j]; ...]

    with `R_i` a shift by `i` rows and `S_j` one by `j` columns. All `K_j` sit side by side in one product, so
    that each of its sides is widened by one extent of the kernel, where gathering whole patches widens one
    side by the kernel's area. Patches are gathered only where few channels enter and many leave, and they are
    narrower.
    """
    height, width, channels, features = kernel.shape
    row_pads, column_pads = _shifts(layout, kernel)
    rows = [_shift(x, 1, *pad) for pad in row_pads]
    accumulator = jnp.promote_types(x.dtype, jnp.float32)

    if height * width * channels < height * channels + width * features:
        patches = jnp.concatenate([_shift(row, 2, *pad) for row in rows for pad in column_pads], axis=3)
        y = _product(patches, kernel.reshape(-1, features), accumulator)
    else:
        gathered = jnp.concatenate(rows, axis=3)
        side_by_side = kernel.transpose(0, 2, 1, 3).reshape(height * channels, width * features)
        columns = lax.split(_product(gathered, side_by_side, accumulator), [features] * width, axis=3)
        shifted = [_shift(column, 2, *pad) for column, pad in zip(columns, column_pads, strict=True)]
        y = reduce(jnp.add, shifted)
    return y.astype(x.dtype)


def _depthwise(x: Array, kernel: Array, layout: Layout) -> Array:
    """The same shifts where each output reads one channel: products with single channels would be narrow."""
    row_pads, column_pads = _shifts(layout, kernel)
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    each = jnp.repeat(x, kernel.shape[3] // x.shape[3], axis=3).astype(accumulator)
    rows, weights = [_shift(each, 1, *pad) for pad in row_pads], kernel[:, :, 0].astype(accumulator)
    columns = [reduce(jnp.add, [row * weights[i, j] for i, row in enumerate(rows)]) for j in range(kernel.shape[1])]
    return reduce(jnp.add, [_shift(y, 2, *pad) for y, pad in zip(columns, column_pads, strict=True)]).astype(x.dtype)


def _product(pixels: Array, matrix: Array, accumulator: DTypeLike) -> Array:
    # With pixels on one axis the kernel's gradient contracts one axis, not three: XLA is fast at the former.
    flat = pixels.reshape(-1, pixels.shape[3])
    product = jnp.matmul(flat, matrix, preferred_element_type=accumulator)
    return product.reshape(*pixels.shape[:3], matrix.shape[1])


def _shift(x: Array, axis: int, before: int, after: int) -> Array:
    """Adds `before` and `after` zeros at the two ends of an axis; a negative number takes entries away."""
    if (before, after) == (0, 0):
        return x
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _check_arrays(x: Array, kernel: Array, groups: int, dtype: DTypeLike | None) -> jnp.dtype:
    if min(kernel.shape[:2]) < 1:
        raise ValueError(f"kernel has shape {kernel.shape}; expected an extent of at least 1x1.")
    if x.shape[3] != groups * kernel.shape[2]:
        of = f"{groups} groups of {kernel.shape[2]}" if groups > 1 else str(kernel.shape[2])
        raise ValueError(
            f"x has {x.shape[3]} channels (shape {x.shape}) and kernel reads {of} (shape {kernel.shape}); expected "
            "x.shape[3] == groups * kernel.shape[2]."
        )
    if kernel.shape[3] % groups:
        raise ValueError(
            f"kernel has {kernel.shape[3]} output channels (shape {kernel.shape}), which groups={groups} does not "
            "divide; expected a multiple of it."
        )
    compute_dtype = jnp.promote_types(x.dtype, kernel.dtype) if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(compute_dtype, jnp.floating):
        raise ValueError(f"dtype is {compute_dtype}; expected a real floating dtype.")
    return compute_dtype


def _check_pair(name: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if not _are_integers(pair, at_least=1):
        raise ValueError(f"{name} is {value!r}; expected one positive integer, or two: (height, width).")
    return pair[0], pair[1]


def _are_integers(pair: Any, at_least: int) -> bool:
    two = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    return two and all(isinstance(entry, int) and entry >= at_least for entry in pair)


def _resolve_pads(padding: Padding, image: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pads:
    pairs: Any = padding
    if padding == "SAME" or padding == "VALID":
        pairs = lax.padtype_to_pads(image, window, strides, padding)
    elif not (isinstance(pairs, Sequence) and [_are_integers(pair, at_least=0) for pair in pairs] == [True] * 2):
        expected = "expected 'SAME', 'VALID' or non-negative integers ((above, below), (left, right))"
        raise ValueError(f"padding is {padding!r}; {expected}.")
    padded = [n + sum(pair) for n, pair in zip(image, pairs, strict=True)]
    if any(n < k for n, k in zip(padded, window, strict=True)):
        raise ValueError(
            f"x is {tuple(padded)} when padded with {padding!r}, smaller than the kernel {tuple(window)}; "
            "expected at least one output: pad more, or use padding='SAME'."
        )
    (above, below), (left, right) = pairs
    return (above, below), (left, right)
