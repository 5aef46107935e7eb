"""Every scheme on every grid under every gradient method: one gradient, or a refusal that names what works."""

import dataclasses
from functools import cache
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from benchmarks import exchange
from benchmarks.exchange import GRIDS, METHODS, SCHEMES
from ode_nets import ACA, Adaptive, Backsolve, Direct, FixedStep, Recorded, get_scheme, pad, solve, solve_until
from ode_nets.interop.diffrax import DiffraxSolver

# The continuous adjoint is compared where steps are small: it differs from the discrete one by what they are off.
FINE = {
    "uniform": lambda scheme: FixedStep(scheme, 48),
    "traced": lambda scheme: FixedStep(scheme, jnp.int32(48), 50),
    "adaptive": lambda scheme: Adaptive(scheme, 1e-7, 1e-7, max_steps=400),
    "recorded": lambda scheme: Recorded.at(get_scheme(scheme), 1.3 * jnp.linspace(0, 1, 51)[1:] ** 0.8, 50),
}
QUICK = {
    ("static", "uniform"),
    ("static", "traced"),
    ("static", "adaptive"),
    ("arrays", "uniform"),
    ("arrays", "traced"),
    ("explicit of diffrax", "uniform"),
    ("explicit of diffrax", "adaptive"),
    ("implicit of diffrax", "uniform"),
}
QUICK_METHODS = {("reversible", "adaptive"): ("reversible", "naive"), ("static", "recorded"): ("by step", "aca, 3")}


def is_slow(scheme, grid, method):
    refused = refusal(SCHEMES[scheme], grid, method)
    return not (refused or (scheme, grid) in QUICK or method in QUICK_METHODS.get((scheme, grid), ()))


def refusal(scheme, grid, method):
    """What the refusal of a method says, where it is refused."""
    if method == "reversible" and not get_scheme(scheme).inverts:
        return "its steps cannot be undone; use a reversible scheme"
    if method == "naive" and grid != "adaptive":
        return r"there is no search to differentiate; use Adaptive\(scheme, rtol, atol\)"
    return None


def gradient(scheme, grid, method, grids=GRIDS):
    """With respect to state, weights, what the field closes over and both ends of time."""

    loss = exchange.loss(grids[grid](scheme), method)
    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True))
    (_, solution), found = run(*exchange.INPUTS)
    assert int(solution.result) == 0
    return solution, found


@cache
def reference(scheme, grid):
    return gradient(SCHEMES[scheme], grid, Direct())


CASES = [
    pytest.param(scheme, grid, method, marks=[pytest.mark.slow] if is_slow(scheme, grid, method) else [])
    for scheme in SCHEMES
    for grid in GRIDS
    for method in list(METHODS)[1:]
    if scheme != "arrays" or grid in ("uniform", "traced")
]


@pytest.mark.parametrize(("scheme", "grid", "method"), CASES)
def test_all_schemes_grids_and_gradient_methods_agree(x64, scheme, grid, method):
    refused, said = refusal(SCHEMES[scheme], grid, method), exchange.refusal(scheme, grid, method)
    assert bool(refused) == bool(said)
    if refused:
        with pytest.raises(ValueError, match=refused) as raised:
            gradient(SCHEMES[scheme], grid, METHODS[method])
        assert str(raised.value) == said
        return
    # Derivatives in time are small rests of large ones: one input.
    together = lambda g: (*g[:3], jnp.stack(g[3:]))
    if method == "backsolve":
        _, found = gradient(SCHEMES[scheme], grid, METHODS[method], FINE)
        _, expected = gradient(SCHEMES[scheme], grid, ACA(None), FINE)
        assert_agree(together(found), together(expected), 1e-4)
        return
    solution, found = gradient(SCHEMES[scheme], grid, METHODS[method])
    expected_solution, expected = reference(scheme, grid)
    np.testing.assert_allclose(solution.x, expected_solution.x, rtol=1e-12 if method == "naive" else 1e-13)
    assert int(solution.n_accepted) == int(expected_solution.n_accepted)
    if method == "naive":
        # The same value, and the derivative of the search beside that of the steps.
        differ = [np.max(np.abs(a - b)) for a, b in zip(together(found), together(expected), strict=True)]
        assert max(differ) > 1e-6
        return
    assert_agree(together(found), together(expected), 1e-10)


