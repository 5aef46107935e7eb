"""Arguments checked by their annotations: what is of a wrong kind or out of range is refused by name, in one place.

    @checked                               @dataclasses.dataclass(frozen=True)
    def f(n: Count, basis: Basis): ...     @checked
                                           class Box: ...

An annotation says what an argument may be, and `Annotated[kind, Rule(...)]` in which range; `Count`, `Positive` and
their kin are such. NumPy's integers, floats and booleans are taken for Python's, and lists for tuples. Of arrays
jaxtyping says dtype and axes, traced or not, and axes of one name have one size in all arguments:

    def f(h: Real[np.ndarray, "n"], errors: Real[np.ndarray, "n"]): ...
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ode_nets.shapes import described, has_dtype, is_shaped, sizes_of
from ode_nets.values import WRONG, array, flag, host_array, integer, is_real, real, shown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """The range of an argument, beside its kind in an annotation.

    Args:
      allowed: it in words, in the place of those of the kind.
      holds: whether a value of that kind is in it; by default all are, and the words alone are others.
    """

    allowed: str
    holds: Callable[[Any], bool] = lambda value: True


# Loops and shapes are counted in int32, bytes are not.
Count = Annotated[int, Rule("an integer of at least 1 (below 2**31)", lambda n: 1 <= n < 2**31)]
Natural = Annotated[int, Rule("an integer of at least 0", lambda n: n >= 0)]
Finite = Annotated[float, Rule("a finite number", math.isfinite)]
Positive = Annotated[float, Rule("a finite number above 0", lambda x: 0 < x < math.inf)]
NotNegative = Annotated[float, Rule("a finite number of at least 0", lambda x: 0 <= x < math.inf)]
Domain = Annotated[
    tuple[float, float], Rule("(t0, t1) with t0 < t1, both finite", lambda d: -math.inf < d[0] < d[1] < math.inf)
]
Fraction01 = Annotated[float, Rule("a number in [0, 1]", lambda x: 0 <= x <= 1)]
FloatName = Annotated[str, Rule("the name of a floating-point dtype, such as 'bfloat16'", lambda name: _is_float(name))]
Variables = Annotated[Any, Rule("variables by collection, such as {'params': ...}", lambda v: isinstance(v, Mapping))]
Widths = Annotated[tuple[Count, ...], Rule("one width or more, each at least 1", bool)]
Numbers = Annotated[Any, Rule("a real number or an array of real numbers", lambda x: is_real(x))]
"""What arithmetic takes, traced or not."""
Scalar = Annotated[Any, Rule("a real number", lambda x: is_real(x) and not np.ndim(x))]
"""One of them."""
Key = Annotated[PRNGKeyArray, Rule("a PRNG key, such as jax.random.key(0)")]


def _is_float(name: str) -> bool:
    try:
        return jax.numpy.issubdtype(jax.numpy.dtype(name), jax.numpy.floating)
    except TypeError:
        return False


def _why(value: Any) -> str:
    """What a value is that makes it wrong, where that is known."""
    if isinstance(value, type):
        return "; this is the class: make one of it"
    return "; it is traced, and must be known" if isinstance(value, jax.core.Tracer) else ""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What an annotation asks for: in words, and a value as it is handed on, or `WRONG`.

    `sizes` are those of the named axes of what was taken, and `why` follows the words where a value is wrong.
    """

    allowed: str
    take: Callable[[Any], Any]
    sizes: Callable[[Any], Iterable[tuple[str, Any]]] = lambda value: ()
    why: Callable[[Any], str] = _why


def checked(target: T) -> T:
    """Check the arguments of a function by their annotations, or the fields of a dataclass when it is made.

    What is annotated with `Any`, with a type variable or with what is no type at run time is not looked at.

    Args:
      target: a function, or a class before `dataclasses.dataclass` has seen it; a `flax.linen.Module` after it.

    Returns:
      The function that checks, or the class.

    Example:
        >>> @checked
        ... def half(n: Count) -> int:
        ...     return n // 2
        >>> half(0)
        Traceback (most recent call last):
        ValueError: n=0: expected an integer of at least 1 (below 2**31)
    """
    checks: Any = _checked_class(target) if isinstance(target, type) else _checked_function(target)
    return checks


