"""A traced function as one flat list of array operations, for formats that know no loops, branches and calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

Values = list[Any]


def flattened(function: Callable[[Any], Any], argument: jax.ShapeDtypeStruct) -> Callable[[Any], Any]:
    """The same function of one array without loops, branches and calls, and without what does not depend on the array.

    Loops are unrolled, branches taken, calls inlined, and whatever the argument has no part in, such as theta(t) at
    every stage and the times of the steps, is computed here, once. Equal constants are one.

    Args:
      function: from one array to one array.
      argument: its shape, in which dimensions may be symbolic, and dtype.

    Returns:
      A function that is traced to operations on arrays alone; of a `custom_jvp` and its like the function is left,
      its derivative is not.

    Raises:
      ValueError: for a loop that ends, or a branch that is taken, depending on the argument's values, as adaptive
        steps do.
    """
    closed = jax.make_jaxpr(function)(argument)
    found: dict[Any, Any] = {}
    flat = jax.make_jaxpr(lambda x: _run(closed.jaxpr, closed.consts, [x], found)[0])(argument)
    (used,) = flat.jaxpr.outvars
    return lambda x: jaxpr_as_fun(flat.replace(jaxpr=flat.jaxpr.replace(eqns=_live(flat.jaxpr.eqns, {used}))))(x)[0]


def _live(equations: Sequence[JaxprEqn], used: set[Any]) -> list[JaxprEqn]:
    """The equations that some variables depend on: nothing else is converted, as result codes are not asked for."""
    kept = []
    for equation in reversed(equations):
        if used.intersection(equation.outvars):
            kept.append(equation)
            used.update(v for v in equation.invars if not isinstance(v, Literal))
    return kept[::-1]


def _run(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any], found: dict[Any, Any]) -> Values:
    """The outputs of a program; `found` holds constants by content."""
    values = dict(zip(chain(jaxpr.constvars, jaxpr.invars), chain(constants, arguments), strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else values[v]
    for equation in jaxpr.eqns:
        values.update(zip(equation.outvars, _apply(equation, [read(v) for v in equation.invars], found), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _apply(equation: JaxprEqn, values: Values, found: dict[Any, Any]) -> Values:
    name, params = equation.primitive.name, equation.params
    run = lambda closed, *args: _run(closed.jaxpr, closed.consts, args, found)
    match name:
        case "platform_index":  # which of several programs for one function: that of no platform in particular
            return [np.int32(params["platforms"].index(None))]
        case "dim_as_value":
            raise ValueError(_REFUSED.format("computes with the size of the batch"))
        case "optimization_barrier":
            return values
        case "stack":
            return [_folded(partial(_stacked, axis=params["axis"]), *values)]
        case "cond":
            index = min(max(int(_known(values[0], name)), 0), len(params["branches"]) - 1)
            return run(params["branches"][index], *values[1:])
        case "scan":
            return _scan(params, values, run)
        case "while":
            return _while(params, values, run)
    inner = [params[key] for key in ("jaxpr", "call_jaxpr", "call") if key in params]
    if inner and not name.startswith("reduce"):  # whose program is of two elements
        return run(inner[0], *values) if isinstance(inner[0], ClosedJaxpr) else _run(inner[0], (), values, found)
    operation = partial(equation.primitive.bind, **params)
    fixed = all(isinstance(size, int) for v in equation.outvars for size in getattr(v.aval, "shape", ()))
    results = _folded(operation, *values) if fixed else operation(*values)
    several = list(results) if equation.primitive.multiple_results else [results]
    return [_shared(value, found) for value in several]


def _folded(operation: Callable[..., Any], *values: Any) -> Any:
    """The result of an operation, at once where all that it is given is known."""
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return operation(*values)
    with jax.ensure_compile_time_eval():
        return operation(*values)


def _shared(value: jax.Array, found: dict[Any, Any]) -> jax.Array:
    """The first constant of that content: steps that read the same theta(t) have it once."""
    if isinstance(value, jax.core.Tracer) or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    shared: jax.Array = found.setdefault((value.shape, value.dtype, np.asarray(value).tobytes()), value)
    return shared


def _scan(params: dict[str, Any], values: Values, run: Callable[..., Values]) -> Values:
    length, (constants, carry, inputs) = params["length"], _parts(params, values)
    n_carry = len(carry)
    rows: list[Values] = [[]] * length
    for i in reversed(range(length)) if params["reverse"] else range(length):
        slices = [_folded(operator.itemgetter(i), xs) for xs in inputs]
        results = run(params["jaxpr"], *constants, *carry, *slices)
        carry, rows[i] = results[:n_carry], results[n_carry:]
    return [*carry, *(_folded(_stacked, *column) for column in zip(*rows, strict=True))]


def _parts(params: dict[str, Any], values: Values) -> list[Values]:
    """Constants, carry and inputs of a scan, which JAX 0.12 keeps as a tree and earlier versions as two counts."""
    if "ft_in" in params:
        return [list(part) for part in params["ft_in"].update(values).unpack()]
    first = params["num_consts"]
    second = first + params["num_carry"]
    return [values[:first], values[first:second], values[second:]]


def _stacked(*rows: Any, axis: int = 0) -> jax.Array:
    # What jnp.stack is traced to is an operation of its own, which converters do not know.
    return jnp.concatenate([jnp.expand_dims(row, axis) for row in rows], axis)


def _while(params: dict[str, Any], values: Values, run: Callable[..., Values]) -> Values:
    n_test, n_body = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body, carry = values[:n_test], values[n_test : n_test + n_body], values[n_test + n_body :]
    while bool(_known(run(params["cond_jaxpr"], *of_test, *carry)[0], "while")):
        carry = run(params["body_jaxpr"], *of_body, *carry)
    return carry


def _known(value: Any, name: str) -> Any:
    if isinstance(value, jax.core.Tracer):
        raise ValueError(_REFUSED.format(f"has a {name} that depends on the values of the images"))
    return value


_REFUSED = (
    "the network {}, as with adaptive steps, expected operations that are the same for all images: give its blocks a "
    "known number of steps, net.clone(solver=FixedStep(...))"
)
