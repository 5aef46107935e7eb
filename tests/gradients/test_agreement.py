"""On one accepted grid all gradient methods agree, and diffrax and finite differences confirm them."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, solve
from ode_nets.integrate import make_problem
from ode_nets.integrate.trial import attempt, begin, is_running, stops_of
from ode_nets.weights import BasisExpansion, Legendre, PiecewiseConstant

EXACT = (Checkpointed("step"), Checkpointed("block"), ACA(None), ACA(1), ACA(2), ACA(3), ACA(7))


def problem():
    """A field with aux and a state and theta of several leaves, one of them an integer."""
    keys = jax.random.split(jax.random.key(0), 3)
    theta = {
        "w": jax.random.normal(keys[0], (4, 4)),
        "b": jax.random.normal(keys[1], (4,)),
        "power": jnp.int32(1),
    }
    x0 = {"p": jax.random.normal(keys[2], (3, 4)), "q": jnp.ones(2)}

    def field(t, x, theta):
        y = jnp.tanh(x["p"] @ theta["w"] + theta["b"] + jnp.sin(3 * t)) ** theta["power"]
        return {"p": 5 * y, "q": -0.1 * x["q"] * jnp.sum(x["p"])}, {"mean": y.mean(0)}

    return field, x0, theta


def loss_of(solution):
    weighed = (
        jnp.sum(jnp.sin(a) * jnp.arange(1.0, a.size + 1).reshape(a.shape))
        for a in jax.tree.leaves(solution.x)
    )
    return sum(weighed) + 0.3 * jnp.sum(solution.aux["mean"])


def flat(tree):
    return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(tree) if a.dtype != jax.dtypes.float0])


def relative(a, b):
    return float(jnp.abs(flat(a) - flat(b)).max() / jnp.abs(flat(b)).max())


@pytest.mark.parametrize(
    ("solver", "t0", "t1", "ts"),
    [
        (Adaptive("dopri5", 1e-4, 1e-4, first_step=1.0, max_steps=40), 0.1, 1.3, None),
        (Adaptive("dopri5", 1e-4, 1e-4, first_step=1.0, max_steps=40), 0.9, -0.5, [0.9, 0.3, 0.3, -0.2]),
        (
            Adaptive("bosh3", 1e-3, 1e-3, first_step=0.7, max_steps=40, outputs="dense"),
            -1.3,
            -0.1,
            [-1.1, -0.4],
        ),
    ],
    ids=["end", "backward, landing on times", "negative times, dense"],
)
def test_methods_agree_on_adaptive_grids(x64, solver, t0, t1, ts):
    field, x0, theta = problem()
    ts = None if ts is None else jnp.array(ts)

    def gradient(method):
        def loss(x0, theta, t0, t1, ts):
            s = solve(field, x0, theta, solver=solver, gradient=method, t0=t0, t1=t1, ts=ts, has_aux=True)
            return loss_of(s), s

        arguments = (0, 1, 2, 3) if ts is None else (0, 1, 2, 3, 4)
        run = jax.jit(jax.grad(loss, argnums=arguments, has_aux=True, allow_int=True))
        return run(x0, theta, t0, t1, ts)

    reference, solution = gradient(Direct())
    assert solution.result == 0
    assert solution.n_rejected > 0
    assert solution.n_accepted >= 5
    for method in EXACT:
        other, again = gradient(method)
        assert relative(other, reference) < 1e-12, method
        assert (again.nfe, again.n_accepted) == (solution.nfe, solution.n_accepted)


@pytest.mark.parametrize(
    ("basis", "n_steps"), [(PiecewiseConstant(3), 7), (PiecewiseConstant(4), 8), (Legendre(3), 6)], ids=str
)
def test_methods_agree_on_fixed_grids(x64, basis, n_steps):
    field, x0, theta = problem()
    keys = jax.random.split(jax.random.key(1), basis.n_basis)
    draw = lambda key: {"w": jax.random.normal(key, (4, 4)), "b": jax.random.normal(key, (4,))}
    coefficients = jax.vmap(draw)(keys)

    def with_power(t, x, theta_t):
        return field(t, x, theta_t | {"power": theta["power"]})

    def gradient(method):
        def loss(x0, coefficients):
            weights = BasisExpansion(basis, coefficients)
            solver = FixedStep("rk4_38", n_steps)
            ts = [0.0, 2 / n_steps, 1.0]
            return loss_of(
                solve(with_power, x0, weights, solver=solver, gradient=method, ts=ts, has_aux=True)
            )

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x0, coefficients)

    reference = gradient(Direct())
    for method in (Checkpointed("step"), ACA(2), ACA(3)):
        assert relative(gradient(method), reference) < 1e-12, method


def test_gradient_is_that_of_diffrax_on_the_same_steps_and_of_finite_differences(x64):
    field, x0, theta = problem()
    plain = lambda t, x, theta: field(t, x, theta)[0]
    solver = Adaptive("dopri5", 1e-4, 1e-4, first_step=1.0, max_steps=40)

    times = [0.0, *accepted_times(plain, x0, theta, solver)]
    assert len(times) == int(solve(plain, x0, theta, solver=solver, gradient=Direct()).n_accepted) + 1

    def ours(x0, w):
        s = solve(plain, x0, theta | {"w": w}, solver=solver, gradient=ACA(2))
        return loss_of_state(s.x)

    def theirs(x0, w):
        adjoint = diffrax.RecursiveCheckpointAdjoint()
        s = diffrax.diffeqsolve(
            diffrax.ODETerm(plain), diffrax.Dopri5(), 0.0, 1.0, None, x0, theta | {"w": w},
            stepsize_controller=diffrax.StepTo(ts=jnp.array(times)), adjoint=adjoint,
        )  # fmt: skip
        return loss_of_state(jax.tree.map(lambda a: a[0], s.ys))

    a = jax.jit(jax.grad(ours, argnums=(0, 1)))(x0, theta["w"])
    b = jax.jit(jax.grad(theirs, argnums=(0, 1)))(x0, theta["w"])
    assert relative(a, b) < 1e-12
    fixed_grid = jax.jit(theirs)
    direction = jax.random.normal(jax.random.key(5), (4, 4))
    h = 1e-6
    difference = (fixed_grid(x0, theta["w"] + h * direction) - fixed_grid(x0, theta["w"] - h * direction)) / (
        2 * h
    )
    np.testing.assert_allclose(jnp.vdot(a[1], direction), difference, rtol=1e-7)


def loss_of_state(x):
    return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(x))


def accepted_times(field, x0, theta, solver):
    """Ends of the accepted steps, by one trial after the other."""
    problem = make_problem(field, x0, theta)
    stops = stops_of(problem, solver)
    step = jax.jit(lambda trial: attempt(problem, solver, stops, trial)[0])
    trial, times = begin(problem, solver), []
    while is_running(trial, solver, len(stops)):
        after = step(trial)
        if after.n_accepted > trial.n_accepted:
            times.append(float(after.t))
        trial = after
    return times


def test_backsolve_approaches_the_others_as_its_tolerance_goes_to_zero(x64):
    field, x0, theta = problem()
    plain = lambda t, x, theta: field(t, x, theta)[0]

    def gradient(method, tol):
        def loss(x0, w, tol):
            solver = Adaptive("dopri5", tol, tol, max_steps=400)
            return loss_of_state(solve(plain, x0, theta | {"w": w}, solver=solver, gradient=method).x)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x0, theta["w"], tol)

    reference = gradient(ACA(), 1e-12)
    errors = [relative(gradient(Backsolve(), tol), reference) for tol in (1e-4, 1e-7, 1e-10)]
    assert errors[0] > 20 * errors[1] > 400 * errors[2]
    assert errors[2] < 1e-7


@pytest.mark.parametrize("method", [ACA(2), ACA(None)])
def test_under_vmap_and_inside_checkpoint(x64, method):
    field = lambda t, x, theta: jnp.tanh(theta * x) + t
    solver = Adaptive("bosh3", 1e-5, 1e-5, first_step=1.0, max_steps=64)
    x0, theta = jnp.linspace(0.1, 2.0, 3)[:, None], jnp.linspace(1.0, 4.0, 3)

    def one(x0, theta):
        return jnp.sum(solve(field, x0, theta, solver=solver, gradient=method).x ** 3)

    def all_(x0, theta):
        return jnp.sum(jax.vmap(one)(x0, theta))

    grad_of_vmap = jax.jit(jax.grad(all_, argnums=(0, 1)))(x0, theta)
    vmap_of_grad = jax.jit(jax.vmap(jax.grad(one, argnums=(0, 1))))(x0, theta)
    inside = jax.checkpoint(one)
    singly = [jax.jit(jax.grad(inside, argnums=(0, 1)))(x0[i], theta[i]) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singly)
    assert relative(grad_of_vmap, stacked) < 1e-12
    assert relative(vmap_of_grad, stacked) < 1e-12


def test_arrays_that_a_field_closes_over_get_their_gradient(x64):
    solver = Adaptive("heun_euler", 1e-3, 1e-3, max_steps=64)

    def loss(scale, method):
        s = solve(lambda t, x, _: -scale * x, jnp.ones(2), solver=solver, gradient=method)
        return jnp.sum(s.x)

    reference = jax.grad(loss)(1.3, Direct())
    for method in (ACA(2), Checkpointed("step")):
        np.testing.assert_allclose(jax.grad(loss)(1.3, method), reference, rtol=1e-12)
