"""Shapes and dtypes in annotations: what they refuse, traced or not, and that functions return what they say."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import typing
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import AbstractArray, Array, Bool, Float, Float32, Real, jaxtyped

import ode_nets as on
from ode_nets import problems, validity
from ode_nets.arguments import Rule, checked
from ode_nets.shapes import sizes_of
from ode_nets.weights.basis import gram_matrix
from ode_nets.weights.expansion import projection_matrix, transform

KEY, W = jax.random.key(0), jnp.ones((3, 3, 2, 4))
IMAGES, KERNEL = jnp.ones((2, 5, 5, 2)), jnp.ones((3, 3, 2, 2))
STATES, PLANE = jnp.ones((4, 2)), np.arange(24.0).reshape(2, 6, 2)
BODIES = problems.three_bodies.random_start(KEY)
VALUES = jnp.ones((5, 3, 4))


@checked
def sized(
    x: Float[Array, "n 2"],
    y: Real[np.ndarray | Array, "n"] | None = None,
    pair: tuple[Bool[np.ndarray, "m"], Real[np.ndarray, "m"]] | None = None,
    tree: dict[str, Float32[Array, "*lanes n"]] | None = None,
) -> Any:
    return y


POINTS = jnp.ones((3, 2))


def refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sized(jnp.ones(3)), r"^x=<float32\[3\]>: expected a floating-point array \[n, 2\]$"),
        (lambda: sized(jnp.ones((3, 3))), r"^x=<float32\[3, 3\]>: expected a floating-point array \[n, 2\]$"),
        (lambda: sized(POINTS.astype(int)), r"^x=<int32\[3, 2\]>: expected a floating-point array \[n, 2\]; cast it$"),
        (lambda: sized(POINTS + 0j), r"^x=<complex64\[3, 2\]>: expected a floating-point array \[n, 2\]$"),
        (lambda: sized(1.0), r"^x=1\.0: expected a floating-point array \[n, 2\]$"),
        (lambda: sized([[1.0, 2.0]]), r"^x=\[\[1\.0, 2\.0\]\]: expected a floating-point array"),
        (lambda: sized(jnp.ndarray), "this is the class"),
        (
            lambda: sized(POINTS, jnp.ones(4)),
            r"^y=<float32\[4\]>: expected an array of real numbers \[n\] or None, with n=3 as in x=<float32\[3, 2\]>$",
        ),
        (lambda: sized(POINTS, [1, "a", 2]), "^y=.*expected an array of real numbers"),
        (lambda: sized(POINTS, pair=([True], [1, 2])), r"^pair=.*with m=1 as in pair="),
        (lambda: sized(POINTS, pair=([1.0], [1.0])), r"an array of booleans \[m\] and an array of real numbers \[m\]"),
        (
            lambda: sized(POINTS, tree={"a": jnp.ones(2)}),
            r"^tree=.*an array of float32 \[\*lanes, n\] or None, with n=3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    refused(call, message)


def test_what_fits_is_taken_of_numpy_and_jax():
    assert sized(np.ones((3, 2))) is None
    assert sized(POINTS, y := jnp.arange(3)) is y
    np.testing.assert_array_equal(sized(POINTS, [1, 2, 3]), np.array([1, 2, 3]))
    sized(POINTS.astype(jnp.bfloat16), pair=([True, False], (1, 2)), tree={"a": jnp.ones(3), "b": jnp.zeros(3)})
    sized(jnp.ones((0, 2)), [])


def test_traced_arrays_are_looked_at_like_others():
    assert jax.eval_shape(lambda x: x.sum(), POINTS).shape == ()
    refused(lambda: jax.jit(sized)(jnp.ones(3)), r"^x=<float32\[3\]>: expected a floating-point array \[n, 2\]")
    refused(lambda: jax.jit(sized)(POINTS, jnp.ones(4)), "with n=3 as in x=")
    refused(lambda: jax.grad(lambda x: sized(x).sum())(jnp.ones(3)), "^x=")
    # A lane has one axis less, and so has what is refused.
    refused(lambda: jax.vmap(sized)(POINTS), r"^x=<float32\[2\]>")
    np.testing.assert_array_equal(jax.vmap(sized)(jnp.ones((5, 3, 2)), jnp.ones((5, 3))), np.ones((5, 3)))
    # On the host nothing traced is of use, whatever its shape.
    refused(lambda: jax.jit(validity.chord_heights)(PLANE), r"\[n, n_points, 2\]; it is traced, and must be known")


def test_sizes_may_be_symbolic():
    n = jax.export.symbolic_shape("n")[0]
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    exported = jax.export.export(jax.jit(lambda x, y: (sized(x), y)[1]))(shape(n, 2), shape(n))
    assert str(exported.out_avals[0].shape) == "(n,)"
    refused(lambda: jax.export.export(jax.jit(sized))(shape(2, n)), "^x=")


def test_the_words_of_a_rule_take_the_place_of_those_of_an_array():
    rows = checked(lambda x: x)
    rows.__wrapped__.__annotations__["x"] = Annotated[Float[Array, "n"], Rule("one row; split the table")]
    refused(lambda: rows(jnp.ones(2, int)), r"^x=<int32\[2\]>: expected one row; split the table$")


def test_a_key_is_one_key():
    take = lambda key: problems.spheres.generate(key, 3, 2)[0].shape
    assert take(KEY) == take(jax.random.PRNGKey(0)) == take(np.array(jax.random.PRNGKey(1))) == (3, 2)
    for wrong in (0, None, jax.random.split(KEY), jnp.ones(2), jnp.ones(3, jnp.uint32), "key"):
        refused(lambda wrong=wrong: take(wrong), r"^key=.*: expected a PRNG key, such as jax\.random\.key\(0\)$")
    points = jax.vmap(lambda key: problems.spheres.generate(key, 3, 2)[0])(jax.random.split(KEY))
    assert points.shape == (2, 3, 2)


@jaxtyped(typechecker=None)
def of_a_user(n: Float[Array, "n"]) -> Any:
    assert isinstance(n, Float[Array, "n"])
    return sized(POINTS)


def test_axes_of_a_user_that_have_the_same_names_are_others():
    assert of_a_user(jnp.ones(7)) is None


AXES = ("", "n", "n n", "n m", "2 n", "... n", "*n m", "n ... n", "n *m n", "_ n", "_ _", "...", "*n", "3 ... 2")
SHAPES = [shape for rank in range(4) for shape in itertools.product((1, 2, 3), repeat=rank)]


@pytest.mark.parametrize("axes", AXES)
def test_shapes_are_allowed_where_jaxtyping_allows_them(axes):
    hint = Float[np.ndarray, axes]
    for shape in SHAPES:
        assert (sizes_of(hint, shape) is not None) == isinstance(np.zeros(shape), hint), shape


def test_sizes_are_those_of_named_axes():
    assert sizes_of(Float[Array, "2 a ... b _"], (2, 3, 4, 5, 6, 7)) == {"a": 3, "b": 6}
    assert sizes_of(Float[Array, "*lanes a"], (2, 3, 4)) == {"*lanes": (2, 3), "a": 4}


# ---------------------------------------------------------------------------------------------------------
# The library
# ---------------------------------------------------------------------------------------------------------


def annotated() -> dict[str, Any]:
    """All functions, methods and classes of the library that have annotations."""
    found = {}
    for info in pkgutil.walk_packages(on.__path__, "ode_nets."):
        for owner in vars(importlib.import_module(info.name)).values():
            if getattr(owner, "__module__", None) != info.name:
                continue
            inside = vars(owner).values() if isinstance(owner, type) else ()
            for value in (owner, *inside):
                if inspect.isfunction(value) or isinstance(value, type):
                    found[f"{info.name}.{value.__qualname__}"] = value
    return found


def hints_in(hint: Any) -> list[Any]:
    """jaxtyping's annotations inside of one."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return [hint]
    return [found for part in typing.get_args(hint) for found in hints_in(part)]


