"""Shapes and dtypes that annotations of jaxtyping ask for, such as `Float[Array, "batch channels"]`.

An axis is a size, a name, `_` for one of any size, `*name` for any number of axes, or `...` for those without a name.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import AbstractArray

_WORDS = {
    "Float": "a floating-point array",
    "Real": "an array of real numbers",
    "Num": "an array of numbers",
    "Int": "an array of integers",
    "Integer": "an array of integers",
    "Bool": "an array of booleans",
    "Shaped": "an array",
}


def is_shaped(hint: Any) -> bool:
    """Whether an annotation is one of jaxtyping's of an array."""
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def described(hint: Any) -> str:
    """An annotation in words, its dtype and the names of its axes, as errors say what was expected."""
    name = hint.dtype.__name__
    return f"{_WORDS.get(name, f'an array of {name.lower()}')} [{', '.join(hint.dim_str.split())}]"


def has_dtype(hint: Any, value: Any) -> bool:
    """Whether an array, or a number, is of the dtypes of an annotation."""
    return isinstance(value if hasattr(value, "dtype") else np.asarray(value), _of_dtype(hint.dtype))


@functools.cache
def _of_dtype(dtype: Any) -> Any:
    return dtype[Any, "..."]


def sizes_of(hint: Any, shape: tuple[Any, ...]) -> dict[str, Any] | None:
    """The sizes of named axes, in a shape that an annotation allows; `None` for another.

    Args:
      hint: the annotation.
      shape: of an array; sizes may be symbolic, as when a program for any batch is exported.
    """
    axes = hint.dim_str.split()
    for i, axis in enumerate(axes):
        if axis[0] in "*.":
            end = len(shape) - (len(axes) - i - 1)
            shape = (*shape[:i], shape[i:end], *shape[end:]) if end >= i else ()
    if len(axes) != len(shape):
        return None
    sizes: dict[str, Any] = {}
    for axis, size in zip(axes, shape, strict=True):
        wanted = int(axis) if axis.isdigit() else size if axis in ("_", "...") else sizes.setdefault(axis, size)
        if wanted != size:
            return None
    return sizes
