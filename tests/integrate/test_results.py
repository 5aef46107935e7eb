"""How a solve that failed says so: by a code inside jit, by its name in print, by an error where it is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ode_nets import Adaptive, FixedStep, Result, solve
from ode_nets.integrate.solution import REMEDIES

BLOWS_UP = Adaptive("heun_euler", max_steps=5)


def growth(t, x, k):
    return k * x


def test_every_failure_has_a_remedy():
    assert set(REMEDIES) == set(Result) - {Result.SUCCESS}


def test_a_solution_prints_the_name_of_its_result():
    assert repr(solve(growth, 1.0, 1.0, solver=FixedStep("euler", 2))).endswith("result=SUCCESS)")
    failed = solve(growth, jnp.ones(3), 9.0, solver=BLOWS_UP)
    counts = f"nfe={failed.nfe}, n_accepted={failed.n_accepted}, n_rejected={failed.n_rejected}"
    assert repr(failed) == f"Solution(x=float32[3], {counts}, result=MAX_STEPS)"


def test_a_failure_raises_with_its_name_and_its_remedy_where_it_is_asked_for():
    solve(growth, 1.0, 1.0, solver=FixedStep("euler", 2), throw=True)
    with pytest.raises(RuntimeError, match=r"MAX_STEPS after . steps, .* raise max_steps"):
        solve(growth, jnp.ones(3), 9.0, solver=BLOWS_UP, throw=True)
    with pytest.raises(RuntimeError, match=r"NON_FINITE .* look at x0"):
        solve(growth, jnp.inf, 1.0, solver=FixedStep("euler", 2)).raise_for_result()


def test_lanes_that_failed_are_counted():
    rates = jnp.array([1e-3, 9.0, 9.0])
    solutions = jax.vmap(lambda k: solve(growth, 1.0, k, solver=BLOWS_UP))(rates)
    assert repr(solutions).endswith("result=SUCCESS*1 MAX_STEPS*2)")
    with pytest.raises(RuntimeError, match="MAX_STEPS in 2 of 3 lanes"):
        solutions.raise_for_result()


def test_nothing_raises_inside_jit():
    """Whatever is asked for: the code comes out."""
    printed: list[str] = []

    def run(k):
        solution = solve(growth, jnp.ones(3), k, solver=BLOWS_UP, throw=True)
        printed.append(repr(solution))
        return solution

    assert int(jax.jit(run)(9.0).result) == Result.MAX_STEPS
    assert "result=() traced" in printed[0]
    assert jnp.isnan(jax.jit(jax.grad(lambda k: jnp.sum(run(k).x)))(9.0))
