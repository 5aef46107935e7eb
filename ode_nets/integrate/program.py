"""A field apart from the arrays that it closes over, as a value: equal programs compile once."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from ode_nets.trees import Part

PyTree = Any
ORDERS = 2
"""Up to which derivatives rules of their own are compared: two that differ in the third alone are taken for one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What a field computes, traced once: a function of `(consts, t, x, theta)`.

    Two programs are equal where they are the same operations in the same order. So a field that is written anew at
    every call, as a closure is, finds what was compiled for the last one.

    Attributes:
      jaxpr: without constants; what the field closes over comes as arguments.
      structure: of what it returns.
      shapes: of what it returns, a pytree of `jax.ShapeDtypeStruct`.
    """

    jaxpr: Any
    structure: Any
    shapes: Any

    def __call__(self, consts: Any, t: Any, x: PyTree, theta: PyTree) -> PyTree:
        """What the field returns."""
        closed = core.ClosedJaxpr(self.jaxpr, list(consts))
        out = core.jaxpr_as_fun(closed)(*jax.tree.leaves((t, x, theta)))
        # What is a constant of the program comes as a number of Python's.
        shapes = jax.tree.leaves(self.shapes)
        out = [v if isinstance(v, jax.Array) else jnp.asarray(v, s.dtype) for v, s in zip(out, shapes, strict=True)]
        return jax.tree.unflatten(self.structure, out)

    @property
    def reads_time(self) -> bool:
        """Whether t is used."""
        _, used = dce_jaxpr(self.jaxpr, [True] * len(self.jaxpr.outvars))
        return bool(used[0])

    @cached_property
    def derivative(self) -> Program | None:
        """The program of value and derivative, where rules of `jax.custom_jvp` or `jax.custom_vjp` are part of it.

        A rule is a function, which cannot be compared; what it computes can.
        """
        rules = _rules(self.jaxpr)
        if not rules:
            return None
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.jaxpr.invars]
        moves = [jnp.issubdtype(s.dtype, jnp.inexact) for s in shapes]
        function = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, []))

        def directional(_: Any, at: Any, tangents: Any) -> Any:
            moving = Part(at, moves)
            return jax.jvp(lambda chosen: function(*moving.fill(chosen)), (moving.chosen,), (tangents,))

        def pulled(_: Any, at: Any, cotangents: Any) -> Any:
            moving = Part(at, moves)
            inexact = lambda chosen: [v for v in function(*moving.fill(chosen)) if jnp.issubdtype(v, jnp.inexact)]
            values, pullback = jax.vjp(inexact, moving.chosen)
            return values, pullback(cotangents)

        # Forward mode meets no rule of reverse mode; the other way round it does.
        if REVERSE not in rules:
            return close_over(directional, None, shapes, Part(shapes, moves).chosen)[0]
        outputs = [v.aval for v in self.jaxpr.outvars if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
        return close_over(pulled, None, shapes, [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in outputs])[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        return self._same(other, ORDERS)

    def _same(self, other: Program, orders: int) -> bool:
        if self.jaxpr is other.jaxpr:
            return True
        if self.structure != other.structure or not same_jaxpr(self.jaxpr, other.jaxpr):
            return False
        try:
            one, two = (None, None) if not orders else (self.derivative, other.derivative)
        except Exception:  # what cannot be differentiated may fail in any way
            return False
        return one is None or two is None or one._same(two, orders - 1)

    def __hash__(self) -> int:
        avals = tuple((v.aval.shape, str(v.aval.dtype)) for v in self.jaxpr.invars if hasattr(v.aval, "shape"))
        return hash((self.structure, avals, tuple(eqn.primitive.name for eqn in self.jaxpr.eqns)))


def close_over(function: Any, t: Any, x: PyTree, theta: PyTree) -> tuple[Program, tuple[Any, ...]]:
    """A field as a program, and all arrays that it closes over: keys, labels and masks like weights.

    Args:
      function: `function(t, x, theta)`.
      t, x, theta: arguments, of which shapes and dtypes count.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(t, x, theta)
    return Program(traced.jaxpr, jax.tree.structure(shapes), shapes), tuple(traced.consts)


def same_jaxpr(a: Any, b: Any) -> bool:
    """Whether two programs are the same operations on the same types, in the same order, but for rules of calls."""
    if a is b:
        return True
    names: dict[Any, Any] = {}

    def same_variable(v: Any, w: Any) -> bool:
        if isinstance(v, core.Literal) or isinstance(w, core.Literal):
            return isinstance(v, core.Literal) and isinstance(w, core.Literal) and _same(v.val, w.val)
        return names.get(v) is w

    def bind(v: Any, w: Any) -> bool:
        names[v] = w
        return bool(v.aval == w.aval)

    def all_of(test: Any, many: Any, others: Any) -> bool:
        return len(many) == len(others) and all(map(test, many, others))

    if not (all_of(bind, a.constvars, b.constvars) and all_of(bind, a.invars, b.invars)):
        return False
    if len(a.eqns) != len(b.eqns):
        return False
    for one, other in zip(a.eqns, b.eqns, strict=True):
        same = one.primitive is other.primitive and one.params.keys() == other.params.keys()
        if not (same and all_of(same_variable, one.invars, other.invars)):
            return False
        compared = one.params.keys() - _rule(one)
        if not all(_same(one.params[name], other.params[name]) for name in compared):
            return False
        if not all_of(bind, one.outvars, other.outvars):
            return False
    return all_of(same_variable, a.outvars, b.outvars)


FORWARD = frozenset({"jvp_jaxpr_fun"})
REVERSE = frozenset({"fwd_jaxpr_thunk", "bwd", "out_trees"})
"""Parameters of a call that hold its rule, a new one whenever it is traced."""


def _rule(eqn: Any) -> frozenset[str]:
    """The parameters of an operation that hold its rule, if that depends on nothing but its arguments."""
    if eqn.params.get("symbolic_zeros", True):
        return frozenset()
    return next((rule for rule in (FORWARD, REVERSE) if rule <= eqn.params.keys()), frozenset())


def _rules(jaxpr: Any) -> set[frozenset[str]]:
    """The kinds of rules in a program."""
    own = {rule for eqn in jaxpr.eqns if (rule := _rule(eqn))}
    return own.union(*(_rules(sub) for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params)))


def _same(a: Any, b: Any) -> bool:
    """Whether two parameters of an operation are: of functions only where they are one, which errs on the safe side."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, core.Jaxpr):
        return same_jaxpr(a, b)
    if isinstance(a, core.ClosedJaxpr):
        return len(a.consts) == len(b.consts) and all(map(_same, a.consts, b.consts)) and same_jaxpr(a.jaxpr, b.jaxpr)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, (np.ndarray, np.generic, jax.Array, float, complex)):
        if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
            return False
        x, y = np.asarray(a), np.asarray(b)
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    try:
        return bool(a == b)
    except Exception:  # a parameter of any kind, whose comparison may fail in any way
        return False


def zeros_of(shapes: PyTree) -> PyTree:
    """A pytree of zeros, from one of `jax.ShapeDtypeStruct` or of arrays: each in its shape and dtype."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