def test_annotations_of_arrays_are_read():
    """One that cannot be evaluated would be checked by nobody, as an axis without quotes."""
    n = 0
    for name, value in annotated().items():
        texts = getattr(value, "__annotations__", {})
        if any("Array" in str(text) or "ndarray" in str(text) for text in texts.values()):
            hints = typing.get_type_hints(value, include_extras=True)
            for hint in (hint for text in hints.values() for hint in hints_in(text)):
                n += 1
                axes = [axis.lstrip("*") for axis in hint.dim_str.split() if axis != "..."]
                assert all(axis.isidentifier() or axis.isdigit() for axis in axes), (name, hint)
    assert n > 100


CALLS = {
    "advance_filter": (on.advance_filter, (W, 1.0)),
    "convolution": (on.convolution, (IMAGES, KERNEL)),
    "batch_norm": (on.batch_norm, (STATES, {"scale": jnp.ones(2), "bias": jnp.ones(2)})),
    "images.random_kernel": (problems.images.random_kernel, (KEY, 2)),
    "images.field": (problems.images.field, (0.0, IMAGES, KERNEL)),
    "images.spectrum": (problems.images.spectrum, (KERNEL, 5, 4)),
    "images.solution": (problems.images.solution, (0.1, IMAGES, KERNEL)),
    "landscape.minima": (problems.landscape.minima, (problems.landscape.POTENTIAL,)),
    "spheres.generate": (problems.spheres.generate, (KEY, 3, 2)),
    "pendulum.field": (problems.pendulum.field, (0.0, STATES)),
    "pendulum.energy": (problems.pendulum.energy, (STATES,)),
    "pendulum.solution": (problems.pendulum.solution, (jnp.ones((3, 2)),)),
    "pendulum.pairs": (problems.pendulum.pairs, (3, 0.1)),
    "van_der_pol.field": (problems.van_der_pol.field, (0.0, STATES, 0.15)),
    "van_der_pol.power": (problems.van_der_pol.power, (STATES, 0.15)),
    "van_der_pol.divergence": (problems.van_der_pol.divergence, (STATES, 0.15)),
    "three_bodies.differences": (problems.three_bodies.differences, BODIES[:1]),
    "three_bodies.acceleration": (problems.three_bodies.acceleration, (BODIES.r, BODIES.masses)),
    "three_bodies.augmented": (problems.three_bodies.augmented, BODIES[:1]),
    "three_bodies.energies": (problems.three_bodies.energies, BODIES),
    "three_bodies.momentum": (problems.three_bodies.momentum, BODIES[1:]),
    "three_bodies.angular_momentum": (problems.three_bodies.angular_momentum, BODIES),
    "orientation": (validity.orientation, (*PLANE, PLANE[0] + 1)),
    "chord_heights": (validity.chord_heights, (PLANE,)),
    "trajectories": (
        validity.trajectories,
        (on.make_problem(lambda t, x, k: -x, STATES), on.FixedStep("euler", 3)),
    ),
    "gram_matrix": (gram_matrix, (on.Legendre(2), on.Fourier(3))),
    "projection_matrix": (projection_matrix, (on.Legendre(2), on.Fourier(3))),
    "gaussian_log_likelihood": (on.gaussian_log_likelihood, (VALUES[None], VALUES, VALUES > 0)),
    "gaussian_kl": (on.gaussian_kl, (STATES, STATES)),
    "importance_bound": (on.importance_bound, (STATES, STATES[0])),
}