def _checked_function(target: Any) -> Any:
    signature = inspect.signature(target)
    several = {
        inspect.Parameter.VAR_POSITIONAL: lambda kind, name, value: tuple(_take(kind, name, v) for v in value),
        inspect.Parameter.VAR_KEYWORD: lambda kind, _, value: {k: _take(kind, k, v) for k, v in value.items()},
    }

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound, kinds = signature.bind(*args, **kwargs), _kinds(target)
        seen: dict[str, tuple[Any, str, Any]] = {}
        for name, value in bound.arguments.items():
            if name in kinds:
                take = several.get(signature.parameters[name].kind)  # type: ignore[call-overload]
                taken = bound.arguments[name] = (take or _take)(kinds[name], name, value)
                if take is None:
                    _compare_sizes(kinds[name], name, taken, seen)
        return target(*bound.args, **bound.kwargs)

    return call


def _checked_class(cls: Any) -> Any:
    after = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:  # noqa: N807 - dataclasses call it so
        own: Any = type(self)
        for name, kind in _kinds(own).items():
            if name in getattr(self, "__dataclass_fields__", ()):
                value = getattr(self, name)
                taken = _take(kind, name, value)
                if taken is not value:
                    object.__setattr__(self, name, taken)
        if after is not None:
            after(self)

    cls.__post_init__ = __post_init__
    return cls


def _take(kind: _Kind, name: str, value: Any) -> Any:
    """A value as it is handed on.

    Raises:
      ValueError: for one that is not allowed.
    """
    taken = kind.take(value)
    if taken is WRONG:
        raise ValueError(f"{name}={shown(value)}: expected {kind.allowed}{kind.why(value)}")
    return taken


def _compare_sizes(kind: _Kind, name: str, value: Any, seen: dict[str, tuple[Any, str, Any]]) -> None:
    """Note the sizes of the axes of an argument.

    Raises:
      ValueError: for an axis that another argument has with another size, by the names of both.
    """
    for axis, size in kind.sizes(value):
        first, other, its = seen.setdefault(axis, (size, name, value))
        if size != first:
            raise ValueError(
                f"{name}={shown(value)}: expected {kind.allowed}, with {axis}={first} as in {other}={shown(its)}"
            )


@functools.cache
def _kinds(owner: Any) -> dict[str, _Kind]:
    """What each argument may be, for those of which that is known."""
    try:
        hints = typing.get_type_hints(owner, include_extras=True)
    except NameError:  # names that only a type checker knows
        return {}
    kinds = {name: _kind_of(hint) for name, hint in hints.items() if name not in ("return", "parent")}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _kind_of(hint: Any) -> _Kind | None:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ruled(_kind_of(args[0]), *(m for m in args[1:] if isinstance(m, Rule)))
    if origin in (Union, types.UnionType):
        return _one_of([_kind_of(arg) for arg in args])
    if origin is Literal:
        texts = ", ".join(map(repr, args))
        return _Kind(texts if len(args) == 1 else f"one of {texts}", lambda v: _among(v, args))
    if origin is tuple or origin in _SEVERAL:
        return _collection(origin, args)
    if hint is Callable or origin is collections.abc.Callable:
        return _Kind("a function", lambda v: v if callable(v) and not isinstance(v, type) else WRONG)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if is_shaped(hint):
        return _shaped(hint)
    if isinstance(hint, type) and hint not in (object, Any) and getattr(hint, "_is_runtime_protocol", True):
        names = f"a{'n' if hint.__name__[0] in 'AEIOU' else ''} {hint.__name__}"
        return _Kind(names, lambda v: v if isinstance(v, hint) and not isinstance(v, type) else WRONG)
    return None


def _ruled(kind: _Kind | None, *rules: Rule) -> _Kind | None:
    if not rules:
        return kind

    def take(value: Any) -> Any:
        value = value if kind is None else kind.take(value)
        return value if value is not WRONG and all(rule.holds(value) for rule in rules) else WRONG

    if kind is None:
        return _Kind(rules[-1].allowed, take)
    # The words of a rule say themselves what is to be done with an array.
    why = kind.why if kind.why is _why else lambda value: ""
    return _Kind(rules[-1].allowed, take, kind.sizes, why)


