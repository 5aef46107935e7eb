"""Kernels in eight bits: which, how far from what they were, and what is exported of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import remanifest
from ode_nets.weights import PiecewiseConstant
from small_nets import IMAGES, model


def test_kernels_differ_by_half_a_scale_at_most_and_all_else_is_as_it_was():
    _, variables = model(PiecewiseConstant(2), dtype="float32")
    small = remanifest.quantize(variables)
    wide = remanifest.dequantize(small)
    assert jax.tree.structure(wide) == jax.tree.structure(variables)
    assert small["batch_stats"] is variables["batch_stats"]
    n_kernels = 0
    for (path, before), after in zip(jax.tree.leaves_with_path(variables), jax.tree.leaves(wide), strict=True):
        leaf = small
        for key in path:
            leaf = leaf[key.key]
        assert (isinstance(leaf, remanifest.Quantized)) == ("kernel" in str(path[-1]))
        if isinstance(leaf, remanifest.Quantized):
            n_kernels += 1
            assert leaf.values.dtype == jnp.int8
            assert int(jnp.abs(leaf.values).max()) == 127
            error = np.abs(np.asarray(before, np.float64) - np.asarray(leaf.values, np.float64) * leaf.scale)
            assert (error <= 0.5000001 * np.asarray(leaf.scale)).all()
            assert after.dtype == before.dtype
        else:
            np.testing.assert_array_equal(before, after)
    assert n_kernels == 4  # of the stem, of two convolutions and of the head


def test_every_coefficient_and_every_channel_has_a_scale_of_its_own():
    """So that neither a small basis function nor a small channel is lost beside a large one."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2, 4))
    kernel[1] *= 1e-3
    kernel[..., 2] *= 1e-3
    kernel[2, ..., 3] = 0
    variables = {"params": {"block": {"coefficients": {"kernel": jnp.asarray(kernel, jnp.float32)}}}}
    small = remanifest.quantize(variables)["params"]["block"]["coefficients"]["kernel"]
    assert small.scale.shape == (3, 1, 1, 1, 4)
    largest = np.abs(kernel).max(axis=(1, 2, 3))
    np.testing.assert_allclose(small.scale[:, 0, 0, 0, :], np.where(largest > 0, largest, 127) / 127, rtol=1e-6)
    np.testing.assert_array_equal(small.values[2, ..., 3], 0)


def test_vectors_stacked_by_basis_function_are_no_kernels():
    stacked = {"params": {"block": {"coefficients": {"scale": jnp.ones((4, 8))}}, "head": {"kernel": jnp.ones((4, 8))}}}
    small = remanifest.quantize(stacked)["params"]
    assert small["block"]["coefficients"]["scale"].shape == (4, 8)
    assert small["head"]["kernel"].scale.shape == (1, 8)


def test_an_exported_net_holds_the_eight_bits_and_computes_with_what_they_stand_for():
    net, variables = model(PiecewiseConstant(4), widths=(16,), dtype="float32")
    small = remanifest.quantize(variables)
    export = lambda v: remanifest.export_inference(net, v, IMAGES.shape[1:], platforms=("cpu",))
    whole, eighth = export(variables), export(small)
    n_weights = sum(leaf.values.size for leaf in jax.tree.leaves(small, is_leaf=_is_quantized) if _is_quantized(leaf))
    assert 3 * n_weights <= len(whole) - len(eighth) + 4096  # what is dequantized inside is code
    images = IMAGES.astype(np.float32)
    expected = jax.jit(net.apply)(remanifest.dequantize(small), images)
    np.testing.assert_allclose(jax.export.deserialize(bytearray(eighth)).call(images), expected, rtol=1e-4, atol=1e-5)


def _is_quantized(leaf):
    return isinstance(leaf, remanifest.Quantized)


def test_a_channel_that_is_not_finite_comes_back_as_nan_and_no_other():
    kernel = jnp.array([[0.4, 2.0], [jnp.nan, 0.3], [-0.3, -5.0]])
    back = remanifest.dequantize(remanifest.quantize({"params": {"k": kernel}}))["params"]["k"]
    assert np.isnan(back[:, 0]).all()
    np.testing.assert_allclose(back[:, 1], kernel[:, 1], atol=2.5 / 127)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_small_kernels_in_half_precision_keep_the_bound_to_their_own_rounding(dtype):
    kernel = (1e-4 * np.random.default_rng(0).normal(size=(64, 32))).astype(jnp.dtype(dtype))
    small = remanifest.quantize({"params": {"k": jnp.asarray(kernel)}})
    values, scale = map(np.asarray, small["params"]["k"])
    assert scale.dtype == jnp.dtype(dtype)
    assert int(np.abs(values.astype(int)).max()) == 127
    exact, scale = values.astype(np.float64), np.asarray(scale, np.float64)
    assert (np.abs(kernel.astype(np.float64) - exact * scale) <= scale / 2 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(remanifest.dequantize(small)["params"]["k"], (exact * scale).astype(kernel.dtype))