def test_the_page_on_how_it_works_has_the_table_of_what_is_refused():
    page = (Path(__file__).parents[2] / "docs" / "how.md").read_text()
    rows, reasons = exchange.table()
    assert "\n".join(f"| {' | '.join(row)} |" for row in rows) in page
    for reason in reasons:
        assert f"- {reason}\n" in page


def test_a_scheme_without_an_error_estimate_is_refused_on_an_adaptive_grid():
    with pytest.raises(ValueError, match=r"scheme 'traced' has no error estimate; use heun_euler.*or FixedStep"):
        GRIDS["adaptive"](SCHEMES["arrays"])


def test_what_cannot_work_is_refused_with_the_alternatives():
    with pytest.raises(ValueError, match=r"dense=True with gradient=Backsolve\(\).*use gradient=ACA\(\), Direct\(\)"):
        solve(lambda t, x, w: -x, 1.0, solver=FixedStep("rk4", 2), gradient=Backsolve(), dense=True)
    with pytest.raises(ValueError, match="dense=True: scheme 'traced' has no interpolant"):
        solve(lambda t, x, w: -x, 1.0, solver=pad(FixedStep("rk4", 2), 4), dense=True)
    for wrong in (pad(FixedStep("euler", 1), 1), Adaptive("dopri5")):
        with pytest.raises(ValueError, match=r"gradient=.*expected Direct"):
            solve(lambda t, x, w: -x, 1.0, solver=FixedStep("rk4", 2), gradient=wrong)
    with pytest.raises(ValueError, match=r"solver=ACA.*expected FixedStep"):
        solve(lambda t, x, w: -x, 1.0, solver=ACA(), gradient=Direct())


def test_a_method_of_ones_own_says_what_it_refuses_and_is_asked_before_anything_runs():
    class Picky(Own):
        def refuses(self, solver, dense):
            return f"gradient=Picky() with dense={dense} and {solver!r}: not that" if solver.recorded else None

        def run(self, problem, solver, dense=False):
            assert not solver.recorded
            return super().run(problem, solver, dense)

    field = lambda t, x, w: -x
    assert np.isfinite(solve(field, 1.0, solver=Adaptive("bosh3", max_steps=30), gradient=Picky()).x)
    with pytest.raises(ValueError, match=r"Picky\(\) with dense=False and FixedStep\(rk4, 2\): not that"):
        solve(field, 1.0, solver=FixedStep("rk4", 2), gradient=Picky())
    with pytest.raises(ValueError, match="not that"):
        solve_until(field, 1.0, solver=FixedStep("rk4", 2), gradient=Picky(), event=lambda t, x: x - 0.5)
    # Steps that diffrax has found are known, too; nothing has been searched for yet.
    with pytest.raises(ValueError, match=r"Recorded\(DiffraxScheme\(Tsit5\), <at most 7 steps>\): not that"):
        solve(field, 1.0, solver=DiffraxSolver(diffrax.Tsit5(), dt0=0.5, max_steps=7), gradient=Picky())


class Own:
    """A gradient method of a user's own: the value, and twice the gradient."""

    def run(self, problem, solver, dense=False):
        solution = Direct().run(problem, solver)
        twice = jax.tree.map(lambda x: 2 * x - jax.lax.stop_gradient(x), solution.x)
        return dataclasses.replace(solution, x=twice)


@pytest.mark.parametrize("solver", [FixedStep("rk4", 3), Adaptive("bosh3", max_steps=30)], ids=repr)
def test_a_method_of_ones_own_works_with_every_solver(x64, solver):
    run = lambda method: jax.grad(lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=solver, gradient=method).x)
    np.testing.assert_allclose(run(Own())(0.7), 2 * run(Direct())(0.7), rtol=1e-12)


def test_the_gradient_of_a_traced_number_of_steps_is_that_of_its_method(x64):
    """x' = -k x, two Euler steps: the discrete derivative is -0.5, the continuous adjoint's another."""
    run = lambda n, method: jax.grad(
        lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=FixedStep("euler", n), gradient=method).x
    )(1.0)
    assert run(2, Direct()) == run(jnp.int32(2), ACA()) == -0.5
    np.testing.assert_allclose(run(jnp.int32(2), Backsolve()), run(2, Backsolve()), rtol=1e-12)
    assert abs(run(2, Backsolve()) + 0.5) > 0.1
