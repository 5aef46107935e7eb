"""Crossings: exact where they are promised to be, and only where trajectories cross."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import BasisExpansion, FixedStep, PiecewiseConstant, make_problem, validity
from ode_nets.problems import pendulum


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


def test_a_pair_that_meets_at_a_time_of_the_grid_and_goes_on_has_changed_places():
    t = np.array([0.0, 0.5, 1.0])
    through = np.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0]])
    found = validity.order_changes(through, t)
    assert (found.count, found.places.tolist()) == (1, [[0.5, 0.0]])
    assert validity.order_changes(abs(through), t).count == 0


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
@pytest.mark.parametrize("n_steps", [10, 40])
def test_polygons_that_share_an_orbit_do_not_cross(n_steps):
    start = pendulum.solution(jnp.arange(8) / 8 * pendulum.period())
    problem, solver = make_problem(pendulum.field, start, pendulum.GRAVITY), FixedStep("rk4", n_steps)
    assert validity.crossings(problem, solver).count == 0
    # As bare polygons they do, and the more the finer the steps are.
    assert validity.segment_crossings(validity.trajectories(problem, solver, 8)[0]).count > 50 * n_steps


@pytest.mark.usefixtures("x64")
def test_chord_heights_are_those_of_the_curve_and_none_of_large_steps():
    angle = np.linspace(0, 1, 9)
    circle = 3 * np.stack([np.cos(angle), np.sin(angle)], -1)[None]
    np.testing.assert_allclose(validity.chord_heights(circle), 3 * (1 - np.cos(1 / 16)), rtol=2e-3)
    zigzag = np.array([[[0, 0], [1, 0], [0, 0.1], [1, 0.2], [1, 0.2], [np.nan, 0]]])
    assert (validity.chord_heights(zigzag) == 0).all()
    assert validity.chord_heights(np.zeros((2, 2, 2))).shape == (2, 1)


@pytest.mark.usefixtures("x64")
def test_crossings_of_large_steps_stay_and_those_of_fine_ones_go():
    # A stable spiral, which Euler turns outwards and across itself where its step is large, and not where it is fine.
    field = lambda t, x, k: k * jnp.stack([-x[..., 1] - 0.3 * x[..., 0], x[..., 0] - 0.3 * x[..., 1]], -1)
    problem = make_problem(field, jax.random.normal(jax.random.key(3), (24, 2)), 12.0)
    counts = [validity.crossings(problem, FixedStep("euler", n)).count for n in (8, 16, 64)]
    assert min(counts[:2]) > 100
    assert counts[2] == 0
    polygons = validity.trajectories(problem, FixedStep("euler", 8))[0]
    assert validity.segment_crossings(polygons).count == counts[0]


def test_runaway_polygons_have_no_sides():
    far = np.array([[[1e200, 0], [-1e200, 3]], [[0, -1e200], [3, 1e200]], [[0, 0], [np.inf, 1]]])
    assert validity.segment_crossings(far).count == 1
    assert validity.segment_crossings(far, margin=np.zeros((3, 1))).members.tolist() == [[0, 0, 1, 0]]


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


def test_folds_leave_out_what_costs_too_much_and_what_is_not_finite():
    large = validity.crossings(make_problem(lambda t, x, k: k * x, jnp.ones((1, 50, 50)), 1.0), FixedStep("euler", 2))
    assert (large.test, large.count, large.examined) == ("jacobian", 0, 0)
    assert "states of 2500 numbers" in large.reason
    gone = make_problem(lambda t, x, k: k * x**9, jnp.full((1, 3), 9.0), 1e9)
    found = validity.folds(gone, FixedStep("euler", 8))
    assert (found.count, found.reason) == (0, "")
    assert found.examined < 8


@pytest.mark.usefixtures("x64")
def test_time_dependent_weights_are_read_on_their_grid():
    weights = BasisExpansion(PiecewiseConstant(2), jnp.array([0.0, 3.0]))
    problem = make_problem(lambda t, x, k: -k * x, jnp.array([[1.0, 2.0], [2.0, 1.0]]), weights)
    assert not validity.is_autonomous(problem)
    # Slopes that come back at all quarters of the time.
    hidden = make_problem(lambda t, x, k: k * jnp.round(jnp.sin(8 * jnp.pi * t), 3) * x, jnp.ones((2, 2)), 1.0)
    assert not validity.is_autonomous(hidden)
    found = validity.crossings(problem, FixedStep("euler", 2))
    # The second interval's double factor of 1 - 3/2 keeps the determinant positive at a whole step, not at half.
    assert found.test == "jacobian"
    assert found.count == 0
    states, t = validity.trajectories(problem, FixedStep("euler", 2), substeps=2)
    np.testing.assert_allclose(states[0, :, 0], [1, 1, 1, 0.25, -0.5])
    np.testing.assert_allclose(t, [0, 0.25, 0.5, 0.75, 1])


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"states=<float64\[2, 3\]>: expected .* \[n, n_points, 2\]"):
        validity.segment_crossings(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="margin has shape"):
        validity.segment_crossings(np.zeros((2, 3, 2)), margin=np.zeros(2))
    with pytest.raises(ValueError, match=r"t=<float64\[2\]>: .* n_times=3 as in states=<float64\[2, 3\]>"):
        validity.order_changes(np.zeros((2, 3)), np.zeros(2))
    assert jax.config.jax_enable_x64 is False


def test_sides_are_exact_whatever_the_dtype_of_the_points():
    column = lambda *point, dtype: np.array([point], dtype)
    for dtype, far in (("uint8", 10), ("int32", 60_000), ("int64", 2**33)):
        a, b, c = (column(*p, dtype=dtype) for p in ((far, 0), (0, 0), (far // 2, far // 2)))
        assert validity.orientation(a, b, c).tolist() == [-1]
    points = np.random.default_rng(0).uniform(size=(3, 2000, 2)).astype("float32")
    points[2] = (points[0] + points[1]) / 2
    wide = points.astype("float64")
    np.testing.assert_array_equal(validity.orientation(*points), validity.orientation(*wide))


def test_steps_that_leave_the_finite_numbers_are_not_counted():
    gone = np.array([[0.0, np.nan, 1.0], [1.0, 0.5, 0.0], [2.0, 2.0, 3.0]])
    found = validity.order_changes(gone, np.arange(3.0))
    assert (found.count, found.examined, found.reason) == (0, 2, "")
    nothing = validity.order_changes(np.full((3, 5), np.nan), np.arange(5.0))
    assert (nothing.examined, nothing.reason) == (0, "no step stays in the finite numbers")
    plane = np.array([[[0.0, 0.0], [1.0, 1.0], [np.inf, 0.0]], [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]])
    found = validity.segment_crossings(plane)
    assert (found.count, found.examined) == (1, 3)
    assert validity.segment_crossings(np.full((2, 3, 2), np.nan)).reason
