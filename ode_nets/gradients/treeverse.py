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

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
_FAR = 2**30
"""More steps than any chain has."""


class Store(NamedTuple):
    """States of some steps of a chain, by slot."""

    states: PyTree
    """Leaves `[S, ...]`."""
    steps: jax.Array
    """int32 `[S]`: the step that each slot's state starts, -1 for a free slot."""


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
    # In the order of their steps: (level, slot) of every stored state but the first, which is never given up.
    kept = [(0, slot) for slot in range(1, n_slots)]
    for step in range(n_slots, max_steps):
        highest, spare = -1, None
        for i in range(len(kept) - 1, -1, -1):
            if kept[i][0] < highest:
                spare = i
            highest = max(highest, kept[i][0])
        level, slot = (kept[-1][0] + 1, kept.pop()[1]) if spare is None else (0, kept.pop(spare)[1])
        kept.append((level, slot))
        slots[step] = slot
    return slots


def new_states(x0: PyTree, n_slots: int) -> PyTree:
    """Room for the states of `n_slots` steps, leaves `[n_slots, ...]`; the first is x0."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n_slots, *leaf.shape)), x0)


def keep(states: PyTree, step: jax.Array, x: PyTree, max_steps: int) -> PyTree:
    """Put the state of a step into its slot, if it gets one; putting it there again replaces it.

    Args:
      states: leaves `[n_slots, ...]`.
      step: int32 scalar, below `max_steps`; steps come in order.
      x: its state.
    """
    n_slots = jax.tree.leaves(states)[0].shape[0]
    if n_slots >= max_steps:
        return write(states, step, x)
    slot = jnp.asarray(slots_of_steps(n_slots, max_steps))[step]
    return write(states, slot, x, slot >= 0)


def stored(states: PyTree, n_steps: jax.Array, max_steps: int) -> Store:
    """What `states` hold once the states of `n_steps` steps have come."""
    n_slots = jax.tree.leaves(states)[0].shape[0]
    slots, steps = slots_of_steps(n_slots, max_steps), np.arange(max_steps, dtype=np.int32)
    taken = slots >= 0
    last = jnp.full(n_slots, -1, jnp.int32).at[slots[taken]].max(jnp.where(steps < n_steps, steps, -1)[taken])
    return Store(states, last)


def write(states: PyTree, slot: jax.Array, x: PyTree, wanted: jax.Array | bool = True) -> PyTree:
    """Put one state into its slot."""

    def leaf(all_: jax.Array, one: jax.Array) -> jax.Array:
        new = one if wanted is True else jnp.where(wanted, one, all_[slot])
        return jax.lax.dynamic_update_index_in_dim(all_, new, slot, 0)

    return jax.tree.map(leaf, states, x)


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
    r = jnp.argmax(reach[slots] >= length)
    return jnp.minimum(reach[slots, r - 1], length - reach[slots - 1, r - 1])


def reverse(
    n_steps: jax.Array,
    states: PyTree,
    max_steps: int,
    advance: Callable[[jax.Array, PyTree], PyTree],
    pull: Callable[[jax.Array, PyTree, PyTree], PyTree],
    cotangents: PyTree,
) -> PyTree:
    """Pull cotangents back through a chain of steps, last to first.

    Args:
      n_steps: length of the chain, int32 scalar, may be traced, at most `max_steps`.
      states: what `keep` has made of the states of all steps, leaves `[n_slots, ...]`.
      advance: `advance(i, x_i) -> x_{i+1}`.
      pull: `pull(i, x_i, cotangents) -> cotangents`, through step i.
      cotangents: of the state after the last step, with whatever else accumulates.

    Returns:
      The cotangents before step 0. Never more states are stored than there are slots; with a slot for every
      step, `advance` is never called.
    """
    n_slots = jax.tree.leaves(states)[0].shape[0]
    last = jnp.asarray(n_steps, jnp.int32) - 1
    if n_slots >= max_steps:

        def stored_step(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
            i, cotangents = carry
            return i - 1, pull(i, jax.tree.map(lambda leaf: leaf[i], states), cotangents)

        return jax.lax.while_loop(lambda carry: carry[0] >= 0, stored_step, (last, cotangents))[1]

    def body(carry: tuple[jax.Array, Store, PyTree]) -> tuple[jax.Array, Store, PyTree]:
        i, store, cotangents = carry
        # Slots behind step i have been used up.
        store = store._replace(steps=jnp.where(store.steps > i, -1, store.steps))
        store, x = _recompute(i, store, max_steps, advance)
        return i - 1, store, pull(i, x, cotangents)

    start = (last, stored(states, n_steps, max_steps), cotangents)
    return jax.lax.while_loop(lambda carry: carry[0] >= 0, body, start)[2]


def _recompute(
    goal: jax.Array, store: Store, max_steps: int, advance: Callable[[jax.Array, PyTree], PyTree]
) -> tuple[Store, PyTree]:
    """The state of step `goal` from the nearest before it, storing states on the way where slots are free."""
    n_slots = store.steps.shape[0]

    def target(at: jax.Array, steps: jax.Array) -> jax.Array:
        """Where to store next; at the goal, which needs no storing, where no slot is free."""
        free = jnp.sum(steps < 0, dtype=jnp.int32)
        if n_slots == 1:
            return goal
        return jnp.where(free > 0, at + split(goal - at + 1, jnp.maximum(free + 1, 2), n_slots, max_steps), goal)

    def body(carry: tuple[jax.Array, PyTree, Store, jax.Array]) -> tuple[jax.Array, PyTree, Store, jax.Array]:
        at, x, store, next_ = carry
        due, there = at == next_, store.steps == at
        slot = jnp.where(there.any(), jnp.argmax(there), jnp.argmin(store.steps))
        steps = store.steps.at[slot].set(jnp.where(due, at, store.steps[slot]))
        next_ = jnp.where(due, target(at, steps), next_)
        return at + 1, advance(at, x), Store(write(store.states, slot, x, due), steps), next_

    nearest = jnp.argmax(store.steps)
    at, x = store.steps[nearest], jax.tree.map(lambda leaf: leaf[nearest], store.states)
    # The state that it starts from is stored already; writing it once more spares a second copy of the rule.
    _, x, store, _ = jax.lax.while_loop(lambda carry: carry[0] < goal, body, (at, x, store, at))
    return store, x
