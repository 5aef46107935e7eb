"""Crossings: exact where they are promised to be, and only where trajectories cross."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import BasisExpansion, FixedStep, PiecewiseConstant, make_problem, validity


def test_orientation_is_exact_where_rounding_is_not():
    # Points one unit in the last place away from a line, where products of doubles cancel.
    base = np.array([0.5, 0.5]) + np.array([[i, j] for i in range(16) for j in range(16)]) * 2.0**-53
    b, c = np.array([[12.0, 12.0]] * 256), np.array([[24.0, 24.0]] * 256)
    signs = validity.orientation(base, b, c)
    for point, sign in zip(base, signs, strict=True):
        x, y = map(Fraction, map(float, point))
        exact = (x - 24) * (12 - 24) - (y - 24) * (12 - 24)
        assert sign == (exact > 0) - (exact < 0)


def test_segments_cross_inside_both_and_nowhere_else():
    cross = np.array([[[0, 0], [2, 2]], [[0, 2], [2, 0]]], float)
    found = validity.segment_crossings(cross)
    assert found.count == 1
    np.testing.assert_allclose(found.places, [[1, 1]])
    assert found.members.tolist() == [[0, 0, 1, 0]]
    touching = np.array([[[0, 0], [2, 2]], [[1, 1], [3, 0]], [[5, 0], [5, 1]]], float)
    overlapping = np.array([[[0, 0], [2, 0]], [[1, 0], [3, 0]]], float)
    same_start = np.array([[[0, 0], [1, 2]], [[0, 0], [2, 1]]], float)
    not_finite = np.array([[[0, 0], [np.nan, 2]], [[0, 2], [2, 0]]], float)
    for states in (touching, overlapping, same_start, not_finite, np.zeros((3, 4, 2))):
        assert validity.segment_crossings(states).count == 0
    loop = np.array([[[0, 0], [2, 0], [1, 1], [1, -1]]], float)
    assert validity.segment_crossings(loop).count == 1


def test_all_pairs_of_steps_are_found_as_fractions_find_them():
    states = np.random.default_rng(0).integers(0, 7, (5, 41, 2)).astype(float)

    def side(a, b, c):
        value = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        return int(np.sign(value))

    steps = [(n, k, states[n, k], states[n, k + 1]) for n in range(5) for k in range(40)]
    expected = [
        [n, k, m, j]
        for i, (n, k, a, b) in enumerate(steps)
        for m, j, c, d in steps[i + 1 :]
        if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
    ]
    assert len(expected) > 500
    found = validity.segment_crossings(states)
    assert found.members.tolist() == expected
    assert found.examined == len(steps) * (len(steps) - 1) // 2


def test_a_margin_sets_aside_what_rounding_decides():
    near = np.array([[[0, 0], [2, 2e-7]], [[0, 1e-7], [2, -1e-7]], [[1, -1], [1, 1]]])
    assert validity.segment_crossings(near).count == 3
    assert validity.segment_crossings(near, margin=1e-6).members.tolist() == [[0, 0, 2, 0], [1, 0, 2, 0]]
    pair = np.array([[0.0, 1e-7], [1e-7, 0.0]])
    assert validity.order_changes(pair, np.array([0.0, 1.0])).count == 1
    assert validity.order_changes(pair, np.array([0.0, 1.0]), margin=1e-6).count == 0
    # An attractor merges these to within rounding, where their order is left to chance.
    merging = make_problem(lambda t, x, k: -k * (x - 1) - x, jnp.linspace(0.0, 2.0, 16)[:, None], 20.0)
    assert validity.crossings(merging, FixedStep("euler", 32)).count == 0


def test_order_changes_are_places_in_time():
    states = np.array([[0.0, 1, 1], [1.0, 0, 1], [5.0, 5, 5]])
    found = validity.order_changes(states, np.array([0.0, 0.5, 1.0]))
    assert (found.count, found.examined) == (1, 6)
    np.testing.assert_allclose(found.places, [[0.25, 0.5]])


@pytest.mark.usefixtures("x64")
def test_euler_crosses_where_its_step_is_too_large_and_nowhere_else():
    # x' = -x: a step of Euler turns the line around where h > 1.
    line = make_problem(lambda t, x, k: -k * x, jnp.array([[1.0], [2.0]]), 1.5)
    assert validity.crossings(line, FixedStep("euler", 1)).count == 1
    assert validity.crossings(line, FixedStep("euler", 2)).count == 0
    assert validity.crossings(line, FixedStep("rk4", 1)).count == 0
    # A rotation by one radian a step: (1, 1) to (0, 2) meets (0.9, 1.2) to (-0.3, 2.1) in (0.5, 1.5).
    turn = lambda t, x, k: k * jnp.stack([-x[..., 1], x[..., 0]], -1)
    plane = make_problem(turn, jnp.array([[1.0, 0.0], [0.9, 1.2]]), 2.0)
    coarse, fine = (validity.crossings(plane, FixedStep("euler", n)) for n in (2, 200))
    assert (coarse.test, coarse.count, fine.count) == ("segments", 1, 0)
    np.testing.assert_allclose(coarse.places, [[0.5, 1.5]])
    assert coarse.members.tolist() == [[0, 1, 1, 0]]


@pytest.mark.usefixtures("x64")
def test_folds_are_negative_determinants_in_any_dimension():
    slopes = jnp.array([1.0, 0.5, 3.0])
    problem = make_problem(lambda t, x, k: -k * x, jnp.ones((2, 3)), slopes)
    # det(I - h diag(k)): one factor is negative for 1/3 < h < 1, none below.
    for n, expected in ((2, True), (4, False)):
        found = validity.crossings(problem, FixedStep("euler", n))
        assert found.test == "jacobian"
        assert (found.count > 0) == expected
    assert validity.folds(problem, FixedStep("rk4", 2)).count == 0


@pytest.mark.usefixtures("x64")
def test_time_dependent_weights_are_read_on_their_grid():
    weights = BasisExpansion(PiecewiseConstant(2), jnp.array([0.0, 3.0]))
    problem = make_problem(lambda t, x, k: -k * x, jnp.array([[1.0, 2.0], [2.0, 1.0]]), weights)
    assert not validity.is_autonomous(problem)
    found = validity.crossings(problem, FixedStep("euler", 2))
    # The second interval's double factor of 1 - 3/2 keeps the determinant positive at a whole step, not at half.
    assert found.test == "jacobian"
    assert found.count == 0
    states, t = validity.trajectories(problem, FixedStep("euler", 2), substeps=2)
    np.testing.assert_allclose(states[0, :, 0], [1, 1, 1, 0.25, -0.5])
    np.testing.assert_allclose(t, [0, 0.25, 0.5, 0.75, 1])


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="states have shape"):
        validity.segment_crossings(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="states have shape"):
        validity.order_changes(np.zeros((2, 3)), np.zeros(2))
    assert jax.config.jax_enable_x64 is False
