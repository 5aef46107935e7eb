"""Convolutions inside and outside a loop: `ode_nets`' against the plain one of `jax.lax`, per convolution.

    python -m benchmarks.convolution
    python -m benchmarks.convolution --shapes 16x16x16x64 --repeats 5 --out /tmp/convolution.json
    python -m benchmarks.convolution --group-width 1 --shapes 16x16x16x64 32x8x8x128       depthwise

Two programs of `n_steps` convolutions one after the other, each with its own kernel:

- forward: x <- x + tanh(conv(x))/10
- gradients: value and both gradients, of input and kernel, at every step, as a solver replaying steps does

and each as a Python loop (unrolled) and as `lax.scan`. "canonical" is an alternative: the plain convolution
with both gradients written by hand as convolutions in the layout that the CPU's fast kernels take.
About three minutes on two cores, most of it in plain gradients inside the loop.
Writes benchmarks/results/convolution_<platform>.json, with a group width convolution_groups_<width>_<platform>.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.harness import compare, default_path, show, write
from experiments.records.command import command_line
from ode_nets.fields import convolution

Convolve = Callable[[Array, Array], Array]
LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class Config:
    """What to time."""

    shapes: tuple[str, ...] = (
        "16x16x16x64",
        "32x32x32x16",
        "32x16x16x32",
        "32x4x4x512",
        "16x16x16x128",
        "32x8x8x128",
        "128x8x8x16",
        "128x32x32x16",
    )
    """Images as batch x height x width x channels; channels stay as they are."""
    kernel: int = 3
    """Extent of the kernel, odd."""
    group_width: int | None = None
    """Channels of a group, 1 for depthwise convolutions; default all, one group. "canonical" has no groups."""
    n_steps: int = 4
    """Convolutions one after the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 20
    """Samples of each program."""
    slow_repeats: int = 2
    """Samples of the plain gradients inside the loop, tens of times slower; 0 leaves them out."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/convolution_<platform>.json."""


def plain(x: Array, kernel: Array, groups: int = 1) -> Array:
    options = {"dimension_numbers": LAYOUT, "feature_group_count": groups}
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)


@jax.custom_vjp
def canonical(x: Array, kernel: Array) -> Array:
    return plain(x, kernel)


def _canonical_gradients(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rotated = kernel[::-1, ::-1].swapaxes(2, 3)
    pads = [(k // 2, k // 2) for k in kernel.shape[:2]]
    # Channels in the place of the batch, and the batch in that of the channels to sum over.
    swapped = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    kernel_bar = lax.conv_general_dilated(*swapped, (1, 1), pads, dimension_numbers=LAYOUT)
    return plain(g, rotated), kernel_bar.transpose(1, 2, 0, 3)


canonical.defvjp(lambda x, kernel: (plain(x, kernel), (x, kernel)), _canonical_gradients)


def forward_step(convolve: Convolve) -> Callable[[Array, Array], tuple[Array, Any]]:
    def step(x: Array, kernel: Array) -> tuple[Array, Any]:
        return x + jnp.tanh(convolve(x, kernel)) * 0.1, None

    return step


def gradient_step(convolve: Convolve) -> Callable[[Array, Array], tuple[Array, Any]]:
    def step(x: Array, kernel: Array) -> tuple[Array, Any]:
        y, pull = jax.vjp(convolve, x, kernel)
        # The value is its own cotangent and the next input needs the gradient, so nothing can be left out.
        x_bar, kernel_bar = pull(y)
        return x + x_bar * 0.001, kernel_bar

    return step


def program(step: Callable[[Array, Array], tuple[Array, Any]], loop: bool) -> Callable[[Array, Array], Any]:
    def scanned(x: Array, kernels: Array) -> Any:
        return lax.scan(step, x, kernels)

    def unrolled(x: Array, kernels: Array) -> Any:
        outputs = []
        for kernel in kernels:
            x, output = step(x, kernel)
            outputs.append(output)
        return x, outputs

    return scanned if loop else unrolled


def measure_shape(config: Config, shape: str) -> dict[str, Any]:
    sizes = tuple(int(size) for size in shape.split("x"))
    if len(sizes) != 4:
        raise ValueError(f"shapes has {shape!r}; expected batch x height x width x channels: 16x16x16x64.")
    rng = np.random.default_rng(0)
    channels, width = sizes[3], config.group_width or sizes[3]
    x = jnp.asarray(rng.normal(size=sizes), config.dtype)
    taps = (config.n_steps, config.kernel, config.kernel, width, channels)
    kernels = jnp.asarray(rng.normal(size=taps) * (config.kernel**2 * width) ** -0.5, config.dtype)
    theirs, ours = (partial(convolve, groups=channels // width) for convolve in (plain, convolution))

    variants = {
        "forward, plain, unrolled": program(forward_step(theirs), loop=False),
        "forward, plain, scan": program(forward_step(theirs), loop=True),
        "forward, ours, unrolled": program(forward_step(ours), loop=False),
        "forward, ours, scan": program(forward_step(ours), loop=True),
        "gradients, plain, unrolled": program(gradient_step(theirs), loop=False),
        "gradients, ours, unrolled": program(gradient_step(ours), loop=False),
        "gradients, ours, scan": program(gradient_step(ours), loop=True),
    }
    if width == channels:
        variants["gradients, canonical, scan"] = program(gradient_step(canonical), loop=True)
    repeats = dict.fromkeys(variants, config.repeats)
    if config.slow_repeats > 0:
        variants["gradients, plain, scan"] = program(gradient_step(theirs), loop=True)
        repeats["gradients, plain, scan"] = config.slow_repeats
    return {name: m.record() for name, m in compare(variants, x, kernels, repeats=repeats).items()}


def row(shape: str, records: dict[str, Any], kind: str, n_steps: int) -> list[Any]:
    def milliseconds(variant: str) -> float | str:
        record = records.get(f"{kind}, {variant}")
        return "-" if record is None else record["minimum"] * 1e3 / n_steps

    variants = ("plain, unrolled", "plain, scan", "canonical, scan", "ours, unrolled", "ours, scan")
    reference, ours = records[f"{kind}, plain, unrolled"], records[f"{kind}, ours, scan"]
    ratios = [ours[key] / reference[key] for key in ("minimum", "median")]
    return [f"{kind} {shape}", *map(milliseconds, variants), *ratios]


def main(config: Config) -> None:
    results, rows = {}, []
    for shape in config.shapes:
        results[shape] = measure_shape(config, shape)
        rows += [row(shape, results[shape], kind, config.n_steps) for kind in ("forward", "gradients")]
    settings = {key: getattr(config, key) for key in ("kernel", "group_width", "n_steps", "dtype")}
    name = "convolution" if config.group_width is None else f"convolution_groups_{config.group_width}"
    out = config.out or default_path(name)
    path = write(out, "convolution", {"settings": settings, "seconds_per_program": results})
    columns = ["", "plain", "plain, scan", "canonical, scan", "ours", "ours, scan", "ratio", "of medians"]
    title = f"milliseconds a convolution, minimum of {config.repeats}; ratio = ours in scan / plain unrolled"
    show(title, columns, rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main(command_line(Config, "python -m benchmarks.convolution", __doc__))
