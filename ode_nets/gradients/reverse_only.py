"""What a custom backward pass cannot do, refused by name: JAX's own errors name an internal loop or function."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
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

    @functools.partial(same.defjvp, symbolic_zeros=True)
    def derivative(primals: Any, tangents: Any) -> Any:
        return primals[0], [
            d if isinstance(d, SymbolicZero) else _transposable.bind(d, method=method) for d in tangents[0]
        ]

    return jax.tree.unflatten(structure, same(leaves))


@jax.custom_jvp
def refuse_second(tree: PyTree) -> PyTree:
    """The same arrays, of which a derivative is made, and no derivative of that.

    Raises:
      ValueError: where it is differentiated.
    """
    return tree


@refuse_second.defjvp
def _refuse_second(*_: Any) -> Any:
    raise ValueError(
        "second derivatives of solve_until: how the time of an event changes is known to first order only; "
        "differentiate solve up to a fixed t1 twice"
    )


OF_THE_FIELD = (
    "forward-mode differentiation (jvp, jacfwd, linearize) through a field with a backward pass of its own, "
    "jax.custom_vjp, which has no forward one: use reverse mode, or give it a rule by jax.custom_jvp"
)
"""What to say where the gradient method has forward mode, and the field has not."""


def of_the_method(method: str) -> str:
    """What to say of forward mode, and what has it."""
    return (
        f"forward-mode differentiation (jvp, jacfwd, linearize) through gradient={method}: it works in reverse "
        "mode only; use gradient=Direct() or Checkpointed(), which work in both"
    )


def _refuse(*_: Any, method: str, **__: Any) -> Any:
    raise ValueError(of_the_method(method))


@functools.cache
def refusals_of_jax() -> set[tuple[type, str]]:
    """What JAX raises where forward mode meets a custom backward pass: by no type of its own, so it is made to."""
    identity = jax.custom_vjp(lambda x: x)
    identity.defvjp(lambda x: (x, x), lambda x, ct: (ct * x,))
    tangent = lambda x: jax.jvp(identity, (x,), (x,))[1]
    found = set[tuple[type, str]]()
    with jax.ensure_compile_time_eval():
        for refused in (tangent, jax.grad(tangent)):
            try:
                refused(1.0)
            except Exception as error:  # of whatever type
                found.add((type(error), str(error)))
    return found


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


def refuse_reverse_mode(tree: PyTree, method: str) -> PyTree:
    """The same cotangents, through which reverse mode cannot differentiate a second time; forward mode can.

    Raises:
      ValueError: where reverse mode reaches it.
    """
    leaves, structure = jax.tree.flatten(tree)
    inexact = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    for i in inexact:
        leaves[i] = _once.bind(leaves[i], method=method)
    return jax.tree.unflatten(structure, leaves)


def _refuse_twice(*_: Any, method: str, **__: Any) -> Any:
    raise ValueError(
        f"second derivatives by reverse over reverse mode through gradient={method}: use forward over reverse mode, "
        "jax.jacfwd(jax.grad(...)) or jax.hessian(...), or gradient=Direct() or Checkpointed(), which work in both"
    )


_once = Primitive("once")
"""The identity, which can be evaluated and pushed forward, but not transposed."""
_once.def_abstract_eval(lambda x, method: x)
_once.def_impl(lambda x, method: x)
ad.deflinear2(_once, _refuse_twice)
batching.primitive_batchers[_once] = lambda args, axes, method: (_once.bind(*args, method=method), axes[0])
mlir.register_lowering(_once, lambda ctx, x, method: [x])
