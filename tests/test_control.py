"""Step control: the factor's formula and bounds, the norm of an error, and the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import Adaptive, solve
from ode_nets.control import StepController, initial_step, scaled_norm
from ode_nets.trees import Unjudged

PI = StepController(integral=0.3, proportional=0.4, shrink_accepted=True)


def factor(controller, error, previous=1.0, q=4):
    return float(controller.factor(jnp.asarray(error), jnp.asarray(previous), q))


def test_default_controller_is_the_formula_of_the_published_code(x64):
    control = StepController()
    for q in (1, 2, 4):
        for error in (1e-3, 0.02, 0.3, 1.5, 7.0, 300.0):
            raw = 0.9 * error ** (-1 / (q + 1))
            # An accepted step never shrinks h; a rejected one never keeps it.
            expected = min(max(raw, 1.0), 10.0) if error <= 1 else min(max(raw, 0.2), 0.9)
            assert factor(control, error, q=q) == pytest.approx(expected, rel=1e-12)


def test_pi_controller_weighs_this_error_and_the_last_accepted_one(x64):
    for error, previous in ((0.5, 0.1), (0.9, 0.7), (2.0, 0.5)):
        raw = 0.9 * error ** (-0.7 / 5) * previous ** (0.4 / 5)
        expected = min(max(raw, 0.2), 10.0 if error <= 1 else 0.9)
        assert factor(PI, error, previous) == pytest.approx(expected, rel=1e-12)
    assert factor(PI, 0.9, 0.01) < 1, "with shrink_accepted, h may shrink after an accepted step"


def test_factor_at_the_edges():
    control = StepController(min_factor=0.1, max_factor=4.0)
    assert factor(control, 0.0) == 4.0
    for bad in (np.nan, np.inf, -np.inf):
        assert factor(control, bad) == pytest.approx(0.1)
    assert factor(control, 1.0) == 1.0
    assert factor(PI, 0.0, 0.0) == 10.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"safety": 0.0}, "safety=0.0"),
        ({"safety": 1.1}, "safety=1.1"),
        ({"min_factor": 0.0}, "min_factor=0.0"),
        ({"min_factor": 1.0}, "min_factor < 1 < max_factor"),
        ({"max_factor": 1.0}, "min_factor < 1 < max_factor"),
        ({"integral": -0.1}, "integral=-0.1"),
        ({"integral": 0.0}, "not both 0"),
    ],
)
def test_controllers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StepController(**changes)


def test_norm_is_the_root_mean_square_over_all_entries_of_all_leaves(x64):
    rng = np.random.default_rng(0)
    error, x, y = ({"a": rng.normal(size=(2, 3)), "b": rng.normal(size=4)} for _ in range(3))
    flat = lambda tree: np.concatenate([tree["a"].ravel(), tree["b"]])
    scale = 1e-3 + 0.1 * np.maximum(np.abs(flat(x)), np.abs(flat(y)))
    expected = np.sqrt(np.mean((flat(error) / scale) ** 2))
    np.testing.assert_allclose(scaled_norm(error, x, y, 0.1, 1e-3), expected, rtol=1e-14)


def test_sample_norm_is_that_of_the_worst_sample_alone(x64):
    rng = np.random.default_rng(1)
    error, x, y = ({"a": rng.normal(size=(5, 3)), "b": rng.normal(size=(5, 2, 2))} for _ in range(3))
    alone = [
        scaled_norm(*(jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (error, x, y)), 0.1, 1e-3)
        for i in range(5)
    ]
    got = scaled_norm(error, x, y, 0.1, 1e-3, "sample")
    np.testing.assert_allclose(got, max(alone), rtol=1e-14)
    assert got > scaled_norm(error, x, y, 0.1, 1e-3)


def test_norm_is_taken_in_float32_at_least():
    error = jnp.full(3, 1e-3, jnp.bfloat16)
    norm = scaled_norm(error, error, error, 0.0, 1e-6)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 1e3, rtol=4e-3)


def test_an_entry_that_rests_at_zero_needs_no_absolute_tolerance():
    x = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(scaled_norm(jnp.array([0.1, 0.0]), x, x, 0.1, 0.0), np.sqrt(0.5), rtol=1e-6)
    assert scaled_norm(jnp.array([0.1, 1e-9]), x, x, 0.1, 0.0) == np.inf


def test_a_part_that_is_unjudged_counts_for_nothing_unless_it_is_not_finite():
    e, x = jnp.array([[3.0, 4.0]]), jnp.ones((1, 2))
    for kind in ("batch", "sample"):
        bare = scaled_norm(e, x, x, 0.1, 0.2, kind)
        both = lambda q, kind=kind: scaled_norm((e, Unjudged(q)), (x, Unjudged(q)), (x, Unjudged(q)), 0.1, 0.2, kind)
        assert both(jnp.float32(1e9)) == bare
        assert jnp.isnan(both(jnp.float32(jnp.inf)))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_state_that_is_not_finite_is_never_within_tolerance(bad):
    x = jnp.array([1.0, 2.0])
    error = jnp.array([1e-9, 1e-9])
    assert not scaled_norm(error, x, x.at[0].set(bad), 0.1, 0.1) <= 1
    assert not scaled_norm(error.at[0].set(bad), x, x, 0.1, 0.1) <= 1


def test_a_negative_tolerance_is_never_met():
    assert not scaled_norm(jnp.zeros(2), jnp.ones(2), jnp.ones(2), jnp.float32(-0.1), 1e-3) <= 1


def test_a_tolerance_of_one_part_is_not_taken_for_another():
    x, zero = (jnp.ones(2), jnp.ones(3)), (jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"rtol or atol of structure PyTreeDef\(\(\*, None\)\)"):
        scaled_norm(zero, x, x, 0.1, (0.1, None))
    assert scaled_norm(zero, x, x, 0.1, [0.1]) == 0
    assert scaled_norm((zero[0], None), (x[0], None), (x[0], None), 0.1, (0.1, None)) == 0


@pytest.mark.parametrize("leaves", [(jnp.ones(()),), (jnp.ones((2, 1)), jnp.ones(3))])
def test_sample_norm_refuses_leaves_without_a_common_axis(leaves):
    with pytest.raises(ValueError, match=r"norm='sample'.*leading axis"):
        scaled_norm(leaves, leaves, leaves, 0.1, 0.1, "sample")


def hairer(field, t0, x0, span, order, rtol, atol):
    """Hairer, Norsett, Wanner I, p. 169, in NumPy, without their cap at the end of the interval."""
    scale = atol + rtol * np.abs(x0)
    rms = lambda v: np.sqrt(np.mean((v / scale) ** 2))
    f0 = field(t0, x0)
    d0, d1 = rms(x0), rms(f0)
    h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    sign = np.sign(span)
    d2 = rms(field(t0 + sign * h0, x0 + sign * h0 * f0) - f0) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** (1 / (order + 1))
    return sign * min(100 * h0, h1, abs(span))


@pytest.mark.parametrize("span", [10.0, -10.0, 1e-4])
@pytest.mark.parametrize("order", [1, 4])
@pytest.mark.parametrize("start", [[1.0, -2.0], [0.0, 1e-9], [1e3, 1e-3]])
def test_first_step_is_that_of_hairer(x64, span, order, start):
    x0, t0 = np.array(start), 0.4
    field = lambda t, x: -3 * x + t
    sign = np.sign(span)
    got = sign * initial_step(
        lambda tau, x: field(t0 + sign * tau, x),
        jnp.asarray(x0),
        jnp.asarray(field(t0, x0)),
        jnp.asarray(abs(span)),
        sign,
        order,
        1e-3,
        1e-6,
    )
    np.testing.assert_allclose(got, hairer(field, t0, x0, span, order, 1e-3, 1e-6), rtol=1e-12)


def test_first_step_of_special_fields_is_finite_and_of_the_right_sign(x64):
    def first(field, x0, span=2.0, atol=1e-6):
        x0, sign = jnp.asarray(x0), -1.0 if span < 0 else 1.0
        slope = lambda tau, x: field(sign * tau, x)
        return sign * float(initial_step(slope, x0, field(0.0, x0), jnp.asarray(abs(span)), sign, 2, 1e-3, atol))

    assert first(lambda t, x: 0 * x, [1.0, 2.0]) == 1e-6, "a field that is zero"
    assert first(lambda t, x: x, [1.0], span=0.0) == 0.0
    assert -2 <= first(lambda t, x: x, [1.0], span=-2.0) < 0
    moving = lambda t, x: jnp.stack([-x[0], 1.0 + 0 * x[1]])
    assert 0 < first(moving, [1.0, 0.0], atol=0.0) <= 2, "a zero entry that moves, without absolute tolerance"
    assert np.isnan(first(lambda t, x: x * jnp.nan, [1.0]))


def test_first_step_evaluates_the_field_once(x64):
    calls = []
    field = lambda t, x: (calls.append(float(t)), -x)[1]
    x0 = jnp.ones(2)
    initial_step(field, x0, -x0, jnp.asarray(1.0), 1.0, 2, 1e-3, 1e-6)
    assert len(calls) == 1


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_a_state_may_have_more_entries_than_int32_counts(norm):
    """As the batch of a pod has; nothing is computed."""
    solver = Adaptive("bosh3", norm=norm)
    slope = jax.value_and_grad(lambda k, x: solve(lambda t, x, k: -k * x, x, k, solver=solver).x.sum())
    state = jax.ShapeDtypeStruct((1, 2**11, 2**11, 2**10), jnp.float32)
    assert jax.eval_shape(slope, jax.ShapeDtypeStruct((), jnp.float32), state)[1].shape == ()
