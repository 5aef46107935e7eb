"""Theorem 3.2 of ACA at a small size: orders of errors in the step and in the tolerance, within stated margins."""

from __future__ import annotations

import jax
import pytest

from experiments.aca import gradient_order
from experiments.aca.gradient_order import Options, fitted
from ode_nets import SCHEMES


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fixed": ("rk9",)}, r"fixed=\('rk9',\): expected some of"),
        ({"adaptive": ("rk4",)}, "expected some of"),
        ({"n_steps": (8, 4)}, "expected rising numbers"),
        ({"rates": (0.0,)}, "expected numbers above 0"),
        ({"decades": (3, 2)}, "that do not fall"),
        ({"starts": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        Options(**changes)


def test_a_slope_is_fitted_where_errors_are_small_and_true():
    tolerances = [10.0**-k for k in range(1, 10)]
    # A useless one, one that is missing, six on a line of order 1 and one below the floor.
    line = fitted(tolerances, [5.0, None, *(2 * t for t in tolerances[2:8]), 1e-14], floor=1e-13)
    assert line["slope"] == pytest.approx(1)
    assert (line["n_points"], line["from"]) == (6, tolerances[2])
    assert line["factor"] == pytest.approx(1)
    assert fitted(tolerances[:4], tolerances[:4], 0.0)["slope"] is None
    scattered = [1e-2, 1e-6] * 4
    assert fitted(tolerances[:8], scattered, 0.0)["slope"] is None


@pytest.mark.slow
def test_orders_in_the_step_are_those_of_the_schemes_and_of_the_return():
    options = Options(fixed=("euler", "midpoint", "bosh3", "rk4"), n_steps=(64, 96, 128, 192, 256), starts=3)
    with jax.enable_x64(True):
        orders = gradient_order.orders_in_h(gradient_order.equal_steps(options))
    for row in orders:
        p = SCHEMES[row["scheme"]].order
        assert row["p"] == p
        for name in ("state", "ACA", "Backsolve"):
            assert row[name] == pytest.approx(p, abs=0.25), (row["scheme"], name)
        # Eq. 16 says p; an even order cancels on the way back.
        assert row["returned"] == pytest.approx(p + 1 - p % 2, abs=0.25), row["scheme"]


@pytest.mark.slow
def test_stiff_decay_takes_the_order_in_the_tolerance_from_the_adjoint_alone():
    options = Options(adaptive=("dopri5",), rates=(1.0, 40.0), decades=(4, 8), starts=3)
    with jax.enable_x64(True):
        orders = gradient_order.orders_in_tolerance(gradient_order.by_tolerance(options))
    slopes = {(row["rate"], row["method"]): row["slope"] for row in orders}
    for rate in options.rates:
        assert slopes[rate, "ACA"] == pytest.approx(1, abs=0.25)
    assert slopes[1.0, "Backsolve"] == pytest.approx(1, abs=0.25)
    assert slopes[40.0, "Backsolve"] is None
