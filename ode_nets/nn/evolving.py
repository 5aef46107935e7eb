"""Kernels of a unit apart from its other parameters, so that they can evolve in depth (ANODEV2)."""

from __future__ import annotations

from typing import Any

import jax

from ode_nets.fields import Unit
from ode_nets.weights import Evolution

PyTree = Any
Named = dict[str, Any]


def split_kernels(params: PyTree) -> tuple[Named, Named]:
    """The leaves called `kernel`, and all others, each by its path, such as `"conv1.kernel"`.

    Biases and batch norms do not evolve: the paper's equation acts on the extent of a filter.
    """
    kernels: Named = {}
    others: Named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        (kernels if name.split(".")[-1] == "kernel" else others)[name] = leaf
    return kernels, others


def join_kernels(unit: Unit, named: Named) -> PyTree:
    """Parameters like `unit.init`'s from leaves by path."""
    like = jax.eval_shape(unit.init, jax.random.key(0))
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in names])


def init_evolved(unit: Unit, evolution: Evolution, key: jax.Array) -> dict[str, PyTree]:
    """Initial `w0`, the kernels of one unit, and `p`."""
    w0 = split_kernels(unit.init(key))[0]
    return {"w0": w0, "p": evolution.init(jax.random.fold_in(key, 1), w0)}
