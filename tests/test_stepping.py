"""One Runge-Kutta step against exact rational arithmetic, and what it evaluates."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.stepping import Coupled, Evaluate, Hyper, RungeKutta, combine, get_scheme
from ode_nets.stepping.runge_kutta import Held
from ode_nets.tableaus import SCHEMES, Tableau

KEYS = tuple(SCHEMES)
EMBEDDED = tuple(key for key in KEYS if SCHEMES[key].b_error is not None)


def rk_step(tableau, field, t, x, h, first=None, with_error=False):
    """One step of the scheme of a tableau, `field(i, t, x)` told which evaluation it is."""
    later = [1]

    def evaluate(node, x):
        numerator, denominator = node
        time = t + h if numerator == denominator else t + numerator / denominator * h
        index = 0 if numerator == 0 else later[0]
        later[0] += index > 0
        return field(index, time, x)

    carry = None if first is None else Held(first, jnp.asarray(True))
    return RungeKutta(tableau).step(evaluate, x, h, carry, error=with_error)


def stability(tableau, weights, z):
    """weights^T (I - z A)^-1 1 z, in the tableau's own numbers: what a step adds to 1 on dx/dt = x."""
    stages = []
    for row in tableau.a:
        stages.append(1 + z * sum((a * k for a, k in zip(row, stages, strict=True)), Fraction(0)))
    return z * sum((w * k for w, k in zip(weights, stages, strict=True)), Fraction(0))


@pytest.mark.parametrize("key", KEYS)
def test_step_and_error_on_the_linear_problem_equal_rational_arithmetic(x64, key):
    tableau, z = SCHEMES[key], Fraction(3, 8)
    embedded = tableau.b_error is not None
    step = rk_step(tableau, lambda i, t, x: (x, ()), 0.0, jnp.array(2.0), float(z), with_error=embedded)
    np.testing.assert_allclose(step.x, 2 * (1 + float(stability(tableau, tableau.b, z))), rtol=4e-16)
    if embedded:
        error = 2 * float(stability(tableau, tableau.b_error, z))
        np.testing.assert_allclose(step.error, error, rtol=0, atol=2e-15)


