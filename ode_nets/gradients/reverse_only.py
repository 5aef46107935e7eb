"""Forward-mode differentiation through a reverse-only method, refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

PyTree = Any


def refuse_forward_mode(tree: PyTree, method: str) -> PyTree:
    """The same arrays, whose tangents reverse mode may transpose and forward mode may not compute.

    Args:
      tree: the inputs of a function with a custom backward pass.
      method: what to call it in the error.

    Raises:
      ValueError: where `jax.jvp`, `jax.jacfwd` or `jax.linearize` reaches it, when its program is lowered.
    """
    leaves, structure = jax.tree.flatten(tree)

    @jax.custom_jvp
    def same(leaves: list[Any]) -> list[Any]:
        return leaves

    @partial(same.defjvp, symbolic_zeros=True)
    def derivative(primals: Any, tangents: Any) -> Any:
        return primals[0], [
            d if isinstance(d, SymbolicZero) else _transposable.bind(d, method=method) for d in tangents[0]
        ]

    return jax.tree.unflatten(structure, same(leaves))


def _refuse(*_: Any, method: str, **__: Any) -> Any:
    raise ValueError(
        f"forward-mode differentiation (jvp, jacfwd, linearize) through gradient={method}: it works in reverse "
        "mode only; use gradient=Direct() or Checkpointed(), which work in both"
    )


_transposable = Primitive("transposable")
"""The identity on tangents: it can be transposed, but neither computed nor lowered."""
_transposable.def_abstract_eval(lambda tangent, method: tangent)
_transposable.def_impl(_refuse)
ad.deflinear2(_transposable, lambda cotangent, tangent, method: [cotangent])
batching.primitive_batchers[_transposable] = lambda args, axes, method: (
    _transposable.bind(*args, method=method),
    axes[0],
)
mlir.register_lowering(_transposable, _refuse)
