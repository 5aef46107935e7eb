"""Refinement and projection of a network, its statistics and its optimizer's state together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ode_nets import remanifest
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.nn import ResNet
from ode_nets.weights import Legendre, PiecewiseConstant, PiecewiseLinear
from small_nets import logits, model


@pytest.mark.parametrize("basis", [PiecewiseConstant(2), Legendre(3), PiecewiseLinear(1)])
def test_refinement_leaves_the_function_of_the_net_unchanged(x64, basis):
    net, variables = model(basis, n_steps=3)
    refined, finer = remanifest.refine(net, variables)
    assert refined.solver == FixedStep("rk4", 6)
    assert refined.basis == basis.refined(2)
    block = finer["params"]["block1"]["coefficients"]
    assert all(leaf.shape[0] == refined.basis.n_basis for leaf in jax.tree.leaves(block))
    np.testing.assert_allclose(
        logits(refined.clone(solver=net.solver), finer), logits(net, variables), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("basis", [PiecewiseConstant(3), Legendre(2)])
def test_projecting_back_undoes_a_refinement_of_variables_and_of_the_optimizer_state(x64, basis):
    net, variables = model(basis)
    optimizer = optax.sgd(optax.constant_schedule(0.1), momentum=0.9)
    state = optimizer.init(variables["params"])
    _, state = optimizer.update(variables["params"], state)
    everything = variables | {"opt_state": state}

    refined, _ = remanifest.refine(net, {}, factor=3)
    back, _ = remanifest.project(refined, {}, basis)
    assert (refined.basis, back.basis) == (basis.refined(3), basis)

    @jax.jit
    def there_and_back(tree):
        finer = remanifest.refine(net, tree, factor=3)[1]
        return finer, remanifest.project(refined, finer, basis)[1]

    finer, coarse = there_and_back(everything)
    assert jax.tree.structure(coarse) == jax.tree.structure(everything)
    for old, new in zip(jax.tree.leaves(everything), jax.tree.leaves(coarse), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-12)
    # Momentum has the shapes of the parameters it belongs to, and the step count is no coefficient.
    trace = finer["opt_state"][0].trace
    assert jax.tree.map(jnp.shape, trace) == jax.tree.map(jnp.shape, finer["params"])
    assert finer["opt_state"][1].count == state[1].count
    optimizer.update(finer["params"], finer["opt_state"], finer["params"])


def test_refined_momentum_of_intervals_is_the_momentum_of_the_interval_they_came_from():
    net, variables = model(PiecewiseConstant(2), dtype="float32")
    _, finer = remanifest.refine(net, {"momentum": variables["params"]})
    for old, new in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(finer["momentum"]), strict=True):
        np.testing.assert_array_equal(new, old if new.shape == old.shape else np.repeat(old, 2, axis=0))


def test_statistics_of_merged_intervals_are_averages():
    net, variables = model(PiecewiseConstant(4), dtype="float32")
    _, merged = remanifest.project(net, variables, PiecewiseConstant(2))
    old = variables["batch_stats"]["block1"]["coefficients"]["bn1"]["var"]
    new = merged["batch_stats"]["block1"]["coefficients"]["bn1"]["var"]
    np.testing.assert_allclose(new, (old[::2] + old[1::2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(
        merged["batch_stats"]["stem"]["bn"]["var"], variables["batch_stats"]["stem"]["bn"]["var"]
    )


def test_only_a_fixed_number_of_steps_can_be_refined():
    net, variables = model(PiecewiseConstant(1))
    adaptive = net.clone(solver=Adaptive("dopri5", rtol=1e-3, atol=1e-3))
    with pytest.raises(ValueError, match="FixedStep"):
        remanifest.refine(adaptive, variables)


@pytest.mark.parametrize("change", [remanifest.refine, lambda *net: remanifest.project(*net, Legendre(2))])
def test_a_net_whose_weights_are_in_no_basis_is_refused_by_name(change):
    with pytest.raises(ValueError, match="net is a ResNet with no basis"):
        change(ResNet(), {})
