"""A function in plain operations: loops unrolled, constants computed, equal ones once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.integrate import Adaptive
from ode_nets.remanifest.flatten import flattened
from ode_nets.weights import Legendre, PiecewiseConstant
from small_nets import IMAGES, model

ANY = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *IMAGES.shape[1:]), "float32")
SIX = jnp.asarray(IMAGES, "float32")


def test_a_network_becomes_a_chain_of_convolutions_with_each_theta_once():
    net, variables = model(PiecewiseConstant(1), n_steps=3, dtype="float32")
    function = flattened(lambda images: net.apply(variables, images), ANY)
    flat = jax.make_jaxpr(function)(SIX)
    names = [equation.primitive.name for equation in flat.eqns]
    assert names.count("conv_general_dilated") == 1 + 2 * 4 * 3  # stem; two convolutions, four stages, three steps
    assert not {"scan", "while", "cond", "jit", "remat2", "checkpoint", "custom_jvp_call", "is_finite"} & set(names)
    kernels = [constant for constant in flat.consts if np.ndim(constant) == 4]
    assert len([kernel for kernel in kernels if kernel.size > 9]) == 3
    np.testing.assert_allclose(function(SIX), jax.jit(net.apply)(variables, SIX), rtol=1e-4, atol=1e-5)


def test_a_basis_that_is_read_at_every_stage_is_computed_beforehand():
    net, variables = model(Legendre(2), n_steps=1, dtype="float32")
    function = flattened(lambda images: net.apply(variables, images), ANY)
    np.testing.assert_allclose(function(SIX), jax.jit(net.apply)(variables, SIX), rtol=1e-4, atol=1e-5)


def test_loops_with_a_known_end_are_unrolled_whatever_they_are():
    def function(x):
        x = jax.lax.while_loop(lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, 2 * carry[1]), (0, x))[1]
        x, sums = jax.lax.scan(lambda carry, k: (carry + k * x, carry.sum()), x, jnp.arange(3.0), reverse=True)
        return jax.lax.switch(jnp.int32(7), [jnp.sin, jnp.cos], x) + sums[0]

    x = jnp.linspace(0, 1, 4)
    flat = flattened(function, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert {e.primitive.name for e in jax.make_jaxpr(flat)(x).eqns}.isdisjoint({"scan", "while", "cond", "jit", "sin"})
    np.testing.assert_allclose(flat(x), function(x), rtol=1e-6)


def test_steps_that_depend_on_the_images_are_refused():
    net, variables = model(PiecewiseConstant(1), dtype="float32")
    adaptive = net.clone(solver=Adaptive("bosh3", max_steps=8))
    for argument in (ANY, jax.ShapeDtypeStruct(SIX.shape, "float32")):
        with pytest.raises(ValueError, match="FixedStep"):
            flattened(lambda images: adaptive.apply(variables, images), argument)
