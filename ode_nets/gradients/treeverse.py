"""Reversal of a chain of steps from a bounded number of stored states: which to keep, which to recompute.

The forward pass does not know how long the chain will be and keeps states by the online rule of Wang, Moin and
Iaccarino (2009), which needs as few passes as any rule can. The backward pass knows where it stands and places
recomputed states in free slots by the optimal rule of Griewank and Walther (2000, "revolve").

What not knowing the length costs, found by enumeration for S = 1 to 48 states and chains of n up to 1500 steps
(400 to 1500, by S): never as much as one pass, extra < optimum + n with the optimum that of a known length; hence
nothing for n <= S, at most one pass, extra <= n, for n <= S^2 / 4, and from n = 2 S on less than twice the optimum
(1.82 times it at worst for S = 8, 1.94 times for S = 32), the nearer to it the longer the chain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.lanes import any_lane, longest, read, room, select, this_lane, vary, write

PyTree = Any
_FAR = 2**30
"""More steps than any chain has."""


class Store(NamedTuple):
    """States of some steps of a chain, by slot."""

    states: PyTree
    """Leaves `[n_slots + 1, ...]`; the last row takes what no slot does."""
    steps: jax.Array
    """int32 `[n_slots + 1]`: the step that each slot's state starts, `_FAR` for a free slot."""


@cache
def slots_of_steps(n_slots: int, max_steps: int) -> np.ndarray:
    """Into which slot each step's state goes as the steps come, -1 for none, int32 `[max_steps]`.

    It does not depend on how many steps come. A state may be given up once a later one has a higher level; where
    none may, the newest is replaced by the next, one level up (Wang, Moin and Iaccarino, algorithm 1).
    """
    slots = np.full(max_steps, -1, np.int32)
    slots[:n_slots] = np.arange(min(n_slots, max_steps))
    if n_slots == 1:
        return slots
    # (level, slot) of stored states in the order of their steps, but the first, which is never given up: those
    # that no later one tops, whose levels therefore fall, and slots of the others, which may be given up.
    kept, spare = [(0, slot) for slot in range(1, n_slots)], deque[int]()
    for step in range(n_slots, max_steps):
        if spare:
            level, slot = 0, spare.popleft()
        else:
            level, slot = kept.pop()
            level += 1
            while kept and kept[-1][0] < level:
                spare.appendleft(kept.pop()[1])
        kept.append((level, slot))
        slots[step] = slot
    return slots


def new_store(x0: PyTree, n_slots: int) -> Store:
    """A store with all of its `n_slots` slots free.

    Args:
      x0: a state, which gives leaves their shapes and dtypes.
    """
    return Store(room(n_slots, x0), jnp.full(n_slots + 1, _FAR, jnp.int32))


def keep(store: Store, step: jax.Array, x: PyTree, max_steps: int) -> Store:
    """Put the state of a step into its slot, if it gets one; putting it there again replaces it.

    Args:
      store: of the states of all steps before.
      step: int32 scalar, below `max_steps`.
      x: its state.
    """
    nowhere = store.steps.shape[0] - 1
    if nowhere >= max_steps:
        return store._replace(states=write(store.states, step, x))
    slot = jnp.asarray(slots_of_steps(nowhere, max_steps))[step]
    slot = jnp.where(slot >= 0, slot, nowhere)
    return Store(*write(tuple(store), slot, (x, step)))


@cache
def _reach(n_slots: int, max_steps: int) -> np.ndarray:
    """beta(s, r) = C(s + r, s), the longest chain that s states reverse with no step taken more than r times.

    int32 `[n_slots + 1, R]`, cut off at `_FAR`; from s = 2 on, the last column reaches `max_steps`.
    """
    rows = np.ones((n_slots + 1, 1), np.int64)
    while rows[min(2, n_slots), -1] < max_steps and rows.shape[1] < max_steps:
        r = rows.shape[1]
        # C(s + r, s) = C(s + r - 1, s - 1) + C(s + r - 1, s)
        column = np.minimum(np.cumsum(np.concatenate([[1], rows[1:, r - 1]])), _FAR)
        rows = np.concatenate([rows, column[:, None]], axis=1)
    return rows.astype(np.int32)


def split(length: jax.Array, slots: jax.Array, n_slots: int, max_steps: int) -> jax.Array:
    """How far to advance before storing the next state, so that reversing costs the fewest steps.

        m = min(beta(s, r-1), l - beta(s-1, r-1)),  beta(s, r) = C(s + r, s),  r least with beta(s, r) >= l

    Args:
      length: l, steps to reverse from a stored state on, int32 scalar, 2 to `max_steps`.
      slots: s, stored states that may be alive at once, the one at the start included, int32, 2 to `n_slots`.

    Returns:
      int32, from 1 to length - 1.
    """
    reach = jnp.asarray(_reach(n_slots, max_steps))
    r = jnp.sum(reach[slots] < length, dtype=jnp.int32)
    return jnp.minimum(reach[slots, r - 1], length - reach[slots - 1, r - 1])


