"""A solver of diffrax solves our problems, under every gradient method of ours."""

import dataclasses
import functools
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import relative
from ode_nets import (
    ACA,
    Adaptive,
    Backsolve,
    BasisExpansion,
    Checkpointed,
    Direct,
    FixedStep,
    OdeBlock,
    PiecewiseConstant,
    Result,
    get_tableau,
    solve,
)
from ode_nets.fields import ResidualUnit
from ode_nets.interop.diffrax import AdaptiveCheckpointAdjoint, DiffraxSolver

PID = diffrax.PIDController(rtol=1e-3, atol=1e-4)
HEUN = DiffraxSolver(diffrax.Heun(), dt0=0.25)


def tanh_field(t, x, theta):
    dx = jnp.tanh(theta["w"] @ x["p"]) + jnp.sin(3 * t) * theta["w"][0]
    return {"p": dx}, {"mean": jnp.sum(theta["w"] * t * x["p"]), "count": jnp.ones((), int)}


THETA = {"w": np.array([[0.5, -1.0], [2.0, 0.3]]), "k": np.array(2)}
X0 = {"p": np.array([1.0, -0.5])}
WEIGHTS = np.array([1.0, 2.0])
TS = (0.0, -0.4, -1.0)


def of_problem(method, scheme, t1=1.5, ts=None, has_aux=True):
    def loss(x0, theta):
        f = tanh_field if has_aux else lambda *a: tanh_field(*a)[0]
        asked = None if ts is None else jnp.array(ts)
        s = solve(f, x0, theta, solver=scheme, gradient=method, t1=t1, ts=asked, has_aux=has_aux)
        return jnp.sum(WEIGHTS * s.x["p"] ** 2) + (0.1 * s.aux["mean"] if has_aux else 0), s

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True))(X0, THETA)


@functools.cache
def ours():
    return of_problem(ACA(), Adaptive("tsit5", rtol=1e-9, atol=1e-11, max_steps=200), -1.0, TS, has_aux=False)


@pytest.mark.parametrize("method", [ACA(4), Direct(), Checkpointed(), Backsolve(), Backsolve(rtol=1e-8)], ids=str)
def test_solves_agree_with_ours(x64, method):
    controller = diffrax.PIDController(rtol=1e-7, atol=1e-9)
    scheme = DiffraxSolver(diffrax.Tsit5(), controller, dt0=1.0, max_steps=100)
    (value, s), grads = of_problem(method, scheme, -1.0, TS, has_aux=False)
    (expected, _), expected_grads = ours()
    assert (s.result, s.aux) == (Result.SUCCESS, ())
    assert s.n_rejected > 0
    assert abs(value / expected - 1) < 1e-6
    assert relative(grads, expected_grads) < 1e-5
    assert s.x["p"].shape == (3, 2)


def test_reports_and_their_gradients_are_those_of_the_same_grid(x64):
    scheme = DiffraxSolver(diffrax.Midpoint(), dt0=0.125)
    for t1 in (1.5, -1.5):
        (value, s), grads = of_problem(ACA(3), scheme, t1)
        (expected, ours), expected_grads = of_problem(Direct(), FixedStep("midpoint", 12), t1)
        assert abs(value / expected - 1) < 1e-12
        assert relative(grads, expected_grads) < 1e-12
        assert relative(s.aux, ours.aux) < 1e-12
        assert (s.nfe, s.n_accepted, s.n_rejected) == (ours.nfe, 12, 0)


