"""The backward pass of a diffrax solve: its accepted steps replayed one by one, each with one local vjp."""

from __future__ import annotations

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ode_nets.gradients import treeverse
from ode_nets.interop.recording import Record, Times
from ode_nets.interop.scheme import explicit, within
from ode_nets.lanes import any_lane, select, this_lane
from ode_nets.stepping import END, Evaluate, Node, Stage
from ode_nets.trees import add

PyTree = Any


class Inputs(NamedTuple):
    """All arrays that a solve depends on, and that its gradient is taken with respect to."""

    y0: PyTree
    args: PyTree
    terms: diffrax.AbstractTerm
    saves: tuple[Any, ...]
    """A function `fn(t, y, args)` of what each `SubSaveAt` saves; `None` for the state itself."""
    times: Times
    ts: tuple[Any, ...]
    """Asked times of each `SubSaveAt`, `[n]` or `None`."""


class Rows(NamedTuple):
    """Which rows of its output one `SubSaveAt` writes, and when (static)."""

    t0: bool
    t1: bool
    steps: int


class Cotangents(NamedTuple):
    """What accumulates on the way back: the cotangent of the state at the current step, and of the inputs."""

    y: PyTree
    inputs: Inputs
    """Of all inputs but `y0`, whose place is empty."""


class Residuals(NamedTuple):
    """What the forward pass keeps for the backward one: steps, the state at the end, what was saved."""

    record: Record
    y: PyTree
    """The state at the end."""
    saved: list[tuple[jax.Array, PyTree]]
    """`(ts, ys)` of each `SubSaveAt`."""


def take_step(
    solver: Any, inputs: Inputs, y: PyTree, t: jax.Array, t_next: jax.Array, *, dense: bool = False
) -> tuple[PyTree, dict[str, PyTree]]:
    """One explicit Runge-Kutta step with given ends, as diffrax takes it: of size 1, along increments.

        k_i = f(t + c_i (t_next - t), y + sum_{j<i} a_ij k_j) . (u(t_next) - u(t))
        y_next = y + sum_i b_i k_i

    with the control u(t) = t of an ODE.

    Returns:
      The next state; with `dense`, which costs the stages that only the interpolant and the error need,
      what the interpolant is made of.
    """
    control = inputs.terms.contr(t, t_next)

    def time(node: Node) -> jax.Array:
        return t_next if node == END else t + node[0] / node[1] * (t_next - t)

    def increment(node: Node, y_i: PyTree) -> Stage:
        k = inputs.terms.vf_prod(time(node), y_i, inputs.args, control)
        return jax.tree.map(lambda k, leaf: k.astype(leaf.dtype), k, y), ()

    scheme = explicit(solver)
    assert scheme is not None
    step = scheme.step(Evaluate(increment, time), y, 1.0, inside=dense)
    stacked = lambda: jax.tree.map(lambda *leaves: jnp.stack(leaves), *step.inside)
    return step.x, (within(solver, y, step.x, stacked()) if dense else {})