@pytest.mark.parametrize("key", KEYS)
def test_step_on_a_field_of_time_alone_is_the_quadrature_of_its_nodes(x64, key):
    tableau, t, h = SCHEMES[key], Fraction(1, 4), Fraction(-3, 8)
    for power in range(4):
        start = jnp.array(float(t))
        got = rk_step(tableau, lambda i, t, x, p=power: (t**p, ()), start, jnp.zeros(()), float(h)).x
        nodes = zip(tableau.b, tableau.c, strict=True)
        expected = h * sum(Fraction(b) * (t + Fraction(c) * h) ** power for b, c in nodes)
        np.testing.assert_allclose(got, float(expected), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("key", EMBEDDED)
def test_embedded_error_has_the_order_of_the_embedded_scheme(x64, key):
    """error = h^(q+1) C + ..., so halving h divides it by 2^(q+1)."""
    tableau = SCHEMES[key]
    # Fields and sizes for which the leading term of the error is neither small nor lost in rounding.
    if tableau.order > 3:
        sizes, field = jnp.array([0.02, 0.01, 0.005]), lambda i, t, x: (jnp.exp(-x) * jnp.sin(2 * t + 1), ())
    else:
        sizes, field = jnp.array([0.01, 0.005, 0.0025]), lambda i, t, x: (jnp.sin(3 * x) + jnp.cos(t), ())

    def error(h):
        return rk_step(tableau, field, 0.1, jnp.array(0.4), h, with_error=True).error

    errors = jnp.abs(jax.vmap(error)(sizes))
    slopes = jnp.diff(jnp.log2(errors)) / jnp.diff(jnp.log2(sizes))
    np.testing.assert_allclose(slopes, tableau.embedded_order + 1, atol=0.15)


def test_number_of_propagating_stages():
    got = {key: get_scheme(key).n_evaluations for key in KEYS}
    expected = {key: SCHEMES[key].n_stages - SCHEMES[key].fsal for key in KEYS}
    assert got == expected
    assert (got["bosh3"], got["dopri5"], got["tsit5"], got["fehlberg21"]) == (3, 6, 6, 3)


@pytest.mark.parametrize("with_error", [False, True])
@pytest.mark.parametrize("key", EMBEDDED)
def test_which_stages_are_evaluated_and_whose_reports_are_summed(key, with_error):
    tableau, evaluated = SCHEMES[key], []

    def evaluate(i, t, x):
        evaluated.append(i)
        return -x, {"index": jnp.array(10.0**i)}

    step = rk_step(tableau, evaluate, 0.0, jnp.ones(2), 0.1, with_error=with_error)
    n_stages = tableau.n_stages if with_error else RungeKutta(tableau).n_evaluations
    assert evaluated == list(range(n_stages))
    assert step.nfe == n_stages
    assert step.aux["index"] == sum(10.0**i for i in range(RungeKutta(tableau).n_evaluations))
    assert (step.error is None) == (not with_error)

    first = (-jnp.ones(2), {"index": jnp.array(1.0)})
    again = rk_step(tableau, evaluate, 0.0, jnp.ones(2), 0.1, first=first, with_error=with_error)
    assert again.nfe == n_stages - 1
    np.testing.assert_array_equal(again.x, step.x)
    assert again.aux["index"] == step.aux["index"]


@pytest.mark.parametrize("key", ["bosh3", "dopri5", "tsit5"])
def test_last_stage_of_a_first_same_as_last_pair_is_the_field_at_the_new_state(x64, key):
    field = lambda i, t, x: (jnp.sin(x) * t, ())
    first = field(0, 0.3, jnp.array(0.7))
    step = rk_step(SCHEMES[key], field, 0.3, jnp.array(0.7), 0.2, first=first, with_error=True)
    np.testing.assert_allclose(step.carry.first[0], field(0, 0.3 + 0.2, step.x)[0], rtol=1e-15)


def test_a_stage_at_the_end_of_a_step_sees_exactly_t_plus_h():
    """1.0 * h would do as well, but a node computed as a quotient would not."""
    times = []
    for key in KEYS:
        rk_step(SCHEMES[key], lambda i, t, x: (times.append((i, t)), (x, ()))[1], 0.1, jnp.ones(()), 0.7)
        ends = [t for i, t in times if SCHEMES[key].c[i] == 1]
        assert all(t == 0.1 + 0.7 for t in ends), key
        times.clear()


def test_states_are_pytrees_and_keep_their_dtypes(x64):
    x = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": (jnp.ones(2, jnp.float32), jnp.ones((), jnp.float64))}
    field = lambda i, t, x: (jax.tree.map(jnp.negative, x), ())
    step = rk_step(SCHEMES["dopri5"], field, jnp.float64(0.0), x, jnp.float64(0.1), with_error=True)
    for tree in (step.x, step.error):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(lambda a: (a.shape, a.dtype), x)
    np.testing.assert_allclose(step.x["b"][1], np.exp(-0.1), rtol=1e-8)


def test_slopes_of_zero_weight_are_not_read():
    poisoned = [jnp.full(2, jnp.nan), jnp.ones(2)]
    np.testing.assert_array_equal(combine(jnp.ones(2), 0.5, (Fraction(0), Fraction(2)), poisoned), [2.0, 2.0])
    np.testing.assert_array_equal(combine(jnp.ones(2), 0.5, (0, 0), poisoned), [1.0, 1.0])
    np.testing.assert_array_equal(combine(None, 0.5, (0, 0), poisoned), [0.0, 0.0])
    np.testing.assert_array_equal(combine(None, 0.5, (0, 1), poisoned), [0.5, 0.5])


def test_a_users_own_tableau_steps_like_any_other(x64):
    own = Tableau("own", ((), (Fraction(2, 3),)), (Fraction(1, 4), Fraction(3, 4)), (0, Fraction(2, 3)), 2)
    field = lambda i, t, x: (jnp.cos(x) + t, ())
    got, expected = (rk_step(s, field, 0.1, jnp.array(0.4), 0.3).x for s in (own, SCHEMES["ralston"]))
    assert got == expected


def test_error_of_a_scheme_without_one_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'rk4' has no embedded error weights.*dopri5"):
        rk_step(SCHEMES["rk4"], lambda i, t, x: (x, ()), 0.0, jnp.ones(()), 0.1, with_error=True)


@pytest.mark.parametrize("kind", [get_scheme, Coupled, lambda key: Hyper(key, lambda c, t, x, dx: c * x, 0.0)])
def test_a_hidden_slope_that_is_not_finite_fails_a_step_that_is_taken_by_itself(kind):
    """The second stage of dopri5 has no weight in state and error, and tanh saturates: neither tells of it."""
    scheme = kind("dopri5")

    def slope(node, x):
        return jnp.where(jnp.float32(node[0] / node[1]) == jnp.float32(0.2), jnp.inf, -jnp.tanh(x)), ()

    time = lambda node: node[0] / node[1]
    evaluate = Evaluate(lambda node, x: slope((jnp.asarray(node[0], jnp.float32), node[1]), x), time)
    x, h = scheme.lift(jnp.float32(1.0)), jnp.float32(0.1)
    step = scheme.step(evaluate, x, h, error=True)
    assert jnp.isfinite(step.error)
    assert not step.good
    assert not jnp.isfinite(scheme.advance(evaluate, x, h, error=True)[1])
