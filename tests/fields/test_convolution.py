"""The convolution against that of jax.lax: values, derivatives, transformations, lowered programs, faults."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from ode_nets.fields.convolution import convolution

CASES = {
    "1x1": ((2, 4, 5, 3), (1, 1, 3, 2), {}),
    "3x3": ((2, 5, 4, 3), (3, 3, 3, 3), {}),
    "5x5": ((1, 6, 7, 2), (5, 5, 2, 2), {}),
    "3x5": ((2, 4, 7, 2), (3, 5, 2, 3), {}),
    "few channels in, many out": ((2, 5, 4, 1), (3, 3, 1, 6), {}),
    "many channels in, few out": ((2, 5, 4, 6), (3, 3, 6, 1), {}),
    "image smaller than the kernel": ((2, 1, 2, 2), (5, 5, 2, 2), {}),
    "a single pixel": ((1, 1, 1, 2), (3, 7, 2, 2), {}),
    "even kernel": ((2, 5, 4, 2), (2, 4, 2, 2), {}),
    "valid": ((2, 5, 4, 2), (3, 3, 2, 2), {"padding": "VALID"}),
    "explicit pads": ((2, 3, 4, 2), (3, 2, 2, 2), {"padding": ((4, 0), (1, 3))}),
    "stride 2": ((2, 5, 6, 2), (3, 3, 2, 3), {"strides": 2}),
    "stride 2, 1x1": ((2, 5, 6, 2), (1, 1, 2, 3), {"strides": 2}),
    "strides differ, valid": ((2, 6, 5, 2), (2, 3, 2, 2), {"strides": (2, 1), "padding": "VALID"}),
    "stride beyond the image": ((2, 2, 2, 2), (3, 3, 2, 2), {"strides": [3, 2]}),
    "depthwise": ((2, 5, 4, 3), (3, 3, 1, 3), {"groups": 3}),
    "depthwise, two outputs a channel, valid": ((2, 5, 4, 3), (3, 2, 1, 6), {"groups": 3, "padding": "VALID"}),
    "two groups": ((2, 5, 4, 6), (3, 3, 3, 4), {"groups": 2}),
    "two groups, few channels in, many out": ((2, 5, 4, 4), (3, 3, 2, 16), {"groups": 2}),
    "two groups, stride 2": ((2, 5, 4, 6), (3, 3, 3, 4), {"groups": 2, "strides": 2}),
    "dilated": ((2, 6, 5, 2), (3, 3, 2, 3), {"dilation": 2}),
    "dilations differ, beyond the image": ((2, 4, 5, 2), (3, 2, 2, 2), {"dilation": (3, 1)}),
    "dilated, stride 2": ((2, 6, 5, 2), (3, 3, 2, 3), {"dilation": 2, "strides": 2}),
    "dilated, depthwise, valid": ((2, 7, 6, 2), (3, 3, 1, 2), {"dilation": (2, 1), "groups": 2, "padding": "VALID"}),
}


def reference(x, kernel, *, strides=1, padding="SAME", groups=1, dilation=1):
    pair, rates = ((value, value) if isinstance(value, int) else value for value in (strides, dilation))
    options = {"rhs_dilation": rates, "feature_group_count": groups, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return lax.conv_general_dilated(x, kernel, pair, padding, **options)


def arrays(*shapes, dtype=None):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def loss(convolve, **options):
    """Not quadratic, so that its second derivatives depend on both arguments."""
    return lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel, **options)))


def assert_equal(got, expected, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.max(jnp.abs(b)))))


@pytest.mark.parametrize(("image", "window", "options"), CASES.values(), ids=CASES.keys())
def test_value_gradients_and_tangent_equal_the_plain_convolution(x64, image, window, options):
    x, kernel, dx, dkernel = arrays(image, window, image, window)

    def everything(convolve, x, kernel, dx, dkernel):
        f = loss(convolve, **options)
        return (
            convolve(x, kernel, **options),
            jax.grad(f, argnums=(0, 1))(x, kernel),
            jax.jvp(partial(convolve, **options), (x, kernel), (dx, dkernel)),
        )

    got, expected = (jax.jit(partial(everything, c))(x, kernel, dx, dkernel) for c in (convolution, reference))
    assert_equal(got, expected)


@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("again", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_in_every_order_of_modes(x64, differentiate, again):
    x, kernel = arrays((1, 3, 2, 2), (3, 3, 2, 1))
    got = jax.jit(again(differentiate(loss(convolution), (0, 1)), (0, 1)))(x, kernel)
    assert_equal(got, jax.jit(jax.hessian(loss(reference), (0, 1)))(x, kernel))


@pytest.mark.parametrize(("x_axis", "kernel_axis"), [(0, None), (None, 0), (0, 0), (3, 4)])
def test_vmap_over_images_and_over_kernels(x64, x_axis, kernel_axis):
    x, kernel = arrays((2, 3, 4, 2), (3, 3, 2, 2))
    xs = x if x_axis is None else jnp.stack([x, 2 * x, x**2], axis=x_axis)
    kernels = kernel if kernel_axis is None else jnp.stack([kernel, -kernel, kernel**2], axis=kernel_axis)

    def batched(convolve):
        f = jax.value_and_grad(loss(convolve), argnums=(0, 1))
        return jax.jit(jax.vmap(f, in_axes=(x_axis, kernel_axis)))(xs, kernels)

    assert_equal(batched(convolution), batched(reference))


def scanned(convolve, rematerialise=False):
    """Three steps with a kernel each: the loop in which solvers evaluate fields."""

    def step(x, kernel):
        return x + jnp.tanh(convolve(x, kernel)), None

    step = jax.checkpoint(step) if rematerialise else step
    return lambda x, kernels: jnp.sum(lax.scan(step, x, kernels)[0] ** 2)


@pytest.mark.parametrize("rematerialise", [False, True])
def test_gradient_and_tangent_through_a_scan(x64, rematerialise):
    x, kernels = arrays((2, 3, 4, 2), (3, 3, 3, 2, 2))

    def both(convolve):
        f = scanned(convolve, rematerialise)
        return jax.jit(lambda x, kernels: (jax.grad(f, (0, 1))(x, kernels), jax.jvp(f, (x, kernels), (x, kernels))))

    assert_equal(both(convolution)(x, kernels), both(reference)(x, kernels))


def test_gradients_taken_inside_a_while_loop(x64):
    x, kernel = arrays((2, 3, 4, 2), (3, 3, 2, 2))

    def descend(convolve):
        def body(state):
            count, x, kernel = state
            _, pull = jax.vjp(convolve, x, kernel)
            dx, dkernel = pull(jnp.cos(x))
            return count + 1, x - 0.1 * dx, kernel - 0.1 * dkernel

        return lax.while_loop(lambda state: state[0] < 3, body, (0, x, kernel))

    assert_equal(jax.jit(lambda: descend(convolution))(), jax.jit(lambda: descend(reference))())


def test_reverse_mode_keeps_nothing_but_image_and_kernel():
    x, kernel = arrays((2, 5, 4, 3), (3, 3, 3, 3), dtype=jnp.float32)
    _, pull = jax.vjp(convolution, x, kernel)
    kept = sorted(leaf.shape for leaf in jax.tree.leaves(pull) if leaf.size > 1)
    assert kept == sorted([x.shape, kernel.shape])


def lowered_gradient(convolve, *platforms):
    x, kernels = arrays((2, 3, 4, 2), (3, 3, 3, 2, 2), dtype=jnp.float32)
    exported = export.export(jax.jit(jax.grad(scanned(convolve), (0, 1))), platforms=platforms)(x, kernels)
    return exported, exported.mlir_module(), (x, kernels)


def operations(module, name):
    return [line.split(name, 1)[1].split(" loc(")[0] for line in module.splitlines() if f"= {name}" in line]


@pytest.mark.parametrize(("options", "products"), [({"dilation": 2}, 3), ({"groups": 2}, 0)])
def test_groups_and_dilation_keep_convolutions_off_a_cpu(options, products):
    def convolve(x, kernel):
        return convolution(x, kernel[:, :, : 2 // options.get("groups", 1)], **options)

    _, module, _ = lowered_gradient(convolve, "cpu")
    assert len(operations(module, "stablehlo.dot_general")) == products
    assert not operations(module, "stablehlo.convolution")
    native = operations(lowered_gradient(convolve, "cuda")[1], "stablehlo.convolution")
    assert len(native) == 3


def test_on_a_cpu_forward_and_backward_are_three_products_and_no_convolution():
    _, module, arguments = lowered_gradient(convolution, "cpu")
    assert len(operations(module, "stablehlo.dot_general")) == 3
    assert not operations(module, "stablehlo.convolution")
    compiled = jax.jit(jax.grad(scanned(convolution), (0, 1))).lower(*arguments).compile().as_text()
    assert " while(" in compiled
    assert " convolution(" not in compiled


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_elsewhere_the_native_convolutions_are_lowered(platform):
    def layouts(convolve):
        convolutions = operations(lowered_gradient(convolve, platform)[1], "stablehlo.convolution")
        return sorted(line.split(" dim_numbers", 1)[1] for line in convolutions)

    assert len(layouts(convolution)) == 3
    assert layouts(convolution) == layouts(reference)
    assert not operations(lowered_gradient(convolution, platform)[1], "stablehlo.dot_general")


def test_one_program_exported_for_two_platforms():
    exported, module, (x, kernels) = lowered_gradient(convolution, "cpu", "cuda")
    assert operations(module, "stablehlo.dot_general")
    assert operations(module, "stablehlo.convolution")
    assert_equal(exported.call(x, kernels), jax.grad(scanned(reference), (0, 1))(x, kernels), 1e-5)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("dtype", "accuracy"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
def test_a_narrow_computation_dtype_is_close_and_leaves_dtypes_alone(strides, dtype, accuracy):
    x, kernel = arrays((2, 5, 4, 3), (3, 3, 3, 3), dtype=jnp.float32)

    def both(f):
        return jax.value_and_grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), (0, 1))(x, kernel)

    narrow = partial(convolution, strides=strides, dtype=dtype)
    assert narrow(x, kernel).dtype == jnp.float32
    rounded = reference(x.astype(dtype), kernel.astype(dtype), strides=strides).astype(jnp.float32)
    assert_equal(narrow(x, kernel), rounded, accuracy)
    (_, gradients), (_, exact) = both(narrow), both(partial(reference, strides=strides))
    assert_equal(gradients, exact, 8 * accuracy)
    assert not np.array_equal(gradients[0], exact[0])


@pytest.mark.parametrize(
    ("of_x", "of_kernel"),
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.bfloat16)],
)
def test_the_result_has_the_dtype_of_the_image_and_is_computed_in_the_wider_one(of_x, of_kernel):
    x, kernel = arrays((2, 5, 4, 3), (3, 3, 3, 3))
    x, kernel = x.astype(of_x), kernel.astype(of_kernel)
    y = convolution(x, kernel)
    assert y.dtype == of_x
    exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert_equal(y, exact.astype(of_x), 2**-8 if of_x == jnp.bfloat16 else 1e-6)
    gradients = jax.grad(lambda x, kernel: jnp.sum(convolution(x, kernel)), (0, 1))(x, kernel)
    assert [g.dtype for g in gradients] == [of_x, of_kernel]


def test_zero_images():
    x, kernel = arrays((0, 5, 4, 3), (3, 3, 3, 2), dtype=jnp.float32)
    assert convolution(x, kernel).shape == (0, 5, 4, 2)


IMAGE, WINDOW = (2, 5, 4, 3), (3, 3, 3, 2)


@pytest.mark.parametrize(
    ("image", "window", "options", "message"),
    [
        ((5, 4, 3), WINDOW, {}, r"x=<float32\[5, 4, 3\]>: expected .* \[batch, height, width, in_channels\]"),
        (IMAGE, (3, 3, 3), {}, r"kernel=<float32\[3, 3, 3\]>: expected .* \[kernel_height, kernel_width, "),
        (IMAGE, (0, 3, 3, 2), {}, "at least 1x1"),
        (IMAGE, (3, 3, 4, 2), {}, "3 channels .* kernel reads 4"),
        (IMAGE, WINDOW, {"strides": 0}, "strides is 0"),
        (IMAGE, WINDOW, {"strides": 1.5}, "strides is 1.5"),
        (IMAGE, WINDOW, {"strides": (1, -1)}, r"strides is \(1, -1\)"),
        (IMAGE, WINDOW, {"strides": (1, 1, 1)}, r"strides is \(1, 1, 1\)"),
        (IMAGE, WINDOW, {"dilation": 0}, "dilation is 0"),
        (IMAGE, WINDOW, {"dilation": (2, 1.5)}, r"dilation is \(2, 1.5\)"),
        (IMAGE, WINDOW, {"groups": 0}, "groups=0: expected an integer of at least 1"),
        (IMAGE, WINDOW, {"groups": 3}, r"3 channels .* kernel reads 3 groups of 3"),
        (IMAGE, (3, 3, 1, 4), {"groups": 3}, r"4 output channels .* groups=3 does not divide"),
        (IMAGE, WINDOW, {"dilation": 2, "padding": "VALID"}, r"smaller than the kernel \(5, 5\)"),
        (IMAGE, WINDOW, {"padding": "same"}, "padding is 'same'"),
        (IMAGE, WINDOW, {"padding": 1}, "padding is 1"),
        (IMAGE, WINDOW, {"padding": (1, 1)}, r"padding is \(1, 1\)"),
        (IMAGE, WINDOW, {"padding": ((1, 1), (0, -1))}, "non-negative"),
        (IMAGE, (3, 5, 3, 2), {"padding": "VALID"}, r"smaller than the kernel \(3, 5\)"),
        (IMAGE, WINDOW, {"dtype": "int8"}, "dtype is int8"),
    ],
)
def test_faults_of_shapes_and_options(image, window, options, message):
    x, kernel = arrays(image, window, dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(convolution, **options), x, kernel)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.complex64, jnp.bool_])
def test_faults_of_dtypes(dtype):
    x, kernel = arrays(IMAGE, WINDOW, dtype=jnp.float32)
    with pytest.raises(ValueError, match=f"x=<{jnp.dtype(dtype)}.*expected a floating-point array"):
        convolution(x.astype(dtype), kernel)
    with pytest.raises(ValueError, match=f"kernel=<{jnp.dtype(dtype)}.*expected a floating-point array"):
        convolution(x, kernel.astype(dtype))


def test_groups_of_an_empty_batch():
    assert convolution(jnp.ones((0, 4, 4, 4)), jnp.ones((3, 3, 2, 4)), groups=2).shape == (0, 4, 4, 4)
