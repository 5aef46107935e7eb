"""On fixed grids every method gives the gradient of the discrete solve, which finite differences confirm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree, flat
from ode_nets.gradients import ACA, Checkpointed, Direct, solve
from ode_nets.integrate import FixedStep
from ode_nets.weights import (
    BasisExpansion,
    Constant,
    Fourier,
    Joint,
    Legendre,
    PiecewiseConstant,
    PiecewiseLinear,
)

METHODS = (Checkpointed("step"), Checkpointed("block"), ACA(1), ACA(2), ACA(3))
RNG = np.random.default_rng(3)
X0 = {"p": RNG.normal(size=(2, 3)), "q": np.array([0.4])}
CLOSED = 0.7

# Basis, number of steps: aligned, several steps an interval, several intervals a step, and without common factor.
GRIDS = [
    (PiecewiseConstant(4), 8),
    (PiecewiseConstant(3), 7),
    (PiecewiseConstant(7), 3),
    (Legendre(3), 6),
    pytest.param(PiecewiseConstant(6), 4, marks=pytest.mark.slow),
    pytest.param(PiecewiseLinear(4), 5, marks=pytest.mark.slow),
    pytest.param(Fourier(3), 5, marks=pytest.mark.slow),
]


def field(t, x, theta, closed):
    y = x["p"] * theta["w"] + t
    return {"p": closed * y, "q": jnp.sum(y) * theta["v"] - x["q"] ** 2}, {"mean": y.mean(0)}


def make_loss(weights_of, method, **options):
    def loss(x0, coefficients, closed):
        with_closed = lambda t, x, theta: field(t, x, theta, closed)
        weights = weights_of(coefficients)
        solution = solve(with_closed, x0, weights, gradient=method, has_aux=True, **options)
        states = sum(jnp.sum(v**2 * jnp.arange(1.0, v.size + 1).reshape(v.shape)) for v in solution.x.values())
        return states + jnp.sum(solution.aux["mean"] ** 2)

    return loss


def assert_methods_agree(weights_of, coefficients, methods=METHODS, **options):
    """All methods in one program against `Direct`, and `Direct` against a central difference."""
    arguments = (X0, coefficients, CLOSED)

    @jax.jit
    def run(*a):
        losses = [make_loss(weights_of, method, **options) for method in (Direct(), *methods)]
        return [jax.value_and_grad(loss, (0, 1, 2))(*a) for loss in losses]

    (_, expected), *others = run(*arguments)
    for method, (_, got) in zip(methods, others, strict=True):
        try:
            assert_agree(got, expected)
        except AssertionError as error:
            raise AssertionError(f"{method}: {error}") from error
    direction = jax.tree.map(lambda leaf: RNG.normal(size=np.shape(leaf)), arguments)
    value = lambda s: run(*jax.tree.map(lambda a, d: a + s * d, arguments, direction))[0][0]
    h = 1e-4
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    np.testing.assert_allclose(np.dot(flat(expected), flat(direction)), difference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("basis", "n_steps"), GRIDS, ids=str)
def test_methods_agree_for_every_basis(x64, basis, n_steps):
    """With outputs at both ends and on the grid between, equal times included."""
    m = basis.n_basis
    coefficients = {"w": RNG.normal(size=(m, 3)), "v": RNG.normal(size=m)}
    ts = [0.0, 1 / n_steps, 2 / n_steps, 2 / n_steps, 1.0]
    methods = METHODS if n_steps == 7 else (ACA(2),)
    weights_of, solver = lambda c: BasisExpansion(basis, c), FixedStep("heun", n_steps)
    assert_methods_agree(weights_of, coefficients, methods, solver=solver, ts=ts)


def test_methods_agree_in_reversed_time_and_with_a_theta_of_several_weight_functions(x64):
    coefficients = {"w": RNG.normal(size=(4, 3)), "v": RNG.normal(size=())}

    def weights_of(c):
        return Joint({"w": BasisExpansion(PiecewiseConstant(4), c["w"]), "v": Constant(c["v"])})

    options = {"solver": FixedStep("midpoint", 7), "t0": 1.0, "t1": 0.0, "ts": [1.0, 3 / 7]}
    assert_methods_agree(weights_of, coefficients, METHODS[3:], **options)


def test_methods_agree_with_a_plain_theta_on_negative_times(x64):
    coefficients = {"w": RNG.normal(size=3), "v": RNG.normal(size=())}
    assert_methods_agree(lambda c: c, coefficients, METHODS[1:4], solver=FixedStep("bosh3", 5), t0=-1.5, t1=-0.25)


def test_as_many_checkpoints_as_steps_or_more_are_checkpointed_steps(x64):
    """They run the same program."""

    def program(method):
        run = lambda p: solve(lambda t, x, p: p * x, 1.0, p, solver=FixedStep("euler", 7), gradient=method).x
        return jax.jit(jax.grad(run)).lower(1.0).as_text()

    assert program(ACA(7)) == program(ACA(32)) == program(ACA(None)) == program(Checkpointed("step"))
    assert program(ACA(6)) != program(ACA(7))


def test_ends_of_a_fixed_grid_have_gradients(x64):
    """The grid stretches with them: d/dt1 is f at the end up to the scheme's error, and exact for the grid."""

    def loss(t0, t1, method):
        field, solver = lambda t, x, p: jnp.sin(x) + t, FixedStep("midpoint", 6)
        return solve(field, 0.3, solver=solver, gradient=method, t0=t0, t1=t1).x

    @jax.jit
    def gradients(t0, t1):
        methods = (Direct(), Checkpointed("block"), ACA(2))
        return [jax.value_and_grad(loss, argnums=(0, 1))(t0, t1, method) for method in methods]

    for t0, t1 in ((0.2, 1.4), (0.5, -1.0), (0.7, 0.7)):
        (end, direct), *others = gradients(t0, t1)
        for _, other in others:
            np.testing.assert_allclose(other, direct, rtol=1e-12)
        np.testing.assert_allclose(direct[1], np.sin(end) + t1, rtol=0.03)
        if t0 == t1:
            np.testing.assert_allclose(direct, [-np.sin(0.3) - t0, np.sin(0.3) + t0], rtol=1e-14)
