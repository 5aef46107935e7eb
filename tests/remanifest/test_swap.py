"""A grid of solvers in one program: equal to its manifestations one by one, in as many lanes as fit."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import remanifest
from ode_nets.integrate import FixedStep
from ode_nets.weights import PiecewiseConstant, PiecewiseLinear
from small_nets import IMAGES, logits, model

GRID = [FixedStep("euler", 1), FixedStep("midpoint", 3), FixedStep("rk4_38", 5), FixedStep("rk4", 2)]
LABELS = np.random.default_rng(1).integers(0, 3, size=6)


def score(values, labels):
    return {"sum": values.sum(), "hits": jnp.sum(values.argmax(-1) == labels)}


def batches():
    yield IMAGES[:3], LABELS[:3]
    yield IMAGES[3:], LABELS[3:]


@pytest.mark.parametrize("basis", [PiecewiseConstant(4), PiecewiseLinear(3)])
def test_a_swap_grid_is_its_manifestations_one_by_one_and_compiles_once(x64, basis):
    net, variables = model(basis)
    traces = []

    def counted(values, labels):
        traces.append(values.shape)
        return score(values, labels) | {"logits": jnp.square(values)}

    scores, seconds = remanifest.swap_solvers(net, variables, GRID, batches, counted)
    assert len(traces) == 1
    assert seconds == []
    for solver, got in zip(GRID, scores, strict=True):
        values = logits(net.clone(solver=solver), variables)
        np.testing.assert_allclose(got["logits"], values[:3] ** 2 + values[3:] ** 2, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(got["sum"], values.sum(), rtol=1e-10)
        assert got["hits"] == (values.argmax(-1) == LABELS).sum()
    assert len({float(got["sum"]) for got in scores}) == len(GRID)


def test_lanes_change_nothing_but_the_memory(x64):
    net, variables = model(PiecewiseConstant(3))
    ticks = iter(range(100))
    timer = lambda: float(next(ticks))
    example, shared = (
        next(batches()),
        partial(remanifest.compile_swap, net, variables, score=score, solvers=GRID),
    )
    one, three = shared(example, lanes=1), shared(example, lanes=3)
    assert (one.lanes, three.lanes) == (1, 3)
    assert three.temporary_bytes > one.temporary_bytes > 0

    alone, _ = remanifest.run_swap(one, variables, GRID, batches)

    def slow_batches():
        for batch in batches():
            timer()
            yield batch

    together, seconds = remanifest.run_swap(three, variables, GRID, slow_batches, timer)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a["sum"], b["sum"], rtol=1e-10)
        assert a["hits"] == b["hits"]
    # Two chunks of two batches, a tick each, shared out by field evaluations: 1, 6, 8 and then 20. That the lazy
    # batches read the clock as well changes nothing.
    np.testing.assert_allclose(seconds, [2 / 15, 12 / 15, 2, 16 / 15])


def test_a_memory_bound_chooses_the_lanes():
    net, variables = model(PiecewiseConstant(1), dtype="float32")
    images = jnp.asarray(IMAGES, "float32")
    shared = partial(remanifest.compile_swap, net, variables, (images, LABELS), score, GRID)
    half = shared(lanes=2).temporary_bytes
    bounded = shared(bytes_available=half)
    assert 1 <= bounded.lanes <= 2
    assert bounded.temporary_bytes <= half


@pytest.mark.parametrize(
    ("solvers", "lanes", "says"), [([], 1, "at least one"), (GRID, 0, "lanes=0: expected an integer of at least 1")]
)
def test_an_empty_grid_is_refused(solvers, lanes, says):
    net, variables = model(PiecewiseConstant(1))
    with pytest.raises(ValueError, match=says):
        remanifest.swap_solvers(net, variables, solvers, batches, score, lanes=lanes)


def test_lanes_within_a_bound():
    assert remanifest.lanes_within(100, 30, 8) == 3
    assert remanifest.lanes_within(10, 30, 8) == 1
    assert remanifest.lanes_within(1000, 30, 8) == 8
    assert remanifest.lanes_within(1000, 0, 8) == 8


def test_numbers_of_steps_on_both_sides_of_the_bound_go_into_one_program():
    net, variables = model(PiecewiseConstant(1), dtype="float32")
    grid = [FixedStep("euler", 2), FixedStep("euler", 4100)]
    images = jnp.asarray(IMAGES[:1], "float32")
    swap = remanifest.compile_swap(net, variables, (images, LABELS[:1]), score, grid, lanes=1)
    assert swap.max_steps == 4100
    scores, _ = remanifest.run_swap(swap, variables, grid[:1], lambda: [(images, LABELS[:1])])
    np.testing.assert_allclose(scores[0]["sum"], logits(net.clone(solver=grid[0]), variables)[0].sum(), rtol=1e-4)
    with pytest.raises(ValueError, match="from 1 to max_steps=4100"):
        remanifest.run_swap(swap, variables, [FixedStep("euler", 5000)], lambda: [(images, LABELS[:1])])
