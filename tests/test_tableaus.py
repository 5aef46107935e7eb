"""The catalogue's order conditions, its dense output, and what a wrong tableau is told."""

import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate

from ode_nets.rooted_trees import density, elementary_weights, formula, rooted_trees
from ode_nets.tableaus import SCHEMES, Tableau, get_tableau

KEYS = tuple(SCHEMES)
EXACT = tuple(key for key in KEYS if key != "tsit5")


def weight(weights, a, tree):
    return sum(w * phi for w, phi in zip(weights, elementary_weights(a, tree), strict=True))


def dense_weights(tableau, s):
    return [sum(c * s ** (j + 1) for j, c in enumerate(row)) for row in tableau.b_dense]


def test_catalogue_holds_the_promised_schemes():
    properties = {k: (t.n_stages, t.order, t.embedded_order, t.fsal, t.dense_order) for k, t in SCHEMES.items()}
    assert properties == {
        "euler": (1, 1, None, False, 1),
        "midpoint": (2, 2, None, False, 2),
        "heun": (2, 2, None, False, 2),
        "rk2": (2, 2, None, False, 2),
        "heun_euler": (2, 2, 1, False, 2),
        "ralston": (2, 2, None, False, 2),
        "fehlberg21": (3, 2, 1, False, 2),
        "rk4": (4, 4, None, False, 3),
        "rk4_38": (4, 4, None, False, 3),
        "bosh3": (4, 3, 2, True, 3),
        "dopri5": (7, 5, 4, True, 4),
        "tsit5": (7, 5, 4, True, 4),
    }


