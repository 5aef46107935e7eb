"""Direct, checkpointed, ACA with any number of checkpoints, and diffrax: one gradient on one accepted grid."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from ode_nets.gradients import ACA, Checkpointed, Direct, Naive, solve
from ode_nets.integrate import Adaptive, Result
from ode_nets.tableaus import SCHEMES

METHODS = {
    "checkpointed by step": Checkpointed("step"),
    "checkpointed by block": Checkpointed("block"),
    "aca": ACA(None),
    "aca, 1": ACA(1),
    "aca, 2": ACA(2),
    "aca, 3": ACA(3),
    "aca, 7": ACA(7),
    "aca, 32": ACA(32),
}
RNG = np.random.default_rng(0)
X0 = {"p": RNG.normal(size=(3, 4)), "q": np.ones(2)}
THETA = {"w": RNG.normal(size=(4, 4)), "b": RNG.normal(size=4), "power": np.int32(3), "none": None}
CLOSED = np.array([0.7, -0.4])
SPANS = {
    "forward": (0.1, 1.3, np.array([0.1, 0.45, 0.45, 0.8])),
    "backward across zero": (0.9, -0.5, np.array([0.9, 0.3, -0.2, -0.5])),
    "negative": (-2.0, -1.2, np.array([-1.9, -1.5, -1.5, -1.2])),
}


def make_field(closed):
    """Pytree states, statistics as reports, an integer in theta, and an array from outside."""

    def field(t, x, theta):
        y = jnp.tanh(x["p"] @ theta["w"] + theta["b"] + 3 * t)
        dx = {"p": 5 * y, "q": closed * jnp.cos(theta["power"] * x["q"]) * jnp.sum(x["p"])}
        return dx, {"mean": y.mean(0), "evaluations": jnp.int32(1)}

    return field


def make_gradient(solver, method, asks):
    """All derivatives of a loss on all outputs, compiled once for all spans."""

    def loss(x0, w, b, closed, t0, t1, ts):
        theta = THETA | {"w": w, "b": b}
        solution = solve(
            make_field(closed),
            x0,
            theta,
            solver=solver,
            gradient=method,
            t0=t0,
            t1=t1,
            ts=ts if asks else None,
            has_aux=True,
        )
        total = sum(jnp.sum(jnp.sin(v) * jnp.arange(1, v.size + 1).reshape(v.shape)) for v in solution.x.values())
        return total + jnp.sum(jnp.cos(solution.aux["mean"])), solution

    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(7)), has_aux=True))


def run(gradient, span):
    (_, solution), gradients = gradient(X0, THETA["w"], THETA["b"], CLOSED, *SPANS[span])
    return solution, gradients


def assert_agree(got, expected, tolerance=1e-12):
    """Every derivative of each input to `tolerance`, relative to the largest of that input."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        scale = float(np.max(np.abs(b))) or 1.0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


_EXPECTED = {}


def expected_of(name, solver, asks):
    if name not in _EXPECTED:
        gradient = make_gradient(solver, Direct(), asks)
        _EXPECTED[name] = {span: run(gradient, span) for span in SPANS}
    return _EXPECTED[name]


def check_all_spans(name, solver, method, asks):
    gradient = make_gradient(solver, method, asks)
    for span, (reference, expected) in expected_of(name, solver, asks).items():
        solution, gradients = run(gradient, span)
        assert Result(int(solution.result)) == Result.SUCCESS
        for count in ("nfe", "n_accepted", "n_rejected"):
            assert int(getattr(solution, count)) == int(getattr(reference, count))
        assert int(solution.n_rejected) > 0, "without rejected trials the test would show less"
        assert_agree(solution.x, reference.x)
        assert_agree(solution.aux, reference.aux)
        # Derivatives in times are one input: each alone is the small rest of large contributions.
        together = lambda g: (*g[:4], np.concatenate([np.ravel(d) for d in g[4:]]))
        assert_agree(together(gradients), together(expected))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("method", [*list(METHODS)[:-1], pytest.param("aca, 32", marks=pytest.mark.slow)])
