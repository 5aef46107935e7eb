"""Counts of parameters and of field evaluations, and the Pareto front."""

import numpy as np
import pytest

from ode_nets import remanifest
from ode_nets.integrate import FixedStep


@pytest.mark.parametrize(
    ("scheme", "stages"),
    [("euler", 1), ("midpoint", 2), ("rk4", 4), ("rk4_38", 4), ("bosh3", 3), ("dopri5", 6)],
)
def test_field_evaluations_do_not_count_stages_of_the_error_estimate(scheme, stages):
    assert remanifest.nfe(FixedStep(scheme, 5), n_blocks=3) == 15 * stages


def test_field_evaluations_of_an_implicit_scheme_are_not_known_before():
    diffrax = pytest.importorskip("diffrax")
    from ode_nets.interop.diffrax import DiffraxScheme

    with pytest.raises(ValueError, match="solve and count"):
        remanifest.nfe(FixedStep(DiffraxScheme(diffrax.ImplicitEuler()), 5))


def test_the_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(3)
    points = [(float(c), float(v)) for c, v in rng.integers(0, 12, size=(60, 2))]
    front = remanifest.pareto_front(points)

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    unbeaten = {p for p in points if not any(beats(q, p) for q in points)}
    assert {points[i] for i in front} == unbeaten
    assert len(front) == len(unbeaten)
    costs, values = zip(*(points[i] for i in front), strict=True)
    assert list(costs) == sorted(costs)
    assert list(values) == sorted(values)


def test_the_pareto_front_prefers_the_earlier_of_equals_and_leaves_out_what_is_not_a_number():
    points = [(2.0, 0.5), (2.0, 0.5), (1.0, float("nan")), (3.0, 0.5), (4.0, 0.6)]
    assert remanifest.pareto_front(points) == [0, 4]
    assert remanifest.pareto_front([]) == []


def test_only_what_is_trained_counts_as_a_parameter():
    tree = {"params": {"a": np.ones((2, 3)), "b": np.ones(4)}, "other": np.ones(9)}
    assert remanifest.n_parameters(tree) == 10