@pytest.mark.parametrize(
    ("scheme", "controller", "dt0"),
    [
        (diffrax.Dopri5(), PID, None),
        (diffrax.Heun(), PID, 3.0),
        (diffrax.Tsit5(), PID, 1e-3),
        (diffrax.Euler(), diffrax.ConstantStepSize(), 0.5),
        (diffrax.Bosh3(), diffrax.StepTo([0.0, 0.25, 3.0]), None),
        (diffrax.Kvaerno3(), PID, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_evaluations_are_counted_or_unknown(x64, scheme, controller, dt0):
    count = [0]

    def counted(t, x, theta):
        jax.debug.callback(lambda: count.__setitem__(0, count[0] + 1))
        return jnp.sin(5 * x) * theta

    foreign = DiffraxSolver(scheme, controller, dt0)
    s = jax.jit(lambda: solve(counted, jnp.ones(2), 2.0, solver=foreign, gradient=Checkpointed(), t1=3.0))()
    jax.effects_barrier()
    assert s.nfe == (-1 if isinstance(scheme, diffrax.Kvaerno3) else count[0])
    assert s.result == 0


def test_failures_have_a_code_and_no_gradient(x64):
    def of(f, scheme):
        def loss(theta):
            s = solve(f, jnp.ones(2), theta, solver=scheme, gradient=ACA(), t1=3.0)
            return s.x.sum(), s

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(2.0)

    grow = lambda t, x, theta: theta * x**2
    narrow = diffrax.PIDController(rtol=1e-3, atol=1e-4, dtmin=1e-2, force_dtmin=False)
    for scheme, code in (
        (DiffraxSolver(diffrax.Bosh3(), PID, max_steps=20), Result.MAX_STEPS),
        (DiffraxSolver(diffrax.Bosh3(), narrow), Result.STEP_UNDERFLOW),
        (DiffraxSolver(diffrax.Euler(), dt0=0.125), Result.NON_FINITE),
    ):
        (value, s), grad = of(grow, scheme)
        assert s.result == code
        assert jnp.isnan(grad)
        assert not jnp.isfinite(value)


@pytest.mark.slow
def test_block_evaluates_and_trains(x64):
    """On one grid a block with diffrax's midpoint rule is the block with ours, batch statistics included."""
    foreign = DiffraxSolver(diffrax.Midpoint(), dt0=0.25)
    block = OdeBlock(ResidualUnit(2), PiecewiseConstant(2), FixedStep("midpoint", 4), gradient=ACA())
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, block.init(jax.random.key(1), x))

    def train(block):
        def loss(params, x):
            whole = {**variables, "params": params}
            y, changed = block.apply(whole, x, train=True, mutable=["batch_stats", "solution"])
            return jnp.sum(jnp.sin(y)), changed

        grads, changed = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
        return grads, changed["batch_stats"], changed["solution"]["nfe"]

    ours, theirs = train(block), train(block.clone(solver=foreign))
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs))
    a, b = (jax.jit(block.apply)(variables, x) for block in (block, block.clone(solver=foreign)))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_stepping_onto_jumps_keeps_the_order(x64):
    jumps = diffrax.ClipStepSizeController(diffrax.PIDController(rtol=1e-9, atol=1e-9), jump_ts=[1 / 3])
    theta = BasisExpansion(PiecewiseConstant(3), jnp.array([1.0, -2.0, -2.0]))
    exact = math.exp(1 / 3 - 2 * 2 / 3)
    errors = []
    for controller in (jumps, diffrax.ConstantStepSize()):
        scheme = DiffraxSolver(diffrax.Dopri5(), controller, dt0=0.125)
        s = solve(lambda t, x, theta: theta * x, 1.0, theta, solver=scheme, gradient=Checkpointed())
        errors.append(abs(float(s.x) / exact - 1))
    assert errors[0] < 1e-7 < 1e-3 < errors[1]


def test_solvers_are_values_whatever_arrays_their_controllers_hold():
    """They are static arguments of jit, in modules and by themselves."""

    def solver(at):
        controller = diffrax.PIDController(rtol=1e-3, atol=1e-6)
        return DiffraxSolver(diffrax.Tsit5(), diffrax.ClipStepSizeController(controller, jump_ts=jnp.array([at])))

    assert solver(0.5) == solver(0.5) != solver(0.25)
    assert len({solver(0.5), solver(0.5), solver(0.25)}) == 2


class OwnMethod:
    """A gradient method that diffrax knows nothing of."""

    def run(self, problem, solver, dense=False):
        return Direct().run(problem, solver, dense)


KVAERNO = DiffraxSolver(diffrax.Kvaerno3(), PID)
HALF = DiffraxSolver(diffrax.HalfSolver(diffrax.Heun()), PID)


