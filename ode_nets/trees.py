"""Pytrees: dataclasses with static parts, arrays apart from the rest, cotangents of leaves of any dtype."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def pytree(*data: str) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass as a pytree.

    Args:
      data: names of the fields that hold arrays, in the order of their leaves; all others are static and hashable.

    Unlike `jax.tree_util.register_dataclass`, rebuilding calls no `__post_init__`: transformations put tracers, axis
    numbers and placeholders where arrays were, and there is nothing to check in them.
    """

    def register(cls: type[T]) -> type[T]:
        static = tuple(f.name for f in dataclasses.fields(cls) if f.name not in data)  # type: ignore[arg-type]

        def flatten(value: Any) -> tuple[Any, Any]:
            children = tuple((jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in data)
            return children, tuple(getattr(value, name) for name in static)

        def unflatten(values: Any, children: Iterable[Any]) -> Any:
            new = object.__new__(cls)
            for name, value in zip((*static, *data), (*values, *children), strict=True):
                object.__setattr__(new, name, value)
            return new

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register


@pytree("value")
@dataclasses.dataclass(frozen=True)
class Unjudged:
    """A part of a state that has no say in the sizes of steps: those are what they would be without it.

    Args:
      value: pytree of arrays. One that is not finite still fails the step.
    """

    value: Any


def like(tree: Any, other: Any) -> Any:
    """The arrays of another tree in the structure of this one."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(other))


def known(value: Any) -> bool:
    """Whether the numbers in `value` are there to be looked at while a program is traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def tracing() -> bool:
    """Whether a program is being traced here: by `jax.jit`, or in a loop, not by `jax.grad` or `jax.vmap` alone."""
    return not known(jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Frame:
    """A tree without its arrays: hashable where all that stays is."""

    structure: Any
    static: tuple[Any, ...]

    def fill(self, arrays: Sequence[Any]) -> Any:
        """The tree again."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is _ARRAY else leaf for leaf in self.static]
        return jax.tree.unflatten(self.structure, leaves)


class _Array:
    def __repr__(self) -> str:
        return "<array>"


_ARRAY = _Array()


def split(tree: Any) -> tuple[list[Any], Frame]:
    """The arrays of a tree, and the rest: Python's numbers stay constants of a program."""
    leaves, structure = jax.tree.flatten(tree)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]
    arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
    return arrays, Frame(structure, tuple(_ARRAY if yes else leaf for leaf, yes in zip(leaves, is_array, strict=True)))


def zero_cotangent(leaf: Any) -> Any:
    """The zero cotangent of an array: of its own dtype, or float0 for integers, booleans and keys."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)


def zeros(tree: Any) -> Any:
    """Accumulators for the cotangents of a tree; a scalar that stays zero for integers, booleans and keys."""

    def leaf(a: Any) -> Any:
        return jnp.zeros_like(a) if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else jnp.zeros(())

    return jax.tree.map(leaf, tree)


def add(total: Any, cotangents: Any) -> Any:
    """Accumulators (see `zeros`) with cotangents of their structure added; integers and booleans stay as they are."""
    return jax.tree.map(lambda a, b: a if b.dtype == jax.dtypes.float0 else a + b, total, cotangents)


def as_cotangents(primals: Any, total: Any) -> Any:
    """Accumulated cotangents in the dtypes that JAX expects."""

    def leaf(a: Any, b: Any) -> Any:
        return b if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else zero_cotangent(a)

    return jax.tree.map(leaf, primals, total)


def squares(tree: Any) -> jax.Array:
    """The sum of the squares of all entries, in float32 or the highest precision among them."""
    dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(tree)))
    sums = [jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in jax.tree.leaves(tree)]
    return sum(sums[1:], start=sums[0])


def root(square: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is taken for 0."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


class Part:
    """Some of the arrays of a tree.

    Args:
      tree: all of them.
      wanted: a tree like it of booleans, true for those.
    """

    def __init__(self, tree: Any, wanted: Any):
        self._leaves, self._structure = jax.tree.flatten(tree)
        self._wanted = jax.tree.leaves(wanted)
        self.chosen = [leaf for leaf, yes in zip(self._leaves, self._wanted, strict=True) if yes]

    def fill(self, chosen: Sequence[Any]) -> Any:
        """The tree with others in their place."""
        rest = iter(chosen)
        leaves = [next(rest) if yes else leaf for leaf, yes in zip(self._leaves, self._wanted, strict=True)]
        return jax.tree.unflatten(self._structure, leaves)

    def cotangents(self, chosen: Sequence[Any]) -> Any:
        """Their cotangents as those of the tree: zero for all others."""
        rest = iter(chosen)
        zero = zero_cotangent
        leaves = [next(rest) if yes else zero(leaf) for leaf, yes in zip(self._leaves, self._wanted, strict=True)]
        return jax.tree.unflatten(self._structure, leaves)


SMALL = 64
"""Entries up to which an array is packed."""


class Packing:
    """Trees of one structure with their small arrays side by side: one row of memory for many scalars.

    Args:
      like: a tree, whose structure, shapes and dtypes are those of all others.
    """

    def __init__(self, like: Any):
        self._structure = jax.tree.structure(like)
        self._shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(like)]
        self._groups: dict[Any, list[int]] = {}
        for i, leaf in enumerate(jax.tree.leaves(like)):
            kind = jax.typeof(leaf)
            # An array that is spread over devices stays as it is spread.
            whole = all(axis is None for axis in kind.sharding.spec)
            self._groups.setdefault(kind.dtype if kind.size <= SMALL and whole else i, []).append(i)

    def pack(self, tree: Any) -> list[jax.Array]:
        """Few arrays: one of all small leaves of each dtype, and the large ones."""
        leaves = jax.tree.leaves(tree)
        rows = [[leaves[i] for i in group] for group in self._groups.values()]
        return [row[0] if len(row) == 1 else jnp.concatenate([leaf.reshape(-1) for leaf in row]) for row in rows]

    def unpack(self, packed: Sequence[jax.Array]) -> Any:
        """The tree again."""
        leaves: list[Any] = [None] * len(self._shapes)
        for group, array in zip(self._groups.values(), packed, strict=True):
            start = 0
            for i in group:
                shape, end = self._shapes[i], start + math.prod(self._shapes[i])
                leaves[i] = array if len(group) == 1 else array[start:end].reshape(shape)
                start = end
        return jax.tree.unflatten(self._structure, leaves)