def test_rooted_trees_are_counted_by_the_known_sequence():
    assert [len(set(rooted_trees(n))) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


def test_tree_densities_and_formulas_of_order_four():
    conditions = {formula(tree): density(tree) for tree in rooted_trees(4)}
    assert conditions == {
        "sum_i b_i c_i^3": 4,
        "sum_ij b_i c_i a_ij c_j": 8,
        "sum_ij b_i a_ij c_j^2": 12,
        "sum_ijk b_i a_ij a_jk c_k": 24,
    }


@pytest.mark.parametrize("key", EXACT)
def test_quadrature_conditions_hold_in_exact_fractions(key):
    """The bushy trees, written out without the tree machinery: sum_i b_i c_i^(q-1) = 1/q."""
    tableau = SCHEMES[key]
    for q in range(1, tableau.order + 1):
        assert sum(b * c ** (q - 1) for b, c in zip(tableau.b, tableau.c, strict=True)) == Fraction(1, q)
    if tableau.b_error is not None:
        embedded = [x - y for x, y in zip(tableau.b, tableau.b_error, strict=True)]
        for q in range(1, tableau.embedded_order + 1):
            assert sum(b * c ** (q - 1) for b, c in zip(embedded, tableau.c, strict=True)) == Fraction(1, q)


@pytest.mark.parametrize("key", KEYS)
def test_declared_orders_are_the_highest_ones(key):
    """One order more and the tableau is refused, for the solution and for the embedded weights."""
    tableau = SCHEMES[key]
    with pytest.raises(ValueError, match=f"claims order {tableau.order + 1} but fails the order-{tableau.order + 1}"):
        dataclasses.replace(tableau, order=tableau.order + 1)
    if tableau.embedded_order is not None:
        above = tableau.embedded_order + 1
        with pytest.raises(ValueError, match=f"claims embedded order {above} but fails .* bhat_i"):
            dataclasses.replace(tableau, embedded_order=above)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("s", [Fraction(1, 7), Fraction(1, 2), Fraction(5, 6)])
def test_dense_output_meets_the_order_conditions_inside_the_step(key, s):
    tableau = SCHEMES[key]
    weights = dense_weights(tableau, s)
    for q in range(1, tableau.dense_order + 1):
        for tree in rooted_trees(q):
            got, expected = weight(weights, tableau.a, tree), s**q / density(tree)
            assert got == expected if key in EXACT else abs(got - expected) < 2e-14


@pytest.mark.parametrize("key", KEYS)
def test_dense_output_ends_at_the_step(key):
    tableau = SCHEMES[key]
    np.testing.assert_allclose(
        np.array(dense_weights(tableau, Fraction(1)), float), np.array(tableau.b, float), rtol=0, atol=2e-14
    )


@pytest.mark.parametrize("key", ["bosh3", "dopri5", "tsit5"])
def test_dense_output_of_fsal_schemes_has_the_derivatives_of_both_ends(key):
    """d/ds b_i(0) selects the first stage and d/ds b_i(1) the last: the output is C1 across steps."""
    tableau = SCHEMES[key]
    start = [float(row[0]) for row in tableau.b_dense]
    end = [float(sum((j + 1) * c for j, c in enumerate(row))) for row in tableau.b_dense]
    np.testing.assert_allclose(start, np.eye(tableau.n_stages)[0], atol=1e-13)
    np.testing.assert_allclose(end, np.eye(tableau.n_stages)[-1], atol=1e-13)


@pytest.mark.parametrize(("key", "peer"), [("dopri5", scipy.integrate.RK45), ("bosh3", scipy.integrate.RK23)])
def test_fsal_schemes_and_their_dense_output_agree_with_scipy(key, peer):
    tableau = SCHEMES[key]
    np.testing.assert_allclose(np.array(tableau.b[:-1], float), peer.B, rtol=1e-15)
    np.testing.assert_allclose(-np.array(tableau.b_error, float), peer.E, rtol=1e-14)
    np.testing.assert_allclose(np.array(tableau.b_dense, float)[:, : peer.P.shape[1]], peer.P, rtol=1e-13)


def test_known_solution_is_reached_at_the_declared_order():
    """One step of x' = x has the exponential series up to h^order: an identity in fractions."""
    for key in EXACT:
        tableau = SCHEMES[key]
        h, stages = Fraction(1, 3), []
        for row in tableau.a:
            stages.append(1 + h * sum((x * k for x, k in zip(row, stages, strict=True)), Fraction(0)))
        x = 1 + h * sum(b * k for b, k in zip(tableau.b, stages, strict=True))
        series = sum(h**q / math.factorial(q) for q in range(tableau.order + 1))
        assert abs(x - series) <= (h ** (tableau.order + 1) / 100 if tableau.n_stages > tableau.order else 0)


def test_get_tableau_takes_keys_and_tableaus():
    tableau = SCHEMES["rk4"]
    assert get_tableau("rk4") is tableau
    assert get_tableau(tableau) is tableau
    assert get_tableau("rk2") is get_tableau("heun")
    with pytest.raises(ValueError, match=r"one of bosh3, dopri5, euler, .*; got 'rk5'"):
        get_tableau("rk5")


def test_tableaus_are_hashable_equal_by_value_and_survive_pickling():
    rk4 = SCHEMES["rk4"]
    again = Tableau("rk4", [list(row) for row in rk4.a], list(rk4.b), list(rk4.c), 4, b_dense=rk4.b_dense)
    assert again == rk4
    assert hash(again) == hash(rk4)
    assert pickle.loads(pickle.dumps(rk4)) == rk4
    assert {rk4: 1}[pickle.loads(pickle.dumps(rk4))] == 1
    assert len({SCHEMES[key] for key in KEYS}) == len(KEYS) - 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        rk4.order = 3


HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a": ((), (HALF,)), "b": (0, 1), "c": (0, HALF), "order": 3},
            r"tableau 'mine' claims order 3 but fails the order-3 condition sum_ij b_i a_ij c_j = 1/6: got 0",
        ),
        ({"b": (HALF, Fraction(1, 3))}, r"fails the order-1 condition sum_i b_i = 1: got 5/6"),
        ({"c": (0, HALF)}, r"fails the row-sum condition c_1 = sum_j a_1j: got c_1 = 1/2, sum_j a_1j = 1"),
        (
            {"b": (Fraction(1, 4), Fraction(3, 4))},
            r"fails the order-2 condition sum_i b_i c_i = 1/2: got 3/4",
        ),
        ({"a": ((), (1, 0))}, r"a must be strictly lower triangular, row 1 holding the 1 entries .* got 2"),
        ({"a": ((0,), (1,))}, r"strictly lower triangular, row 0 holding the 0 entries .* got 1"),
        ({"c": (0, 1, 1)}, r"c must have one entry a stage, 2 as b, got 3"),
        ({"b_error": (HALF,), "embedded_order": 1}, r"b_error must have one entry a stage, 2 as b, got 1"),
        ({"b_error": (HALF, HALF)}, r"b_error and embedded_order belong together"),
        ({"b_error": (HALF, HALF), "embedded_order": 1}, r"fails sum_i b_error_i = 0 .*: got 1"),
        ({"b_error": (0 * HALF, 0 * HALF), "embedded_order": 1}, r"b_error is zero, so no step would ever be rejected"),
        (
            {"b_error": (-HALF, HALF), "embedded_order": 2},
            r"claims embedded order 2 but fails the order-2 condition sum_i bhat_i c_i = 1/2: got 0",
        ),
        ({"order": 0}, r"order must be at least 1, got 0"),
        ({"b_dense": ((HALF,), (Fraction(1, 3),))}, r"fails b_dense_1\(1\) = b_1 = 1/2: got 1/3"),
        ({"b_dense": ((0, HALF), (HALF,))}, r"fails sum_i b_dense_i\(s\) = s: got an excess -1/2 s\^1"),
        ({"b": (0.5, float("nan"))}, r"b=\(0.5, nan\): expected several, each a Fraction or a number"),
    ],
)
def test_wrong_tableaus_are_refused_with_the_failed_condition(changes, message):
    heun = {"a": ((), (1,)), "b": (HALF, HALF), "c": (0, 1), "order": 2}
    with pytest.raises(ValueError, match=message):
        Tableau("mine", **(heun | changes))


def test_bushy_tree_is_named_when_it_alone_fails():
    """Three stages that meet every condition of order 3 but sum_i b_i c_i^2 = 1/3."""
    with pytest.raises(ValueError, match=r"claims order 3 but fails .* sum_i b_i c_i\^2 = 1/3: got 1/4"):
        Tableau("mine", ((), (HALF,), (HALF - Fraction(1, 3), Fraction(1, 3))), (0, 0, 1), (0, HALF, HALF), 3)


def test_float_tableaus_are_held_to_rounding():
    heun = {"name": "mine", "a": ((), (1.0,)), "c": (0.0, 1.0), "order": 2}
    assert Tableau(b=(0.5, 0.5 + 1e-14), **heun).order == 2
    with pytest.raises(ValueError, match="order-1 condition"):
        Tableau(b=(0.5, 0.5 + 1e-10), **heun)
