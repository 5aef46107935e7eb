"""A manifestation as a key: what it is made of, what it says of itself, and what it refuses."""

import numpy as np
import pytest

from ode_nets import Adaptive, FixedStep
from ode_nets.remanifest import Manifestation


def test_a_manifestation_is_a_key_with_a_name():
    uniform, adaptive = Manifestation("rk4", 4), Manifestation("dopri5", 7, rtol=1e-3)
    assert {uniform: 1, adaptive: 2}[Manifestation.of(FixedStep("rk4", 4))] == 1
    solver = Adaptive("dopri5", rtol=1e-3, atol=1e-6)
    assert Manifestation.of(solver, 7) == adaptive != Manifestation.of(solver)
    assert [at.adaptive for at in (uniform, adaptive)] == [False, True]
    assert (uniform.counted, Manifestation.of(solver).counted) == (4, 0)
    assert [str(at) for at in (uniform, adaptive)] == ["rk4 with 4 steps", "dopri5 with 7 steps at rtol 0.001"]
    assert str(Manifestation.of(solver)) == "dopri5 at rtol 0.001"
    assert str(Manifestation("euler", 1)) == "euler with 1 step"
    for at in (uniform, adaptive, Manifestation.of(solver)):
        assert eval(repr(at)) == at


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("rk4",), "n_steps and rtol are both None"),
        (("rk4", 0), "n_steps=0: expected an integer of at least 1"),
        (("rk4", 2.0), "n_steps=2.0"),
        (("rk4", True), "n_steps=True"),
        (("dopri5", 4, 0.0), "rtol=0.0: expected a finite number above 0"),
        (("dopri5", 4, float("nan")), "rtol=nan"),
        (("", 4), "scheme='': expected a name"),
        ((4, 4), "scheme=4"),
    ],
)
def test_what_is_no_manifestation_is_refused_by_name(given, match):
    with pytest.raises(ValueError, match=match):
        Manifestation(*given)


def test_a_solver_that_no_key_stands_for_is_refused_by_name():
    with pytest.raises(ValueError, match=r"rtol=<float64\[2\]>: expected one number"):
        Manifestation.of(Adaptive("dopri5", rtol=np.array([1e-3, 1e-4])))
    with pytest.raises(ValueError, match="solver='rk4': expected a FixedStep or an Adaptive"):
        Manifestation.of("rk4")