def _one_of(kinds: list[_Kind | None]) -> _Kind | None:
    several = [kind for kind in kinds if kind is not None]
    if len(several) < len(kinds):
        return None

    def take(value: Any) -> Any:
        return next((taken for kind in several if (taken := kind.take(value)) is not WRONG), WRONG)

    def sizes(value: Any) -> Any:
        return next(kind.sizes(value) for kind in several if kind.take(value) is not WRONG)

    return _Kind(" or ".join(dict.fromkeys(kind.allowed for kind in several)), take, sizes, several[0].why)


def _shaped(hint: Any) -> _Kind:
    """An array as jaxtyping has it; NumPy's are taken for JAX's, and lists for NumPy's."""
    on_host = hint.array_type is np.ndarray
    plain = host_array if on_host else array

    def take(value: Any) -> Any:
        value = plain(value)
        right = value is not WRONG and has_dtype(hint, value) and sizes_of(hint, np.shape(value)) is not None
        return value if right else WRONG

    def why(value: Any) -> str:
        if isinstance(value, type) or (on_host and isinstance(value, jax.core.Tracer)):
            return _why(value)
        of_shape = plain(value) is not WRONG and sizes_of(hint, np.shape(value)) is not None
        return "; cast it" if of_shape and not np.iscomplexobj(value) else ""

    return _Kind(described(hint), take, lambda value: (sizes_of(hint, np.shape(value)) or {}).items(), why)


def _collection(origin: Any, args: tuple[Any, ...]) -> _Kind:
    """A tuple, a sequence or a mapping, and what is in it."""
    if origin in (dict, collections.abc.Mapping):
        key, value = (_kind_of(arg) or _ANYTHING for arg in args or (Any, Any))
        allowed = " of ".join(dict.fromkeys(["a mapping", *([value.allowed] if value is not _ANYTHING else [])]))

        def take_all(found: Any) -> Any:
            if not isinstance(found, Mapping):
                return WRONG
            taken = {key.take(k): value.take(v) for k, v in found.items()}
            good = WRONG not in taken and not any(v is WRONG for v in taken.values())
            same = good and all(k in taken and taken[k] is v for k, v in found.items())
            return (found if same else taken) if good else WRONG

        return _Kind(allowed, take_all, lambda found: [pair for v in found.values() for pair in value.sizes(v)])
    fixed = origin is tuple and not (len(args) == 2 and args[1] is Ellipsis)
    kinds = [_kind_of(arg) or _ANYTHING for arg in (args if fixed else args[:1])]
    what = " and ".join(dict.fromkeys(kind.allowed for kind in kinds))
    allowed = f"a tuple of {len(kinds)}: {what}" if fixed else f"several, each {what}"

    def sizes_each(found: Any) -> Any:
        return [pair for kind, v in zip(itertools.cycle(kinds), found, strict=False) for pair in kind.sizes(v)]

    def take_each(found: Any) -> Any:
        if isinstance(found, np.ndarray) and found.ndim:
            found = tuple(found)
        if not isinstance(found, tuple | list | range) or (fixed and len(found) != len(kinds)):
            return WRONG
        taken = tuple(kind.take(v) for kind, v in zip(kinds if fixed else kinds * len(found), found, strict=True))
        return WRONG if any(v is WRONG for v in taken) else taken

    return _Kind(allowed, take_each, sizes_each)


def _among(value: Any, allowed: tuple[Any, ...]) -> Any:
    plain = str(value) if isinstance(value, str) else integer(value)
    return plain if any(type(plain) is type(other) and plain == other for other in allowed) else WRONG


_ANYTHING = _Kind("anything", lambda value: value)
_SEVERAL = (list, dict, collections.abc.Sequence, collections.abc.Mapping)
_PLAIN: dict[Any, _Kind] = {
    int: _Kind("an integer", integer),
    float: _Kind("a number", real),
    bool: _Kind("True or False", flag),
    str: _Kind("a text", lambda v: str(v) if isinstance(v, str) else WRONG),
    type(None): _Kind("None", lambda v: v if v is None else WRONG),
    jax.Array: _Kind("an array of numbers", array),
    np.ndarray: _Kind("an array of real numbers", host_array),
}
