"""Reversal from few states: the optimal split, the order of steps, and how many are computed twice."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import treeverse


@cache
def fewest(length, slots):
    """Fewest steps to reverse a chain from its first state with `slots` states, by dynamic programming."""
    if length == 1:
        return 0
    if slots == 1:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, slots - 1) + fewest(m, slots) for m in range(1, length))


def test_split_costs_the_fewest_steps():
    """Against every other way to split, for all lengths and numbers of states."""
    lengths, slots = np.meshgrid(np.arange(2, 49), np.arange(2, 8))
    split = jax.vmap(lambda length, s: treeverse.split(length, s, 7, 48))
    splits = jax.jit(split)(jnp.asarray(lengths.ravel()), jnp.asarray(slots.ravel()))
    for length, s, m in zip(lengths.ravel().tolist(), slots.ravel().tolist(), np.asarray(splits).tolist(), strict=True):
        assert 1 <= m < length
        assert m + fewest(length - m, s - 1) + fewest(m, s) == fewest(length, s)


@pytest.mark.slow
def test_split_of_long_chains_does_not_overflow():
    lengths = np.array([10**6, 10**6, 10**6, 10**6, 999_999, 4096, 4096])
    slots = np.array([2, 32, 180, 1413, 5000, 2, 4095])
    split = jax.vmap(lambda length, s: treeverse.split(length, s, 5000, 10**6))
    splits = jax.jit(split)(jnp.asarray(lengths), jnp.asarray(slots))
    assert (splits >= 1).all()
    assert (splits < lengths).all()


def make_reversal(slots):
    """A chain whose states are their own numbers, run forward and back; what happened, in order."""
    events = []

    def note(kind, i, x):
        jax.debug.callback(lambda i, x: events.append((kind, int(i), int(x[0]))), i, x, ordered=True)

    def advance(i, x):
        note("advance", i, x)
        return x + 1

    def pull(i, x, ct, mine):
        note("pull", i, x)
        return ct + 1

    def chain(n):
        # Offered twice, the first time with another state, as an adaptive solve offers a rejected trial.
        offer = lambda store, i, x: treeverse.keep(treeverse.keep(store, i, x - 7, MAX), i, x, MAX)
        start = (jnp.zeros(1, jnp.int32), treeverse.new_store(jnp.zeros(1, jnp.int32), slots))
        _, store = jax.lax.fori_loop(0, n, lambda i, c: (c[0] + 1, offer(c[1], i, c[0])), start)
        return treeverse.reverse(n, store, MAX, advance, pull, jnp.int32(0))

    compiled = jax.jit(chain)

    def run(n):
        events.clear()
        pulled = int(jax.block_until_ready(compiled(n)))
        jax.effects_barrier()
        assert pulled == n
        return list(events)

    return run


MAX = 160
LENGTHS = {
    1: [0, 1, 2, 3, 20],
    2: [1, 2, 3, 6, 7, 30],
    3: [3, 4, 8, 20, 60],
    5: [4, 5, 6, 19, 55, 90],
    8: [8, 9, 16, 43, 64, 120],
    16: [16, 17, 40, 64, 151],
}


@pytest.mark.parametrize("slots", LENGTHS)
def test_every_step_is_pulled_back_once_from_its_own_state_in_few_extra_steps(slots):
    """Extra steps: none up to S, at most one pass up to S^2 / 4, and always within a pass of the optimum.

    Up to C(S + 1, 2) steps what not knowing their number costs is one step.
    """
    run = make_reversal(slots)
    for n in LENGTHS[slots]:
        events = run(n)
        assert [(i, x) for kind, i, x in events if kind == "pull"] == [(i, i) for i in reversed(range(n))]
        assert all(i == x for kind, i, x in events if kind == "advance")
        extra = sum(kind == "advance" for kind, _, _ in events)
        optimum = fewest(n, slots) - (n - 1) if n > 1 else 0
        assert optimum <= extra <= optimum + n
        if n <= slots:
            assert extra == 0
        if n <= slots * (slots + 1) / 2:
            assert extra <= optimum + 1
        if n <= slots**2 / 4:
            assert extra <= n
        if n >= 2 * slots > 2:
            assert extra <= 2 * optimum


def test_a_store_never_holds_more_than_its_slots_and_always_the_first_state():
    """States of distinct steps, each where it says it is, whatever number has been offered."""

    @jax.jit
    def history():
        def body(store, i):
            store = treeverse.keep(store, i, {"x": jnp.full(2, 1.0 * i)}, 60)
            return store, store

        return jax.lax.scan(body, treeverse.new_store({"x": jnp.zeros(2)}, 5), jnp.arange(60))[1]

    stores = jax.tree.map(np.asarray, history())
    for k in range(60):
        steps = stores.steps[k]
        taken = steps < 60
        kept = steps[taken]
        assert len(set(kept.tolist())) == len(kept) == min(k + 1, 5)
        assert kept.min() == 0
        assert kept.max() == k, "the newest state is always kept"
        np.testing.assert_array_equal(stores.states["x"][k][taken, 0], kept)


def test_a_slot_for_every_step_needs_no_second_pass():
    run = make_reversal(MAX)
    for n in (0, 1, 100, MAX):
        assert run(n) == [("pull", i, i) for i in reversed(range(n))]