def assert_is(value, hint):
    """Whether a value is what an annotation says, by jaxtyping's own check."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if typing.get_origin(hint) is tuple:
        for part, of_part in zip(value, typing.get_args(hint), strict=True):
            assert_is(part, of_part)
    elif typing.get_origin(hint) is dict:
        for part in value.values():
            assert_is(part, typing.get_args(hint)[1])
    elif hints_in(hint) == [hint]:
        assert isinstance(value, hint), (jnp.shape(value), hint)


@pytest.mark.parametrize("name", CALLS)
def test_functions_return_what_they_say(name):
    function, arguments = CALLS[name]
    hints = typing.get_type_hints(function, include_extras=True)
    bound = inspect.signature(function).bind(*arguments).arguments
    result = function(*arguments)
    assert hints_in(hints["return"])
    with jaxtyped("context"):
        for argument, value in bound.items():
            assert_is(value, hints[argument])
        assert_is(result, hints["return"])


def test_solutions_and_states_hold_what_they_say():
    state = validity.step_adaptation().init(0.1)
    alone = on.solve(lambda t, x, k: -k * x, 1.0, 2.0, solver=on.Adaptive("bosh3"), dense=True)
    lanes = jax.vmap(lambda k: on.solve(lambda t, x, k: -k * x, 1.0, k, solver=on.Adaptive("bosh3"), dense=True))
    for solution in (alone, lanes(jnp.arange(1.0, 4.0))):
        for made in (solution, solution.steps, solution.dense, state):
            hints = typing.get_type_hints(type(made), include_extras=True)
            with jaxtyped("context"):
                for field in (name for name, hint in hints.items() if hints_in(hint) == [hint]):
                    assert isinstance(getattr(made, field), hints[field]), (type(made), field)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: on.advance_filter(W[0], 1.0), r"^w=<float32\[3, 2, 4\]>: expected a floating-point array \[k1, k2, "),
        (lambda: on.convolution(IMAGES[0], KERNEL), r"^x=<float32\[5, 5, 2\]>.*\[batch, height, width, in_channels\]"),
        (
            lambda: on.batch_norm(STATES, {"scale": jnp.ones(3), "bias": jnp.ones(3)}),
            r"^params=.* with channels=2 as in x=",
        ),
        (lambda: on.batch_norm(STATES.astype(int), {"scale": jnp.ones(2)}), r"^x=<int32\[4, 2\]>.*; cast it$"),
        (lambda: problems.images.field(0.0, IMAGES, W), r"^kernel=.*\[size, size, channels, channels\]"),
        (lambda: problems.images.field(0.0, IMAGES[..., :1], KERNEL), "^kernel=.* with channels=1 as in x="),
        (lambda: problems.images.spectrum(KERNEL[:1], 5, 5), r"^kernel=<float32\[1, 3, 2, 2\]>"),
        (lambda: problems.pendulum.energy(jnp.ones(3)), r"^x=<float32\[3\]>.*\[\*lanes, 2\]"),
        (lambda: problems.van_der_pol.power(jnp.ones(()), 0.1), "^y="),
        (lambda: problems.three_bodies.energies(BODIES.r, BODIES.v[:2], BODIES.masses), "^v=.*with n=3 as in r="),
        (lambda: problems.three_bodies.momentum(BODIES.v, (1.0, 2.0)), "^masses=.*with n=3 as in v="),
        (lambda: problems.three_bodies.truth(BODIES, 1.0), r"^ts=1\.0: expected an array of real numbers \[n_times\]"),
        (lambda: validity.order_changes(PLANE[..., 0], [0.0, 1.0]), "^t=.*with n_times=6 as in states="),
        (lambda: validity.segment_crossings(PLANE[0]), r"^states=<float64\[6, 2\]>.*\[n, n_points, 2\]"),
        (lambda: validity.chord_heights(PLANE + 0j), "^states=<complex128"),
        (lambda: validity.fit_slope([1.0, 0.5], [1.0]), "^errors=.*with n=2 as in h="),
        (lambda: validity.distance(PLANE, PLANE[:, :3]), r"^reference=.*\*shape=\(6, 2\) as in outputs="),
        (lambda: validity.distance(1.0, 1.0), "^outputs=1.0: expected an array of real numbers"),
        (lambda: transform({}, np.ones(3)), r"^matrix=<float64\[3\]>.*\[n_new, n_old\]"),
        (lambda: on.gaussian_kl(STATES, STATES[0]), r"^std=.*with \*shape=\(4, 2\) as in mean="),
        (lambda: on.gaussian_log_likelihood(VALUES, VALUES[:, :2]), "^values=.*with n=3 as in x="),
        (lambda: on.gaussian_log_likelihood(VALUES, VALUES, VALUES[0] > 0), "^mask=.*as in values="),
        (lambda: on.gaussian_log_likelihood(VALUES, VALUES, 0 * VALUES), "^mask="),
        (lambda: on.gaussian_log_likelihood(VALUES, VALUES, sigma=0.0), r"^sigma=0\.0: expected a number above 0"),
        (lambda: on.gaussian_log_likelihood(VALUES[:1], VALUES), "^x has shape .*behind axes of samples"),
        (lambda: on.importance_bound(STATES, jnp.ones(3)), r"^kl=.*with \*shape=\(2,\) as in log_likelihood="),
        (lambda: on.kaiming_layer(0, (3, 2)), "^key=0: expected a PRNG key"),
    ],
)
def test_the_library_refuses_by_shape_and_dtype(call, message):
    refused(call, message)


def test_networks_refuse_what_is_no_image_or_series():
    net = on.ContinuousNet(widths=(2,), basis=on.PiecewiseConstant(1), solver=on.FixedStep("euler", 1))
    start = lambda net, *inputs: jax.eval_shape(net.init, {"params": KEY, "latent": KEY}, *inputs)
    refused(lambda: start(net, IMAGES[0]), r"^images=<float32\[5, 5, 2\]>: expected floating-point images \[batch, ")
    refused(lambda: start(net, IMAGES.astype(jnp.uint8)), r"^images=<uint8.*; scale uint8 images first")
    series, times = on.latent_ode(4, latent=2, size=2, width=2, units=2), jnp.arange(3.0)
    start(series, times, VALUES, VALUES > 0)
    own = jnp.ones((5, 3))
    refused(lambda: start(series, own, VALUES, VALUES > 0), "^times=.*take jax.vmap where every series has times")
    refused(lambda: start(series, times[:2], VALUES, VALUES > 0), "^values=.*with n=2 as in times=")
    refused(lambda: start(series, times, VALUES, VALUES), r"^mask=<float32.*an array of booleans \[\*lanes, n, feat")
    refused(lambda: start(series, times, VALUES, VALUES[:2] > 0), r"^mask=.*with \*lanes=\(5,\) as in values=")
