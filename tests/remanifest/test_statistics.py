"""Batch statistics of intervals that training did not meet, and second moments that stay second moments."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ode_nets import remanifest, validity
from ode_nets.integrate import Adaptive, FixedStep, Recorded, pad
from ode_nets.stepping import get_scheme
from ode_nets.weights import Chebyshev, Legendre, PiecewiseConstant, PiecewiseLinear
from small_nets import IMAGES, model


def euler_on_four_intervals():
    net, variables = model(Legendre(4), dtype="float32")
    return net.clone(solver=FixedStep("euler", 2)), variables


def seen_in_training(net, variables, images):
    """Batch statistics of a training step without a past."""
    _, seen = net.clone(momentum=0.0).apply(variables, images, train=True, mutable=["batch_stats"])
    return seen["batch_stats"]


def equal(tree, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), tree, other)


def test_statistics_are_those_of_the_solver_of_the_net():
    net, variables = euler_on_four_intervals()
    images = jnp.asarray(IMAGES, "float32")
    assert remanifest.unmet_intervals(net, variables, images) == {"block1": (1, 3)}
    assert remanifest.unmet_intervals(net.clone(solver=FixedStep("euler", 4)), variables, images) == {}
    for solver in (FixedStep("euler", 2), FixedStep("rk4", 3)):
        other = net.clone(solver=solver)
        found = remanifest.restat(other, variables, images)
        assert jax.tree.structure(found) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])
        equal(found["batch_stats"], seen_in_training(other, variables, images))
    old, new = (
        tree["batch_stats"]["block1"]["coefficients"] for tree in (variables, remanifest.restat(net, variables, images))
    )
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(after[1::2], before[1::2])
        assert (np.asarray(after[::2]) != before[::2]).all()
    # One program serves every number of steps.
    estimated = jax.jit(lambda solver, v: remanifest.restat(net.clone(solver=solver), v, images))
    for solver in (FixedStep("euler", 4), FixedStep("midpoint", 3)):
        expected = remanifest.restat(net.clone(solver=solver), variables, images)
        equal(estimated(pad(solver, 2), variables), expected)
    assert estimated._cache_size() == 1


def test_a_subject_runs_under_other_solvers_with_statistics_of_theirs_and_a_verdict_says_so():
    net, variables = euler_on_four_intervals()
    images = jnp.asarray(IMAGES, "float32")
    subject = validity.of_model(net, variables, images, restat_on=images[:4])
    equal(subject.run(net.solver), net.apply(variables, images))
    for solver in (FixedStep("rk4", 3), Adaptive("dopri5", rtol=1e-3, atol=1e-3)):
        other = net.clone(solver=solver)
        equal(subject.run(solver), other.apply(remanifest.restat(other, variables, images[:4]), images), rtol=1e-3)
    assert "block1: 1, 3" in subject.statistics
    assert "4 samples" in subject.statistics
    assert "6 samples" in validity.of_model(net, variables, images).statistics
    judgement = validity.Judgement("tied", "flow not finite", remanifest.Manifestation("euler", 2))
    assert validity.Report(judgement, statistics=subject.statistics).sentence.endswith(subject.statistics)
    # Where every interval is met, what training left is taken.
    assert not validity.of_model(net.clone(solver=FixedStep("euler", 4)), variables, images).statistics


def test_recorded_steps_meet_the_intervals_of_a_uniform_grid_that_is_the_same():
    net, variables = euler_on_four_intervals()
    recorded = net.clone(solver=Recorded.at(get_scheme("euler"), np.array([0.5, 1.0]), 2))
    equal(*(remanifest.restat(n, variables, IMAGES)["batch_stats"] for n in (recorded, net)))
    assert remanifest.unmet_intervals(recorded, variables, IMAGES) == {"block1": (1, 3)}


def test_a_net_without_momentum_or_a_known_solver_is_refused_by_name():
    net, variables = euler_on_four_intervals()
    with pytest.raises(ValueError, match=r"net\.solver='euler'"):
        remanifest.restat(net.clone(solver="euler"), variables, IMAGES)
    with pytest.raises(ValueError, match="net is a Dense without momentum"):
        remanifest.restat(nn.Dense(2), {"batch_stats": {}}, IMAGES)


@pytest.mark.parametrize("bases", [(Chebyshev(4), Chebyshev(2)), (PiecewiseLinear(4), PiecewiseLinear(2))])
def test_second_moments_stay_above_zero_and_bound_those_of_mapped_gradients(bases):
    old, new = bases
    net, variables = model(old, dtype="float32")
    optimizer = optax.adam(1e-3)
    state, seconds = optimizer.init(variables["params"]), []
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0):
        gradients = jax.tree.map(
            lambda leaf, size=size: jnp.asarray(size * rng.normal(size=leaf.shape), "float32"), variables["params"]
        )
        _, state = optimizer.update(gradients, state)
        _, mapped = remanifest.project(net, {"gradients": gradients}, new)
        seconds.append(mapped["gradients"])
    small, projected = remanifest.project(net, variables | {"opt_state": state}, new)
    assert small.basis == new
    nu = projected["opt_state"][0].nu
    # The moment of the mapped gradients, as Adam would have taken it.
    own = jax.tree.map(lambda a, b: 1e-3 * (0.999 * a**2 + b**2), *seconds)
    jax.tree.map(lambda found, least: np.testing.assert_array_less(least, found * (1 + 1e-4) + 1e-30), nu, own)
    updates, _ = optimizer.update(projected["params"], projected["opt_state"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_averages_of_second_moments_are_averages():
    net, variables = model(PiecewiseConstant(4), dtype="float32")
    state = optax.adam(1e-3).init(variables["params"])
    state = (state[0]._replace(nu=jax.tree.map(jnp.square, variables["params"])), *state[1:])
    _, merged = remanifest.project(net, {"opt_state": state}, PiecewiseConstant(2))
    old, new = (s[0].nu["block1"]["coefficients"]["conv1"]["kernel"] for s in (state, merged["opt_state"]))
    np.testing.assert_allclose(new, (old[::2] + old[1::2]) / 2, rtol=1e-5)


def test_moments_that_adafactor_does_not_keep_are_left_alone():
    net, variables = model(Legendre(4), dtype="float32")
    optimizer = optax.adafactor(1e-3)
    params, state = variables["params"], optimizer.init(variables["params"])
    _, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    _, small = remanifest.project(net, variables | {"opt_state": state}, Legendre(2))
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    assert shapes(small["opt_state"]) == shapes(optimizer.init(small["params"]))
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, small["params"]), small["opt_state"], small["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(("optimizer", "signed"), [(optax.adadelta(1.0), ()), (optax.adan(1e-2), ("m", "v", "g"))])
def test_second_moments_are_known_by_the_optimizer_that_names_them(optimizer, signed):
    """`v` is one of Adafactor, and a mean of signed differences in Adan."""
    net, variables = model(PiecewiseConstant(8), dtype="float32")
    params = {"params": variables["params"]}
    state, rng = optimizer.init(params["params"]), np.random.default_rng(0)
    for _ in range(3):
        gradients = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), "float32"), params["params"])
        _, state = optimizer.update(gradients, state, params["params"])
    _, mapped = remanifest.project(net, params | {"opt_state": state, "plain": state[0]._asdict()}, Legendre(4))
    linear = lambda tree: remanifest.project(net, {"params": tree}, Legendre(4))[1]["params"]
    for name in set(state[0]._fields) - {"t"}:
        old, new = getattr(state[0], name), getattr(mapped["opt_state"][0], name)
        if name in signed:
            equal(new, linear(old))
        else:
            assert min(float(leaf.min()) for leaf in jax.tree.leaves(new)) >= 0
        equal(new, mapped["plain"][name])


def test_frozen_variables_are_like_others():
    net, variables = euler_on_four_intervals()
    images, frozen = jnp.asarray(IMAGES, "float32"), flax.core.freeze(variables)
    assert remanifest.has_intervals(net, frozen)
    assert remanifest.unmet_intervals(net, frozen, images) == remanifest.unmet_intervals(net, variables, images)
    found, expected = (remanifest.restat(net, given, images)["batch_stats"] for given in (frozen, variables))
    equal(found, expected)
