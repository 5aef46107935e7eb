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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
_FIRST = 2**30
"""Level of the initial state, which is never given up."""


class Store(NamedTuple):
    """States of some steps of a chain, by slot."""

    states: PyTree
    """Leaves `[S, ...]`."""
    steps: jax.Array
    """int32 `[S]`: the step that each slot's state starts, -1 for a free slot."""
    levels: jax.Array
    """int32 `[S]`: a state may go once a later one has a higher level."""


def new_store(x0: PyTree, n_slots: int) -> Store:
    """A store that holds the state of step 0."""
    first = jnp.arange(n_slots) == 0
    return Store(
        states=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n_slots, *leaf.shape)), x0),
        steps=jnp.where(first, 0, -1).astype(jnp.int32),
        levels=jnp.where(first, _FIRST, 0).astype(jnp.int32),
    )


def keep(store: Store, step: jax.Array, x: PyTree, wanted: jax.Array) -> Store:
    """Store the state of the next step, giving up another where there is no room.

    Args:
      step: int32 scalar, one more than the last step offered, at least 1.
      x: its state.
      wanted: boolean scalar; `False` leaves the store as it is.
    """
    n_slots = store.steps.shape[0]
    if n_slots == 1:
        return store
    free = store.steps < 0
    later = store.steps[None, :] > store.steps[:, None]
    spare = ~free & jnp.any(later & (store.levels[None, :] > store.levels[:, None]), axis=1)
    last = jnp.argmax(store.steps)
    earliest_spare = jnp.argmin(jnp.where(spare, store.steps, _FIRST))
    slot = jnp.where(free.any(), jnp.argmax(free), jnp.where(spare.any(), earliest_spare, last))
    level = jnp.where(free.any() | spare.any(), 0, store.levels[last] + 1)
    return Store(
        states=write(store.states, slot, x, wanted),
        steps=store.steps.at[slot].set(jnp.where(wanted, step, store.steps[slot])),
        levels=store.levels.at[slot].set(jnp.where(wanted, level, store.levels[slot]).astype(jnp.int32)),
    )


def write(states: PyTree, slot: jax.Array, x: PyTree, wanted: jax.Array | bool = True) -> PyTree:
    """Put one state into its slot."""
    return jax.tree.map(lambda all_, one: all_.at[slot].set(jnp.where(wanted, one, all_[slot])), states, x)


def split(length: jax.Array, slots: jax.Array) -> jax.Array:
    """How far to advance before storing the next state, so that reversing costs the fewest steps.

        m = min(beta(s, r-1), l - beta(s-1, r-1)),  beta(s, r) = C(s + r, s),  r least with beta(s, r) >= l

    Args:
      length: l, steps to reverse from a stored state on, int32 scalar of at least 2.
      slots: s, stored states that may be alive at once, the one at the start included, int32 of at least 2.

    Returns:
      int32, from 1 to length - 1.
    """

    def grow(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        r, beta = carry
        return r + 1, beta * (slots + r + 1) // (r + 1)

    r, beta = jax.lax.while_loop(lambda carry: carry[1] < length, grow, (jnp.int32(0), jnp.int32(1)))
    here = beta * r // (slots + r)
    fewer = here * slots // jnp.maximum(slots + r - 1, 1)
    return jnp.minimum(here, length - fewer).astype(jnp.int32)


def reverse(
    n_steps: jax.Array,
    store: Store,
    advance: Callable[[jax.Array, PyTree], PyTree],
    pull: Callable[[jax.Array, PyTree, PyTree], PyTree],
    cotangents: PyTree,
) -> PyTree:
    """Pull cotangents back through a chain of steps, last to first.

    Args:
      n_steps: length of the chain, int32 scalar, may be traced.
      store: states kept by the forward pass.
      advance: `advance(i, x_i) -> x_{i+1}`.
      pull: `pull(i, x_i, cotangents) -> cotangents`, through step i.
      cotangents: of the state after the last step, with whatever else accumulates.

    Returns:
      The cotangents before step 0. Never more states are stored than `store` has slots.
    """

    def body(carry: tuple[jax.Array, Store, PyTree]) -> tuple[jax.Array, Store, PyTree]:
        i, store, cotangents = carry
        # Slots behind step i have been used up.
        store = store._replace(steps=jnp.where(store.steps > i, -1, store.steps))
        slot = jnp.argmax(store.steps)
        x = jax.tree.map(lambda leaf: leaf[slot], store.states)
        store, x = _recompute(i, store, store.steps[slot], x, advance)
        return i - 1, store, pull(i, x, cotangents)

    start = (jnp.asarray(n_steps, jnp.int32) - 1, store, cotangents)
    return jax.lax.while_loop(lambda carry: carry[0] >= 0, body, start)[2]


def _recompute(
    goal: jax.Array, store: Store, at: jax.Array, x: PyTree, advance: Callable[[jax.Array, PyTree], PyTree]
) -> tuple[Store, PyTree]:
    """The state of step `goal` from that of step `at`, storing states on the way where slots are free."""

    def target(at: jax.Array, steps: jax.Array) -> jax.Array:
        """Where to store next; past the goal where nothing can be or need be stored."""
        free, length = jnp.sum(steps < 0).astype(jnp.int32), goal - at + 1
        far = goal + 1
        ahead = at + split(jnp.maximum(length, 2), jnp.maximum(free + 1, 2))
        return jnp.where((free > 0) & (length >= 2), ahead, far).astype(jnp.int32)

    def body(carry: tuple[jax.Array, PyTree, Store, jax.Array]) -> tuple[jax.Array, PyTree, Store, jax.Array]:
        at, x, store, next_ = carry
        x = advance(at, x)
        at = at + 1
        here = (at == next_) & (at < goal)
        slot = jnp.argmin(store.steps)
        steps = store.steps.at[slot].set(jnp.where(here, at, store.steps[slot]))
        store = store._replace(states=write(store.states, slot, x, here), steps=steps)
        return at, x, store, jnp.where(here, target(at, steps), next_)

    carry = (at, x, store, target(at, store.steps))
    _, x, store, _ = jax.lax.while_loop(lambda carry: carry[0] < goal, body, carry)
    return store, x