class Replay:
    """The backward pass of one solve.

    Args:
      solver: of diffrax, explicit Runge-Kutta.
      rows: static.
      inputs: of the solve; `perturbed`: like it, whether each leaf is differentiated.
      residuals: of the forward pass.
      ct_saved: cotangents of `residuals.saved`; `None` for a leaf without.
    """

    def __init__(
        self,
        solver: Any,
        rows: tuple[Rows, ...],
        inputs: Inputs,
        perturbed: Inputs,
        residuals: Residuals,
        ct_saved: list[tuple[jax.Array, PyTree]],
    ):
        self.solver, self.rows, self.inputs, self.residuals = solver, rows, inputs, residuals
        self.params, self.rest = eqx.partition(inputs._replace(y0=None), perturbed._replace(y0=None))
        self.record = residuals.record
        self.moving = self.record.d_start is not None
        self.dense = any(ts is not None for ts in inputs.ts)
        self.ct_saved = jax.tree.map(_materialize, _inexact(residuals.saved), ct_saved)
        self._d_t0 = jnp.eye(len(inputs.times), dtype=inputs.times[0].dtype)[0]

    def run(self) -> Inputs:
        """Cotangents of all differentiated inputs, and of `y0`."""
        record, n = self.record, self.record.n_accepted
        zeros = jax.tree.map(jnp.zeros_like, (self.inputs.y0, self.params))
        ct = self._save_ends(Cotangents(*zeros))
        advance = lambda i, y: take_step(self.solver, self.inputs, y, record.start[i], record.end[i])[0]
        pull = lambda i, y, ct, mine: select(this_lane(mine), self._pull(i, y, ct), ct)
        ct = treeverse.reverse(n, record.store, record.start.shape[0], advance, pull, ct)
        ct = self._save_starts(ct)
        return ct.inputs._replace(y0=ct.y)

    def _at(self, params: Inputs) -> Inputs:
        return eqx.combine(params, self.rest)

    def _pull(self, i: jax.Array, y: PyTree, ct: Cotangents) -> Cotangents:
        """Pull cotangents back through step i, and through what was saved of it."""
        ends = (self.record.start[i], self.record.end[i])
        moving = ends if self.moving else ()

        def local(y: PyTree, moving: Any, params: Inputs) -> Any:
            t, t_next = moving or ends
            return take_step(self.solver, self._at(params), y, t, t_next, dense=self.dense)

        (y_next, inside), pullback = jax.vjp(local, y, moving, self.params)
        ct_inside = jax.tree.map(jnp.zeros_like, inside)
        ct_ends = jax.tree.map(jnp.zeros_like, ends)
        for k, rows in enumerate(self.rows):
            first, end = self._covered(k, i)
            if rows.steps:
                hit, row = (i + 1) % rows.steps == 0, rows.t0 + end + i // rows.steps
                ct, d_end = self._pull_saved(k, self._row(k, row), hit, ends[1], y_next, ct)
                ct_ends = (ct_ends[0], ct_ends[1] + d_end)
            if self.inputs.ts[k] is not None:
                before = rows.t0 + (i // rows.steps if rows.steps else 0)
                carry = (ct_inside, ct_ends, ct)
                ct_inside, ct_ends, ct = self._pull_asked(k, first, end, before, ends, inside, carry)
        d_y, d_ends, d_params = pullback((ct.y, ct_inside))
        ct = Cotangents(d_y, add(ct.inputs, d_params))
        return self._pull_times(i, jax.tree.map(jnp.add, ct_ends, d_ends) if d_ends else ct_ends, ct)

    def _covered(self, k: int, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Asked times that step i serves, as a range; its end is how many there are until the step ends."""
        ts, zero = self.inputs.ts[k], jnp.int32(0)
        if ts is None:
            return zero, zero
        upto = lambda i: jnp.searchsorted(ts, self.record.end[i], side="right").astype(jnp.int32)
        return jnp.where(i > 0, upto(i - 1), 0), jnp.where(i >= 0, upto(i), 0)

    def _saved(self, k: int, t: jax.Array, y: PyTree, params: Inputs | None) -> tuple[jax.Array, PyTree]:
        if params is None:
            return t, y
        inputs = self._at(params)
        return _inexact((t, inputs.saves[k](t, y, inputs.args)))

    def _row(self, k: int, row: Any) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[row], self.ct_saved[k])

    def _save_params(self, k: int) -> Inputs | None:
        """What a saved value depends on; nothing where the state itself is saved."""
        return None if self.inputs.saves[k] is None else self.params

    def _pull_saved(
        self, k: int, row: PyTree, hit: Any, t: jax.Array, y: PyTree, ct: Cotangents
    ) -> tuple[Cotangents, jax.Array]:
        """Add the cotangent of a row, saved at an end of a step if `hit`; also gives that of its time."""
        params = self._save_params(k)

        def pull() -> Any:
            _, pullback = jax.vjp(lambda *a: self._saved(k, *a), t, y, params)
            return pullback(row)

        zeros = jax.tree.map(jnp.zeros_like, (t, y, params))
        d_t, d_y, d_params = jax.lax.cond(hit, pull, lambda: zeros)
        inputs = ct.inputs if params is None else add(ct.inputs, d_params)
        return Cotangents(jax.tree.map(jnp.add, ct.y, d_y), inputs), d_t

    def _pull_asked(
        self, k: int, first: jax.Array, end: jax.Array, before: Any, ends: Any, inside: PyTree, ct: Any
    ) -> Any:
        """Add the cotangents of the asked times that one step's interpolant serves."""
        params, ts = self._save_params(k), self.inputs.ts[k]

        def value(inside: PyTree, ends: Any, t: jax.Array, params: Inputs | None) -> tuple[jax.Array, PyTree]:
            y = self.solver.interpolation_cls(t0=ends[0], t1=ends[1], **inside).evaluate(t)
            return self._saved(k, t, y, params)

        def body(carry: Any) -> Any:
            j, (ct_inside, ct_ends, ct) = carry
            mine, at = this_lane(j < end), jnp.minimum(j, len(ts) - 1)
            _, pullback = jax.vjp(value, inside, ends, ts[at], params)
            found = pullback(self._row(k, before + at))
            # A lane that is done adds nothing.
            d_inside, d_ends, d_t, d_params = jax.tree.map(lambda d: jnp.where(mine, d, jnp.zeros_like(d)), found)
            inputs = ct.inputs if params is None else add(ct.inputs, d_params)
            if inputs.ts[k] is not None:
                ct_k = inputs.ts[k].at[at].add(d_t)
                inputs = inputs._replace(ts=(*inputs.ts[:k], ct_k, *inputs.ts[k + 1 :]))
            sums = jax.tree.map(jnp.add, (ct_inside, ct_ends), (d_inside, d_ends))
            return jnp.where(mine, j + 1, j), (*sums, Cotangents(ct.y, inputs))

        return jax.lax.while_loop(lambda carry: any_lane(carry[0] < end), body, (first, ct))[1]

    def _pull_times(self, i: jax.Array, ct_ends: Any, ct: Cotangents) -> Cotangents:
        """Cotangents of the ends of step i, as cotangents of the times of the solve."""
        if not self.moving:
            return ct
        total = ct_ends[0] * self.record.d_start[i] + ct_ends[1] * self.record.d_end[i]
        return ct._replace(inputs=_add_times(ct.inputs, total))

    def _save_ends(self, ct: Cotangents) -> Cotangents:
        """The rows saved at t1."""
        n, t0 = self.record.n_accepted, self.inputs.times[0]
        t = jnp.where(n > 0, self.record.end[n - 1], t0)
        for k, rows in enumerate(self.rows):
            if not rows.t1 or rows.steps == 1:
                continue
            n_ts: Any = 0
            if self.inputs.ts[k] is not None:
                n_ts = jnp.where(n > 0, self._covered(k, n - 1)[1], len(self.inputs.ts[k]))
            hit = n % rows.steps != 0 if rows.steps else True
            row = rows.t0 + n_ts + (n // rows.steps if rows.steps else 0)
            ct, d_t = self._pull_saved(k, self._row(k, row), hit, t, self.residuals.y, ct)
            if self.moving:
                d_end = jnp.where(n > 0, self.record.d_end[n - 1], self._d_t0)
                ct = ct._replace(inputs=_add_times(ct.inputs, d_t * d_end))
        return ct

    def _save_starts(self, ct: Cotangents) -> Cotangents:
        """The rows saved at t0; where t1 = t0 and no step was taken, those of the asked times too."""
        t0, n = self.inputs.times[0], self.record.n_accepted
        for k, rows in enumerate(self.rows):
            there = jnp.arange(rows.t0 + (0 if self.inputs.ts[k] is None else len(self.inputs.ts[k])))
            if not len(there):
                continue
            there = (there < rows.t0) | (n == 0)

            def total(leaf: jax.Array, there: jax.Array = there) -> jax.Array:
                mask = there.reshape(-1, *[1] * (leaf.ndim - 1))
                return jnp.sum(jnp.where(mask, leaf[: len(there)], 0), axis=0)

            row = jax.tree.map(total, self.ct_saved[k])
            ct, d_t = self._pull_saved(k, row, jnp.any(there), t0, self.inputs.y0, ct)
            ct = ct._replace(inputs=_add_times(ct.inputs, d_t * self._d_t0))
        return ct


def _inexact(tree: PyTree) -> PyTree:
    return eqx.filter(tree, eqx.is_inexact_array)


def _materialize(value: jax.Array, cotangent: Any) -> jax.Array:
    return jnp.zeros_like(value) if cotangent is None else cotangent


def _add_times(inputs: Inputs, total: jax.Array) -> Inputs:
    times = tuple(None if t is None else t + d for t, d in zip(inputs.times, total, strict=True))
    return inputs._replace(times=times)
