"""Values as Python, NumPy and JAX have them: each function hands on one that is of its kind, or `WRONG`."""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np

WRONG: Any = object()
"""What stands for a value that is not of a kind."""
_WIDE = 2**31
"""Integers from there on are no constants of a program, but numbers like others are."""


def is_real(value: Any) -> bool:
    """Whether a value is a real number or an array of them, of Python, NumPy or JAX; booleans are none."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        real = jax.numpy.issubdtype(value.dtype, np.number)
        return real and not jax.numpy.issubdtype(value.dtype, np.complexfloating)
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_array(value: Any) -> bool:
    """Whether a value is a number or an array that JAX takes."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "bc" or is_real(value)
    return isinstance(value, jax.Array | int | float | complex)


def shown(value: Any) -> str:
    """A value in at most 100 characters, arrays by dtype and shape."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
        return f"<{value.dtype}{list(value.shape)}>"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def integer(value: Any) -> Any:
    """A Python integer of any integer that is known, or `WRONG`; a boolean or a number with a fraction is none."""
    if isinstance(value, bool | jax.core.Tracer) or getattr(value, "dtype", None) == np.bool_:
        return WRONG
    try:
        return operator.index(value)
    except TypeError:
        return WRONG


def real(value: Any) -> Any:
    """A number that is not NaN; Python's as they are."""
    if isinstance(value, jax.core.Tracer) or not is_real(value) or np.ndim(value):
        return WRONG
    if not isinstance(value, int | float):
        value = value.item()
    if isinstance(value, int) and abs(value) >= _WIDE:
        try:
            return float(value)
        except OverflowError:
            return WRONG
    return value if value == value else WRONG


def flag(value: Any) -> Any:
    """A Python boolean of one of Python or NumPy, or `WRONG`; 0 and 1 are none, as a typing error would pass."""
    return bool(value) if isinstance(value, bool | np.bool_) else WRONG


def array(value: Any) -> Any:
    """What JAX takes, traced or not, as it is."""
    return value if is_array(value) else WRONG


def host_array(value: Any) -> Any:
    """What NumPy takes, of real numbers or booleans; lists and tuples as arrays."""
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):
            return WRONG
    boolean = getattr(value, "dtype", None) == np.bool_
    return value if (boolean or is_real(value)) and not isinstance(value, jax.core.Tracer) else WRONG
