"""Step-size control: the first step, the error norm, and the next step from the error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ode_nets.arguments import Finite, NotNegative, checked
from ode_nets.axes import AxisName, largest_over, mean_over
from ode_nets.trees import Unjudged, root

PyTree = Any
Norm = Literal["batch", "sample"]


@dataclasses.dataclass(frozen=True)
@checked
class StepController:
    """The next step size from the error of this one.

        factor = safety * E_n^(-(I + P) / (q + 1)) * E_{n-1}^(P / (q + 1))

    clipped to [min_factor, max_factor], with E the scaled error (accepted where E <= 1) and q the embedded
    order. The default is the controller of the ACA paper's code, I = 1 and P = 0, in which an accepted step
    never shrinks h. A PI controller is `StepController(integral=0.3, proportional=0.4, shrink_accepted=True)`
    (Hairer & Wanner II, IV.2).

    Args:
      safety: aims below the tolerance, in (0, 1].
      min_factor, max_factor: bounds of one change, with min_factor < 1 < max_factor.
      integral, proportional: I and P, at least 0, not both 0.
      shrink_accepted: whether h may shrink after an accepted step.

    Raises:
      ValueError: for values outside these ranges.

    Example:
        >>> pi = StepController(integral=0.3, proportional=0.4, shrink_accepted=True)
        >>> round(float(pi.factor(jnp.array(0.01), jnp.array(1.0), 4)), 2)  # 0.9 * 0.01^(-0.7 / 5)
        1.71
        >>> Adaptive("dopri5", rtol=1e-5, controller=pi)
        Adaptive(dopri5, rtol=1e-05, atol=1e-06)
    """

    safety: Finite = 0.9
    min_factor: Finite = 0.2
    max_factor: Finite = 10.0
    integral: NotNegative = 1.0
    proportional: NotNegative = 0.0
    shrink_accepted: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.safety <= 1:
            raise ValueError(f"safety={self.safety}: expected a number in (0, 1]")
        if not 0 < self.min_factor < 1 < self.max_factor:
            raise ValueError(
                f"min_factor={self.min_factor}, max_factor={self.max_factor}: expected 0 < min_factor < 1 < max_factor"
            )
        if self.integral + self.proportional == 0:
            raise ValueError(
                f"integral={self.integral}, proportional={self.proportional}: "
                "expected numbers of at least 0, not both 0"
            )

    def factor(self, error: jax.Array, previous: jax.Array, embedded_order: int) -> jax.Array:
        """Ratio of the next step size to this one.

        Args:
          error: scaled error of this step, scalar; a step is accepted where it is at most 1.
          previous: scaled error of the last accepted step, scalar, 1 before there is one.
          embedded_order: q.

        Returns:
          A positive scalar; `min_factor` where the error is not finite.
        """
        # Far below what bounds the factor, and such that its derivative is finite.
        tiny = jnp.sqrt(jnp.finfo(error.dtype).tiny)
        exponent = 1.0 / (embedded_order + 1)
        error = jnp.where(jnp.isfinite(error), jnp.maximum(error, tiny), jnp.inf)
        raw = self.safety * error ** (-(self.integral + self.proportional) * exponent)
        if self.proportional:
            raw = raw * jnp.maximum(previous, tiny) ** (self.proportional * exponent)
        lowest = jnp.where((error <= 1) & (not self.shrink_accepted), 1.0, self.min_factor)
        highest = jnp.where(error <= 1, self.max_factor, self.safety)
        return jnp.clip(raw, lowest, highest).astype(error.dtype)


def scaled_norm(
    error: PyTree, x: PyTree, x_next: PyTree, rtol: Any, atol: Any, kind: Norm = "batch",
    axis_name: AxisName = None, good: Any = None,
) -> jax.Array:  # fmt: skip
    """The size of an error relative to the tolerance; a step is accepted where it is at most 1.

        E = RMS(error / (atol + rtol * max(|x_n|, |x_{n+1}|)))      (ACA app. A, published code)

    Args:
      error: pytree of floating-point or complex arrays. Parts of it that are `Unjudged` count for nothing, neither in
        the sum nor in the number of entries.
      x, x_next: states like `error`, at both ends of the step.
      rtol, atol: tolerances: scalars, arrays that broadcast against every leaf, or pytrees like the state.
      kind: `"batch"` takes the mean over every entry; `"sample"` takes it over the entries of each sample
        (leading axis of every leaf) and returns the worst sample's, so that no sample hides in a batch.
      axis_name: mesh axis of a `jax.shard_map` over which samples are spread: the norm is that of all of them, by one
        reduction of a scalar.
      good: whether the step counts at all, boolean scalar: where not, the norm is infinite.

    Returns:
      A scalar of at least float32; NaN where a state is not finite or a (traced) tolerance is negative; 0 for a state
      without entries.

    Raises:
      ValueError: at trace time, if samples are asked for and leaves differ in their leading axis or lack one, and for
        tolerances that do not fit the state.
    """
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *jax.tree.leaves(_judged(error)))).dtype
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in _unjudged(x_next)]
    rtol, atol = (_like(tolerance, error) for tolerance in (rtol, atol))
    error, x, x_next = (_judged(tree) for tree in (error, x, x_next))

    def squares(e: jax.Array, a: jax.Array, b: jax.Array, rtol: Any, atol: Any) -> jax.Array:
        size = jnp.maximum(jnp.abs(a), jnp.abs(b)).astype(dtype)
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            shape = jnp.shape(tolerance)
            ends = zip(shape[::-1], size.shape[::-1], strict=False)
            if len(shape) > size.ndim or any(n not in (1, m) for n, m in ends):
                raise ValueError(
                    f"{name} has shape {shape} for a leaf of the state of shape {size.shape}: expected scalars, arrays "
                    "that broadcast against every leaf, or pytrees like the state"
                )
        scale = jnp.asarray(atol, dtype) + jnp.asarray(rtol, dtype) * size
        size = jnp.abs(e).astype(dtype)
        # With atol = 0, an entry that rests at zero has no error and no scale.
        ratio = size / jnp.where((size == 0) & (scale == 0), 1, scale)
        # The scale of a state that overflowed would excuse any error.
        return jnp.square(jnp.where(jnp.isfinite(scale) & (scale >= 0), ratio, jnp.nan))

    leaves = [squares(*row) for row in zip(error, x, x_next, rtol, atol, strict=True)]
    if kind == "sample" and (len({leaf.shape[:1] for leaf in leaves}) != 1 or any(leaf.ndim == 0 for leaf in leaves)):
        raise ValueError(
            f"norm='sample' with leaves of shapes {[leaf.shape for leaf in leaves]}: expected one "
            "leading axis, the samples, in all of them; use norm='batch'"
        )
    if sum(leaf.size for leaf in leaves) == 0:
        square = jnp.zeros((), dtype)
    elif kind == "sample":
        sums = sum((_rows(leaf) for leaf in leaves[1:]), start=_rows(leaves[0]))
        square = jnp.max(sums) / _divisor(sum(leaf.size // leaf.shape[0] for leaf in leaves))
    else:
        total = sum((leaf.sum() for leaf in leaves[1:]), start=leaves[0].sum())
        square = total / _divisor(sum(leaf.size for leaf in leaves))
    square = jnp.where(jnp.all(jnp.stack(finite)), square, jnp.nan) if finite else square
    square = square if good is None else jnp.where(good, square, jnp.inf)
    return root(largest_over(axis_name, square) if kind == "sample" else mean_over(axis_name, square))


def _divisor(count: Any) -> Any:
    # The batch of a pod has more entries than int32 counts; that of an exported function has a number to come.
    return float(count) if isinstance(count, int) else count


def _rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(leaf.shape[0], -1).sum(1)


def _is_unjudged(part: Any) -> bool:
    return isinstance(part, Unjudged)


def _judged(tree: PyTree) -> list[Any]:
    """The leaves that have a say."""
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_unjudged) if not _is_unjudged(leaf)]


def _unjudged(tree: PyTree) -> list[Any]:
    """All others."""
    parts = [part for part in jax.tree.leaves(tree, is_leaf=_is_unjudged) if _is_unjudged(part)]
    return jax.tree.leaves(parts)


def _like(tolerance: Any, tree: PyTree) -> list[Any]:
    """A tolerance for every leaf of a tree that has a say."""
    structure: Any = jax.tree.structure(tree)
    if jax.tree.structure(tolerance) == structure:
        return _judged(tolerance)
    # None for a part of the state says nothing of it, and must not leave it to the tolerance of another.
    leaves = jax.tree.leaves(tolerance, is_leaf=lambda part: part is None)
    if len(leaves) != 1:
        raise ValueError(
            f"rtol or atol of structure {jax.tree.structure(tolerance)}: expected one number or array, or a pytree "
            f"like the state, {structure}"
        )
    return leaves * len(_judged(tree))


def initial_step(
    slope: Callable[[Any, PyTree], PyTree],
    x0: PyTree,
    f0: PyTree,
    span: jax.Array,
    sign: Any,
    order: int,
    rtol: Any,
    atol: Any,
    kind: Norm = "batch",
    axis_name: AxisName = None,
) -> jax.Array:
    """A first step size from the scales of the state and of its first two derivatives.

    Hairer, Norsett, Wanner I, section II.4, p. 169, algorithm a) to f).

    Args:
      slope: `slope(tau, x) -> dx/dt` at a distance tau from the start; evaluated once.
      x0: start; f0: the slope there.
      span: |t1 - t0|, scalar; the step does not exceed it.
      sign: 1, or -1 where time runs backward.
      order: q, the order of the solution that the error estimate compares with; the exponent is 1 / (q + 1).
      rtol, atol, kind, axis_name: as in `scaled_norm`.

    Returns:
      A scalar of the dtype of `span`, not negative.
    """
    size = lambda v: scaled_norm(v, x0, x0, rtol, atol, kind, axis_name)
    d0, d1 = size(x0), size(f0)
    # With atol = 0, a zero entry that moves makes its slope infinitely steep.
    guess = 0.01 * d0 / jnp.where(d1 == 0, 1.0, d1)
    h0 = jnp.where((d0 < 1e-5) | (d1 < 1e-5) | jnp.isinf(d1), 1e-6, guess)
    h0 = jnp.minimum(h0.astype(span.dtype), span)
    x1 = jax.tree.map(lambda x, f: x + (sign * h0).astype(x.dtype) * f, x0, f0)
    change = jax.tree.map(jnp.subtract, slope(h0, x1), f0)
    d2 = size(change) / jnp.where(h0 == 0, 1.0, h0).astype(d1.dtype)
    steep = jnp.maximum(d1, d2)
    h1 = jnp.where(
        (steep <= 1e-15) | jnp.isinf(steep),
        jnp.maximum(1e-6, h0.astype(d1.dtype) * 1e-3),
        (0.01 / jnp.where(steep == 0, 1.0, steep)) ** (1.0 / (order + 1)),
    )
    return jnp.minimum(jnp.minimum(100 * h0, h1.astype(span.dtype)), span)
