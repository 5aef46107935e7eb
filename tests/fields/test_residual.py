"""Residual units against plain layers written out: orders, statistics, strides, skip scalars, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.fields import ResidualUnit, batch_norm
from ode_nets.fields.initializers import fan_out_normal
from ode_nets.fields.normalization import init_batch_norm

ORDERS = ("bn-relu-conv", "conv-bn-relu", "conv-relu-bn")


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape))


def moved(params):
    """Parameters away from zeros and ones, in float64."""
    keys = jax.random.split(jax.random.key(5), len(jax.tree.leaves(params)))
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten(
        leaf.astype(float) + 0.3 * jax.random.normal(k, leaf.shape, float) for leaf, k in zip(leaves, keys, strict=True)
    )


def by_hand(unit, params, x, t, stats):
    """The same composition of the plain convolution of jax.lax and of a batch norm in two lines."""
    used = {}
    for i in (1, 2):
        conv, bn = params[f"conv{i}"], params[f"bn{i}"]
        for layer in unit.order.split("-"):
            if layer == "bn":
                s = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))} if stats is None else stats[f"bn{i}"]
                used[f"bn{i}"] = s
                x = bn["scale"] * (x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) + bn["bias"]
            elif layer == "relu":
                x = jnp.maximum(x, 0)
            else:
                if unit.time_aware:
                    x = jnp.concatenate([x, jnp.full((*x.shape[:3], 1), t)], axis=3)
                strides = (unit.stride if i == 1 else 1,) * 2
                dims = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(x, conv["kernel"], strides, "SAME", dimension_numbers=dims)
                x = x + conv["bias"] if unit.bias else x
    return (params["skip"] * x if unit.skip_init else x), used


UNITS = [
    *(ResidualUnit(3, order=order) for order in ORDERS),
    *(ResidualUnit(3, order=order, time_aware=True, skip_init=False, bias=False) for order in ORDERS),
    *(ResidualUnit(4, in_channels=2, stride=2, order=order) for order in ORDERS),
    ResidualUnit(2, kernel_size=5),
]


@pytest.mark.parametrize(
    "unit", UNITS, ids=lambda u: f"{u.order}, time {u.time_aware}, stride {u.stride}, k {u.kernel_size}"
)
def test_values_and_statistics_are_those_of_plain_layers(x64, unit):
    x, params = images(2, 4, 6, unit.in_channels or unit.channels), moved(unit.init(jax.random.key(0)))
    running = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.1, moved(unit.init_stats()))

    @jax.jit
    def run(params, x, running):
        ours = [unit.apply(params, x, 0.7, stats) for stats in (None, running)]
        return ours, [by_hand(unit, params, x, 0.7, stats) for stats in (None, running)]

    ours, expected = run(params, x, running)
    assert ours[0][0].shape == (2, 4 // unit.stride, 6 // unit.stride, unit.channels)
    for got, want in zip(ours, expected, strict=True):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert jax.tree.structure(ours[0][1]) == jax.tree.structure(unit.init_stats())


@pytest.mark.parametrize("order", ORDERS)
def test_a_fresh_unit_with_skip_init_is_zero_and_still_learns(order):
    unit = ResidualUnit(2, order=order)
    params, x = unit.init(jax.random.key(0)), images(2, 4, 4, 2).astype(jnp.float32)
    np.testing.assert_array_equal(unit.apply(params, x)[0], np.zeros(x.shape))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(x + unit.apply(p, x)[0]))))(params)
    assert float(jnp.abs(gradient["skip"])) > 1e-3


def test_parameters_are_those_of_the_published_architecture():
    """Biases, batch norms and the skip scalar counted one by one; the field of NODE18's first stage."""
    count = lambda unit: sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(unit.init, jax.random.key(0))))
    assert count(ResidualUnit(16)) == 2 * (9 * 16 * 16 + 16 + 2 * 16) + 1
    assert count(ResidualUnit(32, in_channels=16, skip_init=False)) == 9 * 16 * 32 + 9 * 32 * 32 + 64 + 32 + 64
    node18 = ResidualUnit(64, order="conv-bn-relu", skip_init=False, bias=False)
    assert count(node18) == 73_984


def test_initial_convolutions_have_the_spread_of_he_by_fan_out():
    kernel = fan_out_normal(jax.random.key(0), (3, 3, 32, 64))
    np.testing.assert_allclose(float(jnp.std(kernel)), np.sqrt(2 / (9 * 64)), rtol=0.02)
    dense = fan_out_normal(jax.random.key(0), (300, 50))
    np.testing.assert_allclose(float(jnp.std(dense)), np.sqrt(2 / 50), rtol=0.02)


def test_convolutions_may_compute_in_bfloat16_and_nothing_else_does():
    x = images(2, 4, 4, 3).astype(jnp.float32)
    full, half = (ResidualUnit(3, skip_init=False, dtype=dtype) for dtype in (None, "bfloat16"))
    params = full.init(jax.random.key(0))
    (y, used), (rounded, used_half) = full.apply(params, x), half.apply(params, x)
    assert y.dtype == rounded.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(used_half)} == {jnp.dtype("float32")}
    error = float(jnp.abs(y - rounded).max() / jnp.abs(y).max())
    assert 1e-5 < error < 0.05
    np.testing.assert_array_equal(used["bn1"]["mean"], used_half["bn1"]["mean"])


def test_batch_norm_reports_what_it_used_and_takes_its_mean_in_float32():
    """Statistics of bfloat16 activations far from zero survive, and evaluation reads the ones it is given."""
    x = (images(64, 4) + 100).astype(jnp.bfloat16)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    y, used = batch_norm(x, params)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(used["mean"], wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(used["var"], wide.var(0), rtol=1e-3)
    given = {"mean": jnp.arange(4.0), "var": jnp.full(4, 4.0)}
    y, back = batch_norm(jnp.ones((2, 4)), params, given)
    np.testing.assert_allclose(y, np.tile((1 - np.arange(4.0)) / 2, (2, 1)), rtol=1e-5, atol=1e-6)
    assert back is given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels=0: expected an integer of at least 1"),
        ({"channels": 2, "stride": 0}, "stride=0: expected an integer of at least 1"),
        ({"channels": 2, "kernel_size": -1}, "kernel_size=-1"),
        ({"channels": 2, "in_channels": 0}, "in_channels=0: expected an integer of at least 1"),
        ({"channels": 2, "order": "relu-conv-bn"}, "order='relu-conv-bn': expected one of 'bn-relu-conv'"),
    ],
)
def test_units_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualUnit(**arguments)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batch_norm_in_half_precision_leaves_no_mean(dtype):
    """It is rounded once, at the end."""
    x = (16 + jax.random.normal(jax.random.key(0), (4096, 1))).astype(dtype)
    y, used = batch_norm(x, init_batch_norm(1))
    wide = x.astype("float32")
    exact = (wide - used["mean"]) / jnp.sqrt(used["var"] + 1e-5)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype("float32"), exact, atol=4 * float(jnp.finfo(dtype).eps))
