"""Reaction, diffusion and advection of convolution filters, solved in Fourier space."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ode_nets.arguments import Finite, Numbers, Positive, checked

PyTree = Any
Sigma = Callable[[jax.Array], jax.Array]
Sharing = Literal["global", "tensor", "filter"]
Filters = Float[Array, "k1 k2 in out"]


@checked
def advance_filter(
    w: Filters,
    h: Numbers,
    *,
    diffusion: Numbers = 0.0,
    advection: Any = (0.0, 0.0),
    reaction: Numbers = 0.0,
    sigma: Sigma | None = None,
) -> Filters:
    """Filters after time h of reaction, diffusion and advection.

        w(t + h) = sigma(F^-1(exp((-tau k^2 + i k.v + rho) h) F(w(t))))      (ANODEV2 eq. 9, 12, 13)

    F is the discrete Fourier transform over the filter's extent n, periodic, with the grid of the filter as the
    unit of length: wave numbers 2 pi m / n, |m| <= (n - 1) / 2. Without `sigma` this is the exact solution
    of eq. 8 for any h, and a semigroup: by s, then by t is by s + t.

    Args:
      w: `[k1, k2, in, out]`, k1 and k2 odd.
      h: time, scalar.
      diffusion: tau, at least 0, in filter pixels^2 per unit time; scalar or `[out]`.
      advection: v, in pixels per unit time, the pattern moves by -v; `[2]` or `[2, out]`.
      reaction: rho, per unit time; scalar or `[out]`.
      sigma: applied after the linear solve; `None` for none.

    Returns:
      Like `w`. Below float32 the transform computes in float32.

    Raises:
      ValueError: at trace time, for an even extent, whose highest wave has no derivative on the grid; for
        another rank, dtype or parameter shape; and for a diffusion that is not at least 0, or one back in
        time, where their values are known.

    Differentiable in all arrays. Cost: two transforms of the filter, independent of batch and image size.

    Example:
        >>> w = advance_filter(jnp.ones((3, 3, 1, 1)), 1.0, diffusion=0.1, reaction=-1.0)
        >>> w.shape, round(float(w[0, 0, 0, 0]), 4)  # exp(-1)
        ((3, 3, 1, 1), 0.3679)
    """
    _check_extents(w)
    if np.shape(h):
        raise ValueError(f"h has shape {np.shape(h)}: expected a scalar; use jax.vmap for several times")
    known = not any(isinstance(value, jax.core.Tracer) for value in (h, diffusion))
    if known and np.min(h) < 0 and np.max(diffusion) > 0:
        raise ValueError(f"h={h}: expected at least 0; back in time diffusion makes high waves grow without bound")
    out = _filtered(w, lambda symbol: jnp.exp(h * symbol), diffusion, advection, reaction)
    return out if sigma is None else sigma(out)


@dataclasses.dataclass(frozen=True)
@checked
class RDA:
    """q of ANODEV2: reaction, diffusion and advection of every filter over its own extent.

        q(w; p) = sigma(tau Lap w + v . grad w + rho w)                      (ANODEV2 eq. 8)

    A frozen value with learnable p = {"tau", "v", "rho"}. tau = softplus(p["tau"] + c) stays above 0; c is such
    that p["tau"] = 0 is the initial diffusion, to which weight decay thus draws it.
    `FlowStep` solves it by `advance_filter`, the method of the paper; `FixedStep` and `Adaptive` integrate
    eq. 8 itself. Without sigma both have one limit. With sigma they have not: eq. 13 applies sigma once a
    step whatever its length, so that tau = v = rho = 0 does not stop it, and more steps are another model.

    Args:
      diffusion, advection, reaction: initial tau (above 0), both entries of v, and rho; `None` switches the
        term off, with its parameters. The paper gives no initial values; these are ours.
      sigma: `jnp.tanh` as in the paper, any other function, or `None` for the exact linear flow.
      sharing: what shares one tau, v, rho: `"global"` all filters, `"tensor"` those of one tensor,
        `"filter"` those that feed one output channel. The paper does not say; see `ode_nets.nn.anodev2`.

    Leaves that are not `[k1, k2, in, out]`, such as biases, do not evolve.

    Raises:
      ValueError: for a diffusion that is not above 0, an unknown sharing, or all terms switched off.

    Example:
        >>> q = RDA(advection=None)
        >>> filters = {"kernel": jnp.ones((3, 3, 2, 4))}
        >>> jax.tree.map(jnp.shape, q(filters, q.init(jax.random.key(0), filters)))
        {'kernel': (3, 3, 2, 4)}
    """

    diffusion: Positive | None = 0.05
    advection: Finite | None = 0.0
    reaction: Finite | None = 0.0
    sigma: Sigma | None = jnp.tanh
    sharing: Sharing = "filter"

    def __post_init__(self) -> None:
        if self.diffusion is None and self.advection is None and self.reaction is None:
            raise ValueError("diffusion, advection and reaction are all None: expected one term at least")

    def init(self, key: jax.Array, w: PyTree) -> PyTree:
        """Parameters p for weights like `w`: one dict, or one a filter tensor in the structure of `w`."""
        evolving = [leaf for leaf in jax.tree.leaves(w) if _check_leaf(leaf)]
        if not evolving:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(w)]
            raise ValueError(f"w has leaves of shape {shapes}: RDA needs a filter [k1, k2, in, out]")
        if self.sharing == "global":
            return self._start((), evolving[0].dtype)
        shape = lambda leaf: leaf.shape[3:] if self.sharing == "filter" else ()
        return jax.tree.map(lambda leaf: self._start(shape(leaf), leaf.dtype) if _check_leaf(leaf) else {}, w)

    def _start(self, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        p = {}
        if self.diffusion is not None:
            p["tau"] = jnp.zeros(shape, dtype)
        if self.advection is not None:
            p["v"] = jnp.full((2, *shape), self.advection, dtype)
        if self.reaction is not None:
            p["rho"] = jnp.full(shape, self.reaction, dtype)
        return p

    def coefficients(self, p: dict[str, jax.Array]) -> dict[str, Any]:
        """tau, v and rho of one dict of p, as `advance_filter` names them; 0 for a term that is off.

        Raises:
          ValueError: for a p without the parameters of a term that is on.
        """
        names = {"tau": self.diffusion, "v": self.advection, "rho": self.reaction}
        on = [name for name, start in names.items() if start is not None]
        if not set(on) <= set(p):
            raise ValueError(f"p has the entries {sorted(p)}: expected {on}, the terms of {self!r}; see RDA.init")
        tau: Any = 0.0
        if self.diffusion is not None:
            # The inverse of softplus at the initial value.
            tau = jax.nn.softplus(p["tau"] + (self.diffusion + math.log(-math.expm1(-self.diffusion))))
        v, rho = (p[name] if name in on else still for name, still in (("v", (0.0, 0.0)), ("rho", 0.0)))
        return {"diffusion": tau, "advection": v, "reaction": rho}

    def __call__(self, w: PyTree, p: PyTree) -> PyTree:
        """q(w; p), eq. 8, with spectral derivatives; zero for leaves that do not evolve."""

        def slope(leaf: jax.Array, p: Any) -> jax.Array:
            out = _filtered(leaf, lambda symbol: symbol, **self.coefficients(p))
            return out if self.sigma is None else self.sigma(out)

        return self._map(slope, jnp.zeros_like, w, p)

    def flow(self, w: PyTree, p: PyTree, h: Any) -> PyTree:
        """The weights after time h, eq. 13; leaves that do not evolve as they are."""

        def step(leaf: jax.Array, p: Any) -> jax.Array:
            return advance_filter(leaf, h, **self.coefficients(p), sigma=self.sigma)

        return self._map(step, lambda leaf: leaf, w, p)

    def _map(self, evolving: Callable, still: Callable, w: PyTree, p: PyTree) -> PyTree:
        if self.sharing == "global":
            return jax.tree.map(lambda leaf: evolving(leaf, p) if _check_leaf(leaf) else still(leaf), w)
        return jax.tree.map(lambda leaf, p: evolving(leaf, p) if _check_leaf(leaf) else still(leaf), w, p)


def _filtered(w: jax.Array, multiplier: Callable, diffusion: Any, advection: Any, reaction: Any) -> jax.Array:
    """F^-1(multiplier(symbol) F(w)), with symbol = -tau k^2 + i k.v + rho."""
    _check_coefficients(w, diffusion, advection, reaction)
    dtype = jnp.promote_types(w.dtype, jnp.float32)
    height, width = w.shape[:2]
    # Trailing axes for [in, out], of which parameters a filter fill the last.
    rows = (2 * np.pi * np.fft.fftfreq(height)).reshape(-1, 1, 1, 1).astype(dtype)
    columns = (2 * np.pi * np.fft.rfftfreq(width)).reshape(1, -1, 1, 1).astype(dtype)
    tau, v, rho = (jnp.asarray(value, dtype) for value in (diffusion, advection, reaction))
    symbol = rho - tau * (rows**2 + columns**2) + 1j * (rows * v[0] + columns * v[1])
    waves = jnp.fft.rfft2(w.astype(dtype), axes=(0, 1)) * multiplier(symbol)
    return jnp.fft.irfft2(waves, s=(height, width), axes=(0, 1)).astype(w.dtype)


def _check_leaf(leaf: Any) -> bool:
    """Whether a leaf is a filter that evolves; one with an even extent raises."""
    if jnp.ndim(leaf) != 4:
        return False
    _check_extents(leaf)
    return True


@checked
def _check_extents(w: Filters) -> None:
    k1, k2, *_ = w.shape
    if k1 % 2 == 0 or k2 % 2 == 0:
        raise ValueError(
            f"w has the extent {k1}x{k2}: expected odd extents such as 3x3 or 5x5; the highest wave of an even grid "
            "has no derivative on it. Pad the filter, or leave it out of w"
        )


def _check_coefficients(w: jax.Array, diffusion: Any, advection: Any, reaction: Any) -> None:
    out = w.shape[3]
    for name, value, head in (
        ("diffusion", diffusion, ()),
        ("advection", advection, (2,)),
        ("reaction", reaction, ()),
    ):
        if np.shape(value) not in (head, (*head, out)):
            raise ValueError(
                f"{name} has shape {np.shape(value)}: expected {head} or {(*head, out)}, one a filter of w {w.shape}"
            )
    if not isinstance(diffusion, jax.core.Tracer) and not np.min(np.asarray(diffusion)) >= 0:
        raise ValueError(
            f"diffusion={np.min(np.asarray(diffusion))}: expected at least 0; below 0 high waves grow without "
            "bound. Pass a parameter through jax.nn.softplus to keep it there"
        )
