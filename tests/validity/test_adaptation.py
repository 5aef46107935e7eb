"""The controllers of algorithm 1, step by step, and the one that comes to rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import make_problem, validity


def run(controller, critical, n_checks, start=0.01):
    """A model that fails the check wherever it has been trained with steps beyond `critical`."""
    state, values = controller.init(start), []
    for _ in range(n_checks):
        state = controller.update(jnp.where(state.value > critical, 0.4, 0.01), state)
        # A trial is judged before any training, while the model still follows its old step.
        state = controller.update(0.01, state) if bool(state.on_trial) else state
        values.append(float(state.value))
    return state, np.array(values)


def test_algorithm_1_halves_and_grows():
    controller = validity.step_adaptation(revert=False)
    state = controller.update(0.05, controller.init(0.1))
    assert float(state.value) == pytest.approx(0.11)
    assert not bool(state.on_trial)
    state = controller.update(-0.2, state)
    assert float(state.value) == pytest.approx(0.055)
    assert float(controller.update(jnp.nan, state).value) == pytest.approx(0.0275)
    assert (int(state.checks), int(state.n_shrunk)) == (2, 1)


def test_a_failed_trial_is_reverted():
    controller = validity.step_adaptation()
    state = controller.update(0.0, controller.init(0.2))
    assert bool(state.on_trial)
    assert float(controller.update(0.0, state).value) == pytest.approx(0.22)
    back = controller.update(0.3, state)
    assert float(back.value) == pytest.approx(0.2)
    assert (int(back.n_reverted), int(back.n_shrunk), bool(back.on_trial)) == (1, 0, False)


def test_bounds_hold_and_no_trial_is_made_at_them():
    controller = validity.step_adaptation(max_steps=10)
    assert float(controller.init(5.0).value) == 1.0
    top = controller.update(0.0, controller.init(1.0))
    assert (float(top.value), bool(top.on_trial)) == (1.0, False)
    assert float(controller.update(1.0, controller.init(0.0)).value) == pytest.approx(0.1)


def test_the_original_oscillates_forever_and_the_settled_one_rests():
    _, original = run(validity.step_adaptation(), 0.1, 200)
    state, settled = run(validity.settled_step_adaptation(), 0.1, 200)
    assert (np.diff(original[100:]) < 0).sum() >= 5
    assert np.ptp(settled[60:]) == 0
    # The step that failed lay within one factor of 1.1 above the critical one.
    assert 0.8 * 0.1 < settled[-1] <= 0.1
    assert int(state.n_shrunk) == 1


def test_hysteresis_keeps_the_step_between_calm_and_threshold():
    controller = validity.settled_step_adaptation()
    for gap, factor in ((0.02, 1.1), (0.05, 1.0), (0.2, 0.5)):
        assert float(controller.update(gap, controller.init(0.2)).value) == pytest.approx(0.2 * factor)


def test_each_failure_lowers_the_ceiling_by_the_factor_of_memory_until_the_lowest_value():
    controller = validity.settled_step_adaptation()
    state = controller.update(0.0, controller.init(0.5))
    back = controller.update(0.3, state)
    assert float(back.ceiling) == pytest.approx(0.8 * 0.55)
    # The step to go back to lies above the new ceiling.
    assert float(back.value) == pytest.approx(0.44)
    again = controller.update(0.3, back)
    assert float(again.ceiling) == pytest.approx(0.8 * 0.44)
    assert float(again.value) == pytest.approx(0.22)
    bottom = controller.init(0.0)
    for _ in range(3):
        bottom = controller.update(0.3, bottom)
    assert float(bottom.value) == float(bottom.ceiling) == pytest.approx(1 / 500)


def test_works_under_jit_and_vmap_and_for_tolerances():
    controller = validity.tolerance_adaptation()
    states = jax.vmap(controller.init)(jnp.array([1e-6, 1e-5]))
    states = jax.jit(jax.vmap(controller.update))(jnp.array([0.0, 0.5]), states)
    np.testing.assert_allclose(states.value, [1.1e-6, 0.5e-5], rtol=1e-6)


def test_steps_of_are_the_fewest_of_at_most_h():
    h = jnp.array([1.0, 0.5, 0.3, 1 / 7, 1 / 500, 3.0])
    np.testing.assert_array_equal(validity.steps_of(h), [1, 2, 4, 7, 500, 1])


@pytest.mark.usefixtures("x64")
def test_first_step_is_hairers():
    problem = make_problem(lambda t, x, k: k * x, jnp.array([1.0]), -5.0)
    h = validity.first_step(problem, "euler", 1e-3)
    # scale = atol + rtol |x| = 2e-3, d0 = 1 / scale, d1 = 5 / scale, h0 = 0.01 d0 / d1 = 0.002, d2 = 25 / scale; the
    # step is the smaller of 100 h0 and (0.01 / max(d1, d2))^(1 / 2).
    d2 = 25 / 2e-3
    np.testing.assert_allclose(h, min(100 * 0.002, (0.01 / d2) ** 0.5), rtol=1e-6)
    # Without the scaling d2 is 25 itself, and the step 45 times as long as at a tolerance of 1e-3.
    np.testing.assert_allclose(validity.first_step(problem, "euler", None), (0.01 / 25) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"shrink": 1.0}, "shrink"),
        ({"grow": 1.0}, "grow"),
        ({"calm": 0.0}, "calm"),
        ({"memory": 0.4}, "memory"),
        ({"lowest": 2.0}, "lowest"),
    ],
)
def test_bad_arguments_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        validity.adaptation(**({"lowest": 0.01, "highest": 1.0} | changes))