def test_methods_agree_where_steps_land_on_asked_times(x64, method):
    solver = Adaptive("heun_euler", 1e-2, 1e-2, first_step=1.0, max_steps=120, outputs="clip")
    check_all_spans("clip", solver, METHODS[method], asks=True)


@pytest.mark.parametrize(
    "method", ["aca, 3", *(pytest.param(m, marks=pytest.mark.slow) for m in ("checkpointed by step", "aca"))]
)
def test_methods_agree_on_dense_outputs(x64, method):
    """Cotangents then reach every stage of a step, the last of an FSAL pair included."""
    solver = Adaptive("bosh3", 1e-3, 1e-3, first_step=1.0, max_steps=80, outputs="interpolate")
    check_all_spans("dense", solver, METHODS[method], asks=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["checkpointed by block", "aca", "aca, 2"])
def test_methods_agree_on_the_end_state_of_a_first_same_as_last_pair(x64, method):
    """The forward pass reuses last stages, the replay evaluates each step by itself."""
    solver = Adaptive("dopri5", 1e-4, 1e-4, first_step=1.0, max_steps=60)
    check_all_spans("end", solver, METHODS[method], asks=False)


def accepted_grid(field, x0, theta, solver, t0, t1):
    """Times that the accepted steps of a solve end on, t0 included."""
    steps = solve(field, x0, theta, solver=solver, t0=t0, t1=t1, dense=True).steps
    return np.append(np.asarray(steps.t[: int(steps.n)]), t1)


@pytest.mark.parametrize(
    ("key", "peer"),
    [
        ("dopri5", "Dopri5"),
        pytest.param("heun_euler", "Heun", marks=pytest.mark.slow),
        pytest.param("bosh3", "Bosh3", marks=pytest.mark.slow),
        pytest.param("tsit5", "Tsit5", marks=pytest.mark.slow),
    ],
)
def test_gradients_equal_those_of_diffrax_on_the_same_grid(x64, key, peer):
    """Its `StepTo` over our accepted times, with its own `RecursiveCheckpointAdjoint`."""
    tolerance = 1e-5 if SCHEMES[key].order > 3 else 1e-3
    solver = Adaptive(key, tolerance, tolerance, first_step=1.0, max_steps=100)
    x0, theta = jnp.asarray(X0["p"]), {"w": jnp.asarray(THETA["w"]), "b": jnp.asarray(THETA["b"])}
    field = lambda t, x, theta: 5 * jnp.tanh(x @ theta["w"] + theta["b"] + jnp.sin(3 * t))
    weigh = lambda x: jnp.sum(jnp.sin(x) * jnp.arange(12.0).reshape(3, 4))

    def ours(x0, theta):
        solution = solve(field, x0, theta, solver=solver, gradient=ACA(4), t0=0.1, t1=1.3)
        return weigh(solution.x), solution

    (value, solution), gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(x0, theta)
    grid = accepted_grid(field, x0, theta, solver, 0.1, 1.3)
    assert len(grid) - 1 == int(solution.n_accepted) > 4
    assert int(solution.n_rejected) > 0

    def theirs(x0, theta):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            getattr(diffrax, peer)(),
            grid[0],
            grid[-1],
            None,
            x0,
            theta,
            stepsize_controller=diffrax.StepTo(ts=grid),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            max_steps=len(grid),
        )
        return weigh(solution.ys[0])

    peers = jax.jit(jax.value_and_grad(theirs, argnums=(0, 1)))
    other, expected = peers(x0, theta)
    np.testing.assert_allclose(value, other, rtol=1e-12)
    assert_agree(gradients, expected)
    # On that grid, which does not move with its inputs, finite differences are the judge of both.
    direction = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), (x0, theta))
    along = lambda s: peers(*jax.tree.map(lambda a, d: a + s * d, (x0, theta), direction))[0]
    slope = (8 * (along(1e-4) - along(-1e-4)) - (along(2e-4) - along(-2e-4))) / 12e-4
    dot = sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))
    np.testing.assert_allclose(dot, slope, rtol=1e-7)


