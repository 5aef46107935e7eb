"""Images moved by a random linear convolution, with the exact flow: what the adjoint method has to undo."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ode_nets.arguments import Count, Key, Numbers, checked
from ode_nets.fields import convolution

Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "size size channels channels"]


@checked
def random_kernel(key: Key, channels: Count, size: Count = 3) -> Kernel:
    """A convolution with one random kernel, the same for every channel and none between channels.

    Args:
      key: PRNG key.
      channels: of the image, at least 1.
      size: extent of the kernel, odd.

    Returns:
      `[size, size, channels, channels]` in the default floating dtype; entries uniform in [0, 1), so that the
      image as a whole grows while its detail is blurred.

    Raises:
      ValueError: for an even or non-positive size, or less than one channel.
    """
    if size < 1 or size % 2 == 0 or channels < 1:
        raise ValueError(f"size={size}, channels={channels}: expected an odd size and at least one channel")
    return jax.random.uniform(key, (size, size))[:, :, None, None] * jnp.eye(channels)


@checked
def field(t: Numbers, x: Images, kernel: Kernel) -> Images:
    """Convolution of images that continue periodically beyond their borders.

        dx/dt = kernel * x                                   (ACA sec. 3.2, Fig. 5)

    Args:
      t: time, not read.
      x: `[batch, height, width, channels]`, each side at least the kernel's extent.
      kernel: `[size, size, channels, channels]` of odd size, the theta of this field.

    Returns:
      Like `x`.
    """
    pad = _reach(kernel)
    around = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="wrap")
    return convolution(around, kernel, padding="VALID")


@checked
def spectrum(kernel: Kernel, height: Count, width: Count) -> Complex[Array, "height width channels channels"]:
    """The convolution as a matrix between channels at each spatial frequency.

        F(kernel * x)(q) = F(x)(q) A(q),   A(q) = sum_d kernel[d] exp(2 pi i q.d)

    with d the offset of a tap from the middle of the kernel and q the frequency in cycles a pixel.

    Args:
      kernel: `[size, size, channels, channels]` of odd size.
      height, width: of the image.

    Returns:
      `[height, width, channels, channels]`, complex. Real parts of the eigenvalues are growth rates: a mode
      that the flow damps by exp(-r T) comes back with its errors multiplied by exp(r T).
    """
    pad = _reach(kernel)
    image = jnp.zeros((height, width, *kernel.shape[2:]), kernel.dtype)
    rows = jnp.arange(-pad, pad + 1) % height
    columns = jnp.arange(-pad, pad + 1) % width
    taps = image.at[rows[:, None], columns[None, :]].add(kernel)
    # The field correlates: y[n] = sum_d x[n + d] kernel[d], a conjugate in Fourier space.
    return jnp.conj(jnp.fft.fft2(taps, axes=(0, 1)))


@checked
def solution(t: Numbers, x0: Images, kernel: Kernel) -> Images:
    """The image at time t, exactly: every spatial frequency is a small linear system of its own.

        x(t) = F^-1( F(x0) exp(A t) )

    Args:
      t: time, negative for the way back.
      x0: `[batch, height, width, channels]`.
      kernel: `[size, size, channels, channels]` of odd size.

    Returns:
      Like `x0`. Cost: a matrix exponential of [channels, channels] a pixel.
    """
    flow = jax.vmap(jax.vmap(jax.scipy.linalg.expm))(spectrum(kernel, *x0.shape[1:3]) * t)
    modes = jnp.fft.fft2(x0, axes=(1, 2))
    return jnp.fft.ifft2(jnp.einsum("bhwc,hwcd->bhwd", modes, flow), axes=(1, 2)).real.astype(x0.dtype)


def _reach(kernel: jax.Array) -> int:
    """How far a kernel reaches from its middle."""
    if kernel.shape[0] % 2 == 0 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel has shape {kernel.shape}: expected [size, size, channels, channels] of odd size")
    return int(kernel.shape[0] // 2)