@pytest.mark.parametrize(
    ("scheme", "method", "reference", "has_aux", "tolerance"),
    [
        pytest.param(HEUN, Checkpointed(), (Direct(), FixedStep("heun", 6)), True, 1e-12, id="reports"),
        pytest.param(KVAERNO, ACA(4), (Checkpointed(), KVAERNO), False, 1e-4, id="implicit ACA"),
        pytest.param(HALF, Direct(), (Checkpointed(), HALF), False, 1e-12, id="HalfSolver", marks=pytest.mark.slow),
        pytest.param(HEUN, OwnMethod(), (Direct(), HEUN), False, 1e-12, id="own method"),
    ],
)
def test_what_diffrax_lacks_our_loop_takes_again(x64, scheme, method, reference, has_aux, tolerance):
    (value, s), grads = of_problem(method, scheme, has_aux=has_aux)
    (expected, other), expected_grads = of_problem(*reference, has_aux=has_aux)
    assert s.result == other.result == Result.SUCCESS
    assert (s.nfe, s.n_accepted, s.n_rejected) == (other.nfe, other.n_accepted, other.n_rejected)
    assert abs(value / expected - 1) < tolerance
    assert relative(grads, expected_grads) < tolerance
    assert relative(s.aux, other.aux) < tolerance if has_aux else s.aux == ()


@pytest.mark.parametrize(
    ("message", "scheme", "method", "has_aux"),
    [
        ("has no tolerances", HEUN, Backsolve(rtol=1e-3), False),
        (r"reports something .* gradient=Backsolve\(\)", HEUN, Backsolve(), True),
        (
            "reports something .* adjoint=DirectAdjoint",
            dataclasses.replace(HEUN, adjoint=diffrax.DirectAdjoint()),
            ACA(),
            True,
        ),
    ],
)
def test_incompatible_methods_are_refused(message, scheme, method, has_aux):
    with pytest.raises(ValueError, match=message):
        of_problem(method, scheme, has_aux=has_aux)


def test_wrong_arguments_are_refused():
    for message, arguments in (
        ("solver=.*expected a diffrax.AbstractSolver", (get_tableau("rk4"), PID)),
        ("stepsize_controller=0.1", (diffrax.Heun(), 0.1)),
        ("dt0=-1", (diffrax.Heun(), PID, -1)),
        ("dt0=None", (diffrax.Heun(),)),
        ("max_steps=0", (diffrax.Heun(), PID, None, 0)),
        ("adjoint=", (diffrax.Heun(), PID, None, 10, ACA())),
    ):
        with pytest.raises(ValueError, match=message):
            DiffraxSolver(*arguments)


def test_forward_mode_needs_a_method_that_has_it(x64):
    def tangent(method):
        end = lambda w: solve(lambda t, x, w: w * x, 1.0, w, solver=HEUN, gradient=method).x
        return jax.jvp(end, (0.5,), (1.0,))[1]

    with pytest.raises(ValueError, match="gradient=ACA"):
        tangent(ACA())
    assert tangent(Direct()) == pytest.approx(math.exp(0.5), rel=1e-2)


def test_an_adjoint_of_ones_own_overrides_the_method(x64):
    scheme = DiffraxSolver(diffrax.Heun(), PID, adjoint=AdaptiveCheckpointAdjoint(2))
    (_, s), grads = of_problem(Direct(), scheme, has_aux=False)
    (_, again), expected = of_problem(ACA(4), DiffraxSolver(diffrax.Heun(), PID), has_aux=False)
    assert relative(grads, expected) < 1e-12
    assert s.nfe == again.nfe


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_implicit_solver_takes_a_state_of_less_precision_than_its_times(x64, dtype):
    solver = DiffraxSolver(diffrax.Kvaerno3(), diffrax.PIDController(rtol=1e-2, atol=1e-2))

    def total(k, gradient):
        solution = solve(lambda t, x, k: -k * x, jnp.ones(2, dtype), k, solver=solver, gradient=gradient)
        assert solution.x.dtype == dtype
        return solution.x.sum().astype(float)

    found = jax.grad(lambda k: total(k, ACA()))(jnp.asarray(1.0, dtype))
    np.testing.assert_allclose(found, -2 * np.exp(-1), rtol=2e-2)
    with pytest.raises(ValueError, match=f"x0 of {dtype} with times of float64"):
        total(jnp.asarray(1.0, dtype), Backsolve())
