"""Lanes: the members of a `jax.vmap`, told apart in one place.

A `while_loop` whose predicate is mapped selects between its old and its new carry at every iteration, whatever the
size of the carry. So no predicate of this library is mapped: a loop goes on while any lane does, and a lane that has
arrived keeps its own small state and leaves buffers alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

PyTree = Any


@jax.custom_batching.custom_vmap
def any_lane(going: jax.Array) -> jax.Array:
    """Whether any lane goes on; for a single solve whether it does."""
    return going


@any_lane.def_vmap
def _any_of_many(size: int, batched: Any, going: jax.Array) -> Any:
    return any_lane(jnp.any(going, axis=0)), False


@jax.custom_batching.custom_vmap
def this_lane(going: jax.Array) -> jax.Array:
    """Whether this lane goes on, inside a loop that runs while any does; for a single solve plainly true."""
    return jnp.ones_like(going)


@this_lane.def_vmap
def _this_of_many(size: int, batched: Any, going: jax.Array) -> Any:
    return going, True


@jax.custom_batching.custom_vmap
def longest(n: jax.Array) -> jax.Array:
    """The largest number that any lane has, the same for all lanes; for a single solve the number itself."""
    return n


@longest.def_vmap
def _longest_of_many(size: int, batched: Any, n: jax.Array) -> Any:
    return longest(jnp.max(n, axis=0)), False


def apart(tree: PyTree, i: jax.Array) -> PyTree:
    """The same arrays; among lanes, the end of what a compiler for CPUs computes in one piece.

    The derivative of a chain of small evaluations is one product after another, and a compiler that fuses them computes
    the earlier ones anew in each of the later: six times slower for a thousand lanes of three numbers. A single solve
    has nothing to gain from it, and its program is left as it is: that it is none is known only while it is batched,
    which takes a primitive (`custom_vmap` has no reverse mode).

    Args:
      i: a number of at least 0 that the compiler does not know, int32 scalar, not mapped.
    """
    return jax.tree.map(lambda leaf: _apart.bind(leaf, i, lanes=False), tree)


def decided(flag: jax.Array, i: jax.Array) -> jax.Array:
    """The same boolean; of a single solve, on a CPU, computed once.

    A compiler that fuses what follows from a decision computes it anew in every array that depends on it: a tenth of
    the time to compile a solve of many weights.

    Args:
      i: as of `apart`, but mapped where the boolean is.
    """
    return _apart.bind(flag, i, lanes=True)


def _apart_lanes(x: jax.Array, i: jax.Array, lanes: bool) -> jax.Array:
    return jax.lax.cond(i >= 0, lambda x: x, jnp.zeros_like, x) if lanes else x


def _apart_batched(args: Any, axes: Any, lanes: bool) -> Any:
    (x, i), (axis, _) = args, axes
    return _apart.bind(x, i, lanes=axes[1] is None), axis


def _apart_jvp(primals: Any, tangents: Any, lanes: bool) -> Any:
    (x, i), (d, _) = primals, tangents
    return _apart.bind(x, i, lanes=lanes), d if isinstance(d, ad.Zero) else _apart.bind(d, i, lanes=lanes)


def _apart_transposed(cotangent: Any, x: Any, i: jax.Array, lanes: bool) -> Any:
    return [cotangent if isinstance(cotangent, ad.Zero) else _apart.bind(cotangent, i, lanes=lanes), None]


_apart = Primitive("apart")
_apart.def_abstract_eval(lambda x, i, lanes: x)
_apart.def_impl(lambda x, i, lanes: x)
ad.primitive_jvps[_apart] = _apart_jvp
ad.primitive_transposes[_apart] = _apart_transposed
batching.primitive_batchers[_apart] = _apart_batched
mlir.register_lowering(_apart, lambda ctx, x, i, lanes: [x])
mlir.register_lowering(_apart, mlir.lower_fun(_apart_lanes, multiple_results=False), platform="cpu")


def select(wanted: Any, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `wanted`, a boolean scalar, else `old`."""
    return jax.tree.map(lambda a, b: jax.lax.select(wanted, a, b), new, old)


def room(n: int, like: PyTree) -> PyTree:
    """A buffer of `n` rows like the arrays of a tree, and a spare one that takes what is to go nowhere."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n + 1, *jnp.shape(leaf))), like)


def write(buffer: PyTree, index: Any, row: PyTree) -> PyTree:
    """A buffer with one row replaced: a write in place where the buffer is carried by a loop."""
    return jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, jnp.asarray(one, all_.dtype), index, 0), buffer, row
    )


def read(buffer: PyTree, index: Any) -> PyTree:
    """The row of a buffer at an index: of every leaf `[n, ...]` an array `[...]`; beyond the ends, the nearest row."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), buffer)


def vary(tree: PyTree, like: PyTree) -> PyTree:
    """The same arrays, in the type of those that differ between the devices of a `jax.shard_map` where `like` does.

    A loop must leave its carry in the type that it found it in, and what starts as a constant ends as something
    computed from the state.
    """
    axes: frozenset[Any] = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(like)))

    def leaf(a: Any) -> Any:
        missing = tuple(sorted(axes - _axes(a), key=str))
        return jax.lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(leaf, tree) if axes else tree


def _axes(leaf: Any) -> frozenset[Any]:
    kind: Any = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    # JAX 0.10 has the one name, earlier and later versions the other.
    axes: frozenset[Any] = getattr(getattr(kind, "manual_axis_type", kind), "varying", frozenset())
    return getattr(kind, "vma", None) or axes
