"""How tests compare trees of arrays: `flat`, `relative` and `assert_agree`; and `jit_soon`, for large programs."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def jit_soon(function: Any) -> Any:
    """`jax.jit` in half the time to compile, for slower programs: where programs are compared, and run once."""
    return jax.jit(function, compiler_options=quick_options())


@cache
def quick_options() -> dict[str, Any]:
    """Options of XLA's compiler for the CPU that shorten it, as far as this version knows them."""
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
    return {name: value for name, value in wanted.items() if jax.default_backend() == "cpu" and knows(name, value)}


def knows(name: str, value: Any) -> bool:
    """Whether the compiler has an option of that name."""
    try:
        jax.jit(jnp.negative, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def flat(tree: Any) -> np.ndarray:
    """All entries of the leaves of a tree in one vector; derivatives of integers are left out."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves if leaf.dtype != jax.dtypes.float0])


def relative(got: Any, expected: Any) -> float:
    """The largest difference of two trees over the largest entry of the second, which must be finite."""
    a, b = flat(got), flat(expected)
    assert np.isfinite(b).all(), "what is compared with is not finite"
    return float(np.abs(a - b).max() / np.abs(b).max())


def assert_agree(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Each leaf to `tolerance`, relative to its largest entry; both trees have one structure."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        scale = float(np.max(np.abs(b))) or 1.0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))