def test_gradients_of_a_tight_solve_are_those_of_the_exact_solution(x64):
    """dz/dt = k z, L = z(T)^2: dL/dz0 = 2 z0 exp(2 k T) (ACA eq. 27-29), and likewise for k, t0 and T."""
    solver = Adaptive("tsit5", 1e-11, 1e-11, max_steps=2000)

    def loss(z0, k, t0, t1):
        return solve(lambda t, z, k: k * z, z0, k, solver=solver, gradient=ACA(8), t0=t0, t1=t1).x ** 2

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    for z0, k, t0, t1 in ((1.5, 0.4, 0.0, 3.0), (1.5, -0.4, 1.0, -2.0)):
        square = (z0 * np.exp(k * (t1 - t0))) ** 2
        expected = [2 * square / z0, 2 * (t1 - t0) * square, -2 * k * square, 2 * k * square]
        np.testing.assert_allclose(gradient(z0, k, t0, t1), expected, rtol=1e-8)


def test_tolerances_and_first_steps_have_no_gradient(x64):
    """Step sizes are constants of differentiation (ACA algorithm 2), under every method."""

    def loss(sizes, method):
        solver = Adaptive("bosh3", sizes[0], sizes[1], first_step=sizes[2], max_steps=50)
        return solve(lambda t, x, theta: -x * t, 1.0, solver=solver, gradient=method).x

    gradient = jax.jit(lambda s: [jax.grad(loss)(s, method) for method in (Direct(), ACA(2))])
    np.testing.assert_array_equal(gradient(jnp.array([1e-3, 1e-3, 0.1])), np.zeros((2, 3)))


@pytest.mark.parametrize("outputs", ["clip", "interpolate"])
def test_equal_asked_times_have_derivatives_of_their_own(x64, outputs):
    """dx(t_i) / dt_j is the slope where i = j and else nothing, also where t_i = t_j."""
    solver = Adaptive("bosh3", 1e-6, 1e-6, first_step=0.2, max_steps=40, outputs=outputs)
    field = lambda t, x, k: -k * x * jnp.cos(t)
    ts = jnp.array([0.3, 0.3, 0.3, 0.7])
    expected = np.diag(-np.cos(ts) * np.exp(-np.sin(ts)))

    def states(ts, method, dense):
        return solve(field, 1.0, 1.0, solver=solver, ts=ts, gradient=method, dense=dense).x

    cases = [(method, dense) for method in (Direct(), ACA(3), Naive()) for dense in (False, True)]
    found = jax.jit(lambda ts: [jax.jacrev(states)(ts, *case) for case in cases])(ts)
    for slopes in found:
        np.testing.assert_allclose(slopes, expected, atol=1e-4)


def test_cotangents_of_asked_times_are_written_and_not_selected(x64):
    """Under `vmap`, where selecting would copy all of them at every one."""
    n = 1234

    def loss(k, ts):
        solver = Adaptive("bosh3", 1e-3, 1e-3, max_steps=20)
        return jnp.sum(solve(lambda t, x, k: -k * x, 1.0, k, solver=solver, ts=ts, gradient=ACA(3)).x)

    def selected(jaxpr, inside=False):
        """Shapes of what is selected in the bodies of loops."""
        for equation in jaxpr.eqns:
            if inside and equation.primitive.name == "select_n":
                yield from (v.aval.shape for v in equation.outvars)
            for inner in core.jaxprs_in_params(equation.params):
                yield from selected(inner, inside or equation.primitive.name == "while")

    ts = jnp.broadcast_to(jnp.linspace(0.0, 1.0, n), (3, n))
    found = list(selected(jax.make_jaxpr(jax.vmap(jax.grad(loss, 1)))(jnp.ones(3), ts).jaxpr))
    assert found
    assert not [shape for shape in found if n in shape]
