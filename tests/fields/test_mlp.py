"""Perceptrons as right-hand sides: the formula, the lecture's three parameterizations, sizes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.fields import MLP, kaiming_layer, uniform_layer
from ode_nets.gradients import Direct, solve
from ode_nets.integrate import FixedStep
from ode_nets.weights import BasisExpansion, PiecewiseConstant


def by_hand(params, y, activation=np.tanh):
    """The layers in NumPy."""
    for i, layer in enumerate(params):
        y = y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        y = activation(y) if i < len(params) - 1 else y
    return y


@pytest.mark.parametrize("hidden", [(), (5,), (4, 3)])
@pytest.mark.parametrize("time_aware", [False, True])
def test_values_are_those_of_the_layers_written_out(x64, hidden, time_aware):
    field = MLP(3, hidden, time_aware=time_aware)
    params = jax.tree.map(lambda leaf: leaf.astype(float), field.init(jax.random.key(0)))
    x, t = np.random.default_rng(0).normal(size=(4, 3)), 0.7
    inputs = np.concatenate([x, np.full((4, 1), t)], axis=1) if time_aware else x
    dx, stats = field.apply(params, x, t)
    np.testing.assert_allclose(dx, by_hand(params, inputs), rtol=1e-12)
    np.testing.assert_array_equal(field(t, x, params), dx)
    assert stats == field.init_stats() == {}
    np.testing.assert_allclose(field.apply(params, x[0], t)[0], dx[0], rtol=1e-12)


def test_layers_start_as_asked():
    """PyTorch's uniform values within 1 / sqrt(fan-in), or normal ones of variance 2 / fan-in without biases."""
    wide = 400
    small, large = (MLP(wide, (), layer=layer).init(jax.random.key(0))[0] for layer in (uniform_layer, kaiming_layer))
    assert MLP(wide, ()).layer is uniform_layer
    for leaf in small.values():
        assert 0.99 / 20 < np.abs(leaf).max() <= 1 / 20
    np.testing.assert_allclose(np.std(large["kernel"]), (2 / wide) ** 0.5, rtol=0.02)
    np.testing.assert_array_equal(large["bias"], np.zeros(wide))
    # A layer is sqrt(6) times as large as by the uniform ones.
    np.testing.assert_allclose(np.std(large["kernel"]) / np.std(small["kernel"]), 6**0.5, rtol=0.02)


def test_parameter_counts_are_those_of_the_papers():
    """Ott's networks: A.1 counts, with time as an input or not, and the pendulum's 50 hidden units."""
    count = lambda field: sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(field.init, jax.random.key(0))))
    assert count(MLP(2)) == 2 * 50 + 50 + 50 * 2 + 2
    assert count(MLP(2, (50,), time_aware=True)) == 3 * 50 + 50 + 50 * 2 + 2
    assert count(MLP(4, (7, 6))) == 5 * 7 + 8 * 6 + 7 * 4


def test_initial_weights_are_within_one_over_the_root_of_their_inputs_and_differ():
    params = MLP(4, (100,)).init(jax.random.key(1))
    for layer, n_in in zip(params, (4, 100), strict=True):
        for leaf in layer.values():
            assert leaf.dtype == jnp.float32
            assert float(jnp.abs(leaf).max()) <= n_in**-0.5
        assert float(jnp.std(layer["kernel"])) > 0.5 * n_in**-0.5
    first, second = (MLP(4).init(jax.random.key(key)) for key in (0, 1))
    assert not np.array_equal(first[0]["kernel"], second[0]["kernel"])


def test_three_parameterizations_are_choices_of_weights_and_of_one_flag(x64):
    """Time-varying weights that are all the same, or a time input with weight zero, are the stationary field."""
    x0 = jnp.array([0.3, -0.8])
    stationary, aware = MLP(2, (6,)), MLP(2, (6,), time_aware=True)
    theta = jax.tree.map(lambda leaf: leaf.astype(float), stationary.init(jax.random.key(0)))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), theta)
    deaf = jax.tree.map(lambda leaf: leaf, theta)
    deaf[0]["kernel"] = jnp.concatenate([theta[0]["kernel"], jnp.zeros((1, 6))])
    hearing = jax.tree.map(lambda leaf: leaf, deaf)
    hearing[0]["kernel"] = deaf[0]["kernel"].at[-1].set(1.0)

    @jax.jit
    def run():
        end = lambda field, weights: solve(field, x0, weights, solver=FixedStep("rk4", 6), gradient=Direct()).x
        weights = BasisExpansion(PiecewiseConstant(3), stacked)
        return end(stationary, theta), end(stationary, weights), end(aware, deaf), end(aware, hearing)

    plain, varying, deaf_end, hearing_end = run()
    np.testing.assert_allclose(varying, plain, rtol=1e-13)
    np.testing.assert_allclose(deaf_end, plain, rtol=1e-13)
    assert np.abs(hearing_end - plain).max() > 1e-2


def test_other_activations_and_the_dtype_of_the_state():
    field = MLP(2, (3,), activation=jax.nn.relu)
    params, x = field.init(jax.random.key(0)), jnp.ones((5, 2))
    expected = by_hand(params, np.ones((5, 2)), lambda y: np.maximum(y, 0))
    np.testing.assert_allclose(field.apply(params, x)[0], expected, rtol=1e-5)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert field.apply(half, x.astype(jnp.bfloat16), 0.5)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("arguments", [(0,), (2, (0,)), (2, (3, -1))])
def test_sizes_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match=r"(size|hidden)=.*expected .*an integer of at least 1"):
        MLP(*arguments)


def test_fields_are_hashable_values():
    assert MLP(2, (3,)) == MLP(2, (3,))
    assert hash(MLP(2, (3,))) == hash(MLP(2, (3,)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_field_has_the_dtype_of_its_state_whatever_that_of_its_weights(dtype):
    field = MLP(2, (3,))
    x = jnp.ones((3, 2), dtype)
    theta = field.init(jax.random.key(0))
    assert field(0.0, x, theta).dtype == x.dtype
    # Nothing is cut off.
    np.testing.assert_array_equal(field(0.0, x.astype(int), theta), field(0.0, x.astype("float32"), theta))
