"""What is refused at trace time, and what it is told."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import Direct, solve
from ode_nets.integrate import Adaptive, FixedStep, make_problem
from ode_nets.tableaus import SCHEMES, Tableau

decay = lambda t, x, theta: jax.tree.map(jnp.negative, x)


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (jnp.arange(3), "x0 has dtype int32: a state must be floating point"),
        ({"a": jnp.ones(2), "b": True}, r"x0\['b'\] is True, a bool"),
        (1, "x0 has dtype int32"),
        ((), "x0 holds no array"),
        (jnp.ones(2, jnp.complex64), "x0 has dtype complex64: .*; split it into real and imaginary parts"),
    ],
)
def test_states_that_are_not_floating_point_are_refused(x0, message):
    with pytest.raises(ValueError, match=message):
        make_problem(decay, x0, None)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"ts": []}, r"ts has shape \(0,\): expected a non-empty vector"),
        ({"ts": np.zeros((0,))}, "non-empty"),
        ({"ts": [[0.5]]}, r"ts has shape \(1, 1\)"),
        ({"ts": 0.5}, r"ts has shape \(\)"),
        ({"ts": [0.5, 0.25]}, r"ts=\[0.5, 0.25\] is not sorted from t0=0.0 towards t1=1.0"),
        ({"ts": [0.25, 0.5], "t0": 1.0, "t1": 0.0}, "is not sorted from t0=1.0 towards t1=0.0"),
        ({"ts": [0.5, 1.5]}, r"ts=\[0.5, 1.5\] leaves the interval"),
        ({"ts": [-0.5, 0.5]}, "leaves the interval"),
        ({"ts": [1.5], "t0": 1.0, "t1": 1.0}, "leaves the interval"),
        ({"ts": [0.5, np.nan]}, "ts=.*expected finite times"),
        ({"t0": [0.0, 0.1]}, r"t0 has shape \(2,\): expected a scalar; use jax.vmap"),
        ({"t1": np.inf}, "t1=inf: expected a finite time"),
        ({"t0": np.nan}, "t0=nan: expected a finite time"),
    ],
)
def test_bad_times_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        make_problem(decay, jnp.ones(2), None, **times)


def test_a_time_that_is_traced_in_a_list_is_refused_like_a_known_one():
    for t0 in (lambda t: [t], lambda t: [0.0]):
        with pytest.raises(ValueError, match=r"t0 has shape \(1,\): expected a scalar"):
            jax.jit(lambda t, t0=t0: solve(decay, 1.0, solver=FixedStep("euler", 2), t0=t0(t)).x)(0.0)


def test_times_known_before_a_trace_are_checked_inside_it():
    """Arrays that jit closes over, or gets as NumPy values, keep their values."""
    ts = jnp.array([0.5, 0.25])
    with pytest.raises(ValueError, match="is not sorted"):
        jax.jit(lambda x: make_problem(decay, x, None, ts=ts).x0)(jnp.ones(2))


@pytest.mark.parametrize(
    ("field", "has_aux", "message"),
    [
        (
            lambda t, x, theta: x[:1],
            False,
            r"dx of shape \(1,\) and dtype float32: expected \(2,\) and float32",
        ),
        (lambda t, x, theta: x.astype(jnp.bfloat16), False, "dtype bfloat16: expected"),
        (lambda t, x, theta: (x, x), False, "has_aux=True"),
        (lambda t, x, theta: {"a": x}, False, "returned the structure"),
        (lambda t, x, theta: x, True, r"must return \(dx, aux\): got"),
        (lambda t, x, theta: (x, x, x), True, r"must return \(dx, aux\): got tuple"),
    ],
)
def test_fields_that_do_not_fit_the_state_are_refused(field, has_aux, message):
    with pytest.raises(ValueError, match=message):
        make_problem(field, jnp.ones(2), None, has_aux=has_aux)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rtol": 0.0}, "rtol=0.0: expected a number above 0"),
        ({"rtol": -1e-3}, "rtol=-0.001: expected a number above 0"),
        ({"rtol": np.nan}, "rtol=nan"),
        ({"atol": -1e-9}, "atol=-1e-09: expected a number at least 0"),
        ({"first_step": 0.0}, "first_step=0.0: expected a number above 0"),
        ({"min_step": -1.0}, "min_step=-1.0: expected a number above 0"),
        ({"max_steps": 0}, "max_steps=0: expected an integer of at least 1"),
        ({"max_steps": 2**31}, "max_steps=2147483648: expected an integer of at least 1 .below 2"),
        ({"norm": "worst"}, "norm='worst': expected one of 'batch', 'sample'"),
        ({"outputs": "steps"}, "outputs='steps': expected one of 'interpolate', 'clip' or None"),
        ({"scheme": "rk4"}, "scheme 'rk4' has no error estimate; use heun_euler, bosh3"),
        ({"scheme": "rk45"}, "scheme must be a Tableau or one of bosh3, dopri5"),
    ],
)
def test_adaptive_solvers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**({"scheme": "dopri5"} | changes))


@pytest.mark.parametrize("n_steps", [0, -1, 2.0, True, np.int64(0), np.array(2.9), 2**31, None])
def test_numbers_of_steps_that_are_no_positive_integers_are_refused(n_steps):
    with pytest.raises(ValueError, match=r"n_steps=.*: expected an integer of at least 1"):
        FixedStep("rk4", n_steps)


def test_several_numbers_of_steps_are_for_several_lanes():
    with pytest.raises(ValueError, match=r"n_steps has shape \(2,\): expected a scalar; use jax.vmap"):
        solve(decay, 1.0, solver=FixedStep("euler", jnp.array([2, 3])))


def test_outputs_off_the_grid_are_interpolated_or_refused():
    no_interpolant = Tableau("own", ((), (Fraction(1, 2),)), (0, 1), (0, Fraction(1, 2)), 2)
    run = lambda ts, t1=1.0, scheme=no_interpolant: solve(
        decay, jnp.ones(1), solver=FixedStep(scheme, 4), gradient=Direct(), ts=ts, t1=t1
    )
    with pytest.raises(ValueError, match=r"ts has one at 0.3\d* of the way .* 4 steps, and scheme 'own' has no interp"):
        run([0.25, 0.3])
    with pytest.raises(ValueError, match="ts are not known at trace time"):
        jax.jit(run)(jnp.array([0.25]))
    np.testing.assert_allclose(run([0.25, 0.3], scheme="rk4").x[:, 0], np.exp([-0.25, -0.3]), rtol=1e-4)
    traced = jax.jit(lambda ts, t1: run(ts, t1, "rk4").x)(jnp.array([0.25, 0.3]), 1.0)
    np.testing.assert_allclose(traced[:, 0], np.exp([-0.25, -0.3]), rtol=1e-4)


def test_numpy_integers_are_integers():
    assert FixedStep("rk4", np.int64(3)) == FixedStep("rk4", 3)


def test_solvers_are_hashable_values():
    a, b = (Adaptive("dopri5", 1e-4, 1e-6) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert FixedStep("rk2", 3) == FixedStep(SCHEMES["heun"], 3)
    assert len({FixedStep("rk4", 3), FixedStep("rk4", 3), FixedStep("rk4", 4)}) == 2
    assert FixedStep("rk4", 3).scheme.name == "rk4"


def test_a_python_number_is_a_state_like_any_other(x64):
    """Weakly typed, it once gave a loop whose carry changed its dtype."""
    run = lambda x: solve(decay, x, solver=Adaptive("heun_euler", max_steps=99), gradient=Direct()).x
    np.testing.assert_allclose(jax.jit(jax.grad(run))(1.0), np.exp(-1.0), rtol=1e-3)


def test_a_field_reads_time_if_a_slope_depends_on_it(x64):
    """Calls that are handed the time need not look at it."""

    def clocked(field):
        return make_problem(field, 1.0, 2.0).clocked

    assert not clocked(jax.jit(lambda t, x, k: -k * x))
    assert not clocked(jax.checkpoint(lambda t, x, k: jax.lax.cond(x > 0, lambda: -k * x, lambda: x) + 0 * jnp.cos(k)))
    assert not clocked(lambda t, x, k: (jnp.sin(t), -k * x)[1])
    assert clocked(jax.jit(lambda t, x, k: -k * x + t))
    assert clocked(lambda t, x, k: jax.jit(jnp.sin)(t) * x)