def reverse(
    n_steps: jax.Array,
    store: Store,
    max_steps: int,
    advance: Callable[[jax.Array, PyTree], PyTree],
    pull: Callable[[jax.Array, PyTree, PyTree, jax.Array], PyTree],
    cotangents: PyTree,
) -> PyTree:
    """Pull cotangents back through a chain of steps, last to first.

    Args:
      n_steps: length of the chain, int32 scalar, may be traced, at most `max_steps`.
      store: what `keep` has made of the states of all steps.
      advance: `advance(i, x_i) -> x_{i+1}`.
      pull: `pull(i, x_i, cotangents, mine) -> cotangents`, through step i, or as they are in lanes whose chain has no
        such step: where `mine` is false.
      cotangents: of the state after the last step, with whatever else accumulates.

    Returns:
      The cotangents before step 0. Never more states are stored than there are slots; with a slot for every
      step, `advance` is never called.
    """
    n_slots, n_steps = store.steps.shape[0] - 1, jnp.asarray(n_steps, jnp.int32)
    # Lanes step down together, so that all read and write at one index where they can.
    last = longest(n_steps) - 1
    if n_slots >= max_steps:

        def stored_step(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
            i, cotangents = carry
            return i - 1, pull(i, read(store.states, i), cotangents, i < n_steps)

        return jax.lax.while_loop(lambda carry: carry[0] >= 0, stored_step, (last, cotangents))[1]

    # The last state to come is the first to go: slots in the order of their steps, free ones last, are a stack.
    order, steps = jnp.arange(n_slots, dtype=jnp.int32), store.steps[:n_slots]
    earlier = (steps < steps[:, None]) | ((steps == steps[:, None]) & (order < order[:, None]))
    rank = jnp.sum(earlier, axis=1, dtype=jnp.int32)
    slots = jnp.sum(jnp.where(rank == order[:, None], order, 0), axis=1, dtype=jnp.int32)
    height = jnp.sum(steps < _FAR, dtype=jnp.int32)

    def pull_stored(carry: Any, store: Store) -> Any:
        """Pull through steps as long as their states are on top of the stack: none is written meanwhile."""

        def body(carry: Any) -> Any:
            i, height, _, x, cotangents = carry
            cotangents = pull(i, x, cotangents, i < n_steps)
            slot = slots[jnp.maximum(height - 1, 0)]
            ready = this_lane(i - 1 < n_steps) & (height > 0) & (store.steps[slot] == i - 1)
            x = select(ready, read(store.states, slot), x)
            return i - 1, height - ready.astype(jnp.int32), ready, x, cotangents

        lacks = lambda carry: any_lane((carry[0] < n_steps) & ~carry[2])
        return jax.lax.while_loop(lambda carry: (carry[0] >= 0) & ~lacks(carry), body, carry)

    def body(carry: Any) -> Any:
        (i, height, ready, x, cotangents), store = carry
        # Of a single solve: whenever it comes here.
        needs = this_lane((i < n_steps) & ~ready)
        lower, store, found = _recompute(i, needs, height - 1, slots, store, max_steps, advance)
        x, height = select(needs, (found, lower), (x, height))
        return pull_stored((i, height, ready | needs, x, cotangents), store), store

    first = read(store.states, slots[0])
    carry = ((last, height, vary(jnp.asarray(False), store.steps), first, cotangents), store)
    return jax.lax.while_loop(lambda carry: carry[0][0] >= 0, body, carry)[0][4]


def _recompute(
    goal: jax.Array,
    mine: jax.Array,
    top: jax.Array,
    slots: jax.Array,
    store: Store,
    max_steps: int,
    advance: Callable[[jax.Array, PyTree], PyTree],
) -> tuple[jax.Array, Store, PyTree]:
    """The state of step `goal` from the one on top of the stack, which is used up if it is that state.

    Returns:
      The height of the stack, the store with what was stored on the way, and the state.
    """
    n_slots = len(slots)

    def body(carry: Any) -> Any:
        at, x, next_, height, store = carry
        going = this_lane(mine & (at < goal))
        due = going & (at == next_)
        free = n_slots - 1 - height
        store = Store(*write(tuple(store), jnp.where(due, slots[jnp.minimum(height, n_slots - 1)], n_slots), (x, at)))
        if n_slots > 1:
            # Nothing is due at the goal, where this ends.
            ahead = split(jnp.maximum(goal - at + 1, 2), jnp.maximum(free + 1, 2), n_slots, max_steps)
            next_ = jnp.where(due, jnp.where(free > 0, at + ahead, goal), next_)
        at, x = select(going, (at + 1, advance(at, x)), (at, x))
        return at, x, next_, height + due.astype(jnp.int32), store

    at, x = read((store.steps, store.states), slots[jnp.maximum(top, 0)])
    # Taken from the stack and put back where it is needed again, so that the rule stands in the loop alone.
    going = lambda carry: any_lane(mine & (carry[0] < goal))
    _, x, _, height, store = jax.lax.while_loop(going, body, (at, x, at, top, store))
    return height, store, x
