"""The accepted steps of a diffrax solve, written down by a step size controller as they are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ode_nets.gradients import treeverse

PyTree = Any
Times = tuple[jax.Array, ...]
"""`(t0, t1)` of a solve, or `(t0, t1, dt0)`; `n_times` of them."""


class Record(NamedTuple):
    """What a solve leaves behind for its backward pass."""

    n_accepted: jax.Array
    """int32: so many entries are steps; those that follow are not."""
    start: jax.Array
    """`[max_steps]`: where each step began, in the order of integration."""
    end: jax.Array
    """`[max_steps]`: where it ended."""
    d_start: Any
    """`[max_steps, n_times]`: d start / d times; `None` unless times are differentiated."""
    d_end: Any
    """`[max_steps, n_times]`: d end / d times; likewise."""
    store: Any
    """A `Store` of states that steps begin with; `None` unless the solve is differentiated."""


class Motion(NamedTuple):
    """How the next trial moves with the times of the solve, as its controller has asked for it."""

    d_start: jax.Array
    """`[n_times]`."""
    d_end: jax.Array
    """`[n_times]`."""
    d_state: PyTree
    """Of the controller's state, leaves `[n_times, ...]`."""
    end: jax.Array
    """The end that was asked for; where the trial ends elsewhere, the solve has cut it short."""
    reaches: jax.Array
    """Whether that end is t1 or beyond."""
    kept: jax.Array
    """Whether the trial before was accepted."""


class RecorderState(NamedTuple):
    """The state of a `Recorder`: that of the controller that it stands before, and what it has recorded so far."""

    controller: PyTree
    record: Record
    motion: Motion | None


class Recorder(diffrax.AbstractStepSizeController):
    """A step size controller that does what another one does, and writes down what becomes of it.

    Args:
      controller: the other one, `wrap` called.
      t1: end of the solve.
    """

    controller: diffrax.AbstractStepSizeController
    t1: jax.Array

    def wrap(self, direction: Any) -> Recorder:
        """Nothing to add: `controller` has been wrapped."""
        return self

    def init(self, *args: Any) -> Any:
        """The first trial, and the state of `controller` alone; see `begin`."""
        return self.controller.init(*args)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: PyTree,
        y1_candidate: PyTree,
        args: PyTree,
        y_error: PyTree,
        error_order: Any,
        controller_state: RecorderState,
    ) -> tuple[Any, Any, Any, Any, RecorderState, diffrax.RESULTS]:
        """As `controller` does; `controller_state` is a `RecorderState`."""
        state, record, motion = controller_state

        def adapt(t0: Any, t1: Any, state: PyTree) -> Any:
            found = (t0, t1, y0, y1_candidate, args, y_error, error_order, state)
            return self.controller.adapt_step_size(*found)

        keep, next_t0, next_t1, made_jump, next_state, result = adapt(t0, t1, state)
        d_end = None if motion is None else self._d_end(motion, t1)
        record = self._write(record, t0, t1, y0, keep, motion, d_end)
        if motion is not None:
            d_start, d_end, d_state = _move(adapt, t0, t1, state, (motion.d_start, d_end, motion.d_state))
            # A controller may give its times in another precision.
            d_start, d_end, end = (a.astype(self.t1.dtype) for a in (d_start, d_end, jnp.asarray(next_t1)))
            motion = Motion(d_start, d_end, d_state, end, end >= self.t1, jnp.asarray(keep))
        return keep, next_t0, next_t1, made_jump, RecorderState(next_state, record, motion), result

    def _d_end(self, motion: Motion, end: jax.Array) -> jax.Array:
        """d end / d times of a trial, which the solve may have shortened to end at t1, or half-way to it."""
        d_t1 = jnp.eye(len(motion.d_end), dtype=motion.d_end.dtype)[1]
        shortened = jnp.where(motion.kept, d_t1, (motion.d_start + d_t1) / 2)
        return jnp.where(motion.reaches | (end != motion.end), shortened, motion.d_end)

    def _write(
        self,
        record: Record,
        t0: Any,
        t1: Any,
        y0: PyTree,
        keep: Any,
        motion: Motion | None,
        d_end: jax.Array | None,
    ) -> Record:
        # What a rejected trial writes, the next trial of the same step overwrites.
        i, store = record.n_accepted, record.store
        if store is not None:
            store = treeverse.keep(store, i, y0, record.start.shape[0])
        return Record(
            n_accepted=i + jnp.where(keep, 1, 0).astype(i.dtype),
            start=record.start.at[i].set(t0),
            end=record.end.at[i].set(t1),
            d_start=None if motion is None else record.d_start.at[i].set(motion.d_start),
            d_end=None if motion is None else record.d_end.at[i].set(d_end),
            store=store,
        )


def begin(
    y0: PyTree, state: PyTree, times: Times, max_steps: int, slots: int, init: Callable[..., Any] | None
) -> RecorderState:
    """The state of a recorder before the first trial.

    Args:
      y0: initial state.
      state: of the controller.
      times: of the solve.
      max_steps: bound on accepted steps.
      slots: for states; 0 for none.
      init: where times are differentiated, `init(*times)`: the end of the first trial and `state` again.
    """
    none = jnp.zeros(max_steps, times[0].dtype)
    motion, d_times = None, None
    if init is not None:
        d_times = jnp.zeros((max_steps, len(times)), times[0].dtype)
        unit = jnp.eye(len(times), dtype=times[0].dtype)
        first = lambda *times: _differentiable(*init(*times))
        d_end, d_state = jax.vmap(lambda d: jax.jvp(first, times, tuple(d))[1])(unit)
        motion = Motion(unit[0], d_end, d_state, first(*times)[0], jnp.asarray(False), jnp.asarray(True))
    store = treeverse.new_store(y0, slots) if slots else None
    return RecorderState(state, Record(jnp.int32(0), none, none, d_times, d_times, store), motion)


def _differentiable(*tree: Any) -> tuple[Any, ...]:
    return eqx.filter(tree, eqx.is_inexact_array)


def _move(adapt: Callable[..., Any], t0: Any, t1: Any, state: PyTree, tangents: Any) -> Any:
    """d (next start, next end, next state) / d times at constant error."""
    inexact, rest = eqx.partition(state, eqx.is_inexact_array)

    def moved(t0: Any, t1: Any, inexact: PyTree) -> Any:
        _, next_t0, next_t1, _, next_state, _ = adapt(t0, t1, eqx.combine(inexact, rest))
        return _differentiable(next_t0, next_t1, next_state)

    return jax.vmap(lambda d: jax.jvp(moved, (t0, t1, inexact), d)[1])(tangents)
