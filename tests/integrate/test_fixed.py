"""Fixed steps: which weights a stage reads, counts, outputs, direction, program size, padded solvers."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import Direct, solve
from ode_nets.integrate import FixedStep, Result, pad
from ode_nets.stepping import RungeKutta, get_scheme
from ode_nets.tableaus import SCHEMES
from ode_nets.weights import BasisExpansion, Constant, Fourier, Joint, PiecewiseConstant, PiecewiseLinear

EXACT = tuple(key for key in SCHEMES if key != "tsit5")


def one_hot(m, domain=(0.0, 1.0)):
    return BasisExpansion(PiecewiseConstant(m), jnp.eye(m), domain)


def read_interval(t, x, theta):
    """Which interval a stage read, and when: the state sums b-weighted reads, the reports count them."""
    return {"reads": theta, "times": (1 + t) * theta}, theta


def interval(u, m, beside):
    """The interval that contains u, at a jump the one on the side of `beside`, in rational arithmetic."""
    index = math.floor(u * m) if beside > u else math.ceil(u * m) - 1
    return min(max(index, 0), m - 1)


def rational_reads(tableau, n, m, reverse=False):
    """What `read_interval` must come to: reads by b, reads times 1 + t, and how often each was read."""
    reads, times, counts = [Fraction(0)] * m, [Fraction(0)] * m, [0] * m
    h = Fraction(1, n)
    for k in range(n):
        for b, c in list(zip(tableau.b, tableau.c, strict=True))[: RungeKutta(tableau).n_evaluations]:
            t = h * (k + Fraction(c))
            # A stage at a jump looks ahead, but the last one back into its own step.
            beside = t + h * (1 if c < 1 else -1)
            if reverse:
                t, beside = 1 - t, 1 - beside
            j = interval(t, m, beside)
            sign = -1 if reverse else 1
            reads[j] += sign * h * Fraction(b)
            times[j] += sign * h * Fraction(b) * (1 + t)
            counts[j] += 1
    return [np.array([float(v) for v in row]) for row in (reads, times, counts)]


def check_reads(solution, expected):
    reads, times, counts = expected
    np.testing.assert_allclose(solution.x["reads"], reads, rtol=0, atol=1e-13)
    np.testing.assert_allclose(solution.x["times"], times, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(solution.aux, counts)


def zeros_for(m):
    return {"reads": jnp.zeros(m), "times": jnp.zeros(m)}


# Steps per interval and intervals per step, common factors and none, and numbers at which floor(n * t) fails.
GRIDS = [(1, 1), (4, 4), (7, 7), (12, 4), (4, 12), (9, 6), (6, 9), (7, 3), (3, 7), (49, 12), (10, 14), (1, 5)]


@pytest.mark.parametrize("key", ["euler", "rk4", "dopri5"])
def test_stages_read_the_interval_that_rational_arithmetic_gives(x64, key):
    """The stage at the end of a step included, which reads the step's own side of a jump."""

    @jax.jit
    def run():
        return [
            solve(
                read_interval,
                zeros_for(m),
                one_hot(m),
                solver=FixedStep(key, n),
                gradient=Direct(),
                has_aux=True,
            )
            for n, m in GRIDS
        ]

    for (n, m), solution in zip(GRIDS, run(), strict=True):
        check_reads(solution, rational_reads(SCHEMES[key], n, m))


def test_stages_read_the_right_interval_in_reversed_time_and_on_other_domains(x64):
    """Where the grid does not start with the domain, times are floating point, and jumps still have sides."""
    grids = [(4, 4), (7, 7), (12, 4), (9, 6), (6, 9), (7, 3), (49, 7)]

    @jax.jit
    def run():
        common = {"gradient": Direct(), "has_aux": True}
        back = [
            solve(read_interval, zeros_for(m), one_hot(m), solver=FixedStep("rk4", n), t0=1.0, t1=0.0, **common)
            for n, m in grids
        ]
        # The second half of a domain [-1, 1], whose intervals there are the later half.
        half = [
            solve(
                read_interval,
                zeros_for(2 * m),
                one_hot(2 * m, (-1.0, 1.0)),
                solver=FixedStep("rk4", n),
                **common,
            )
            for n, m in grids
        ]
        return back, half

    for (n, m), back, half in zip(grids, *run(), strict=True):
        check_reads(back, rational_reads(SCHEMES["rk4"], n, m, reverse=True))
        zeros = np.zeros(m)
        check_reads(half, [np.concatenate([zeros, row]) for row in rational_reads(SCHEMES["rk4"], n, m)])


def test_weights_of_several_bases_are_read_side_by_side(x64):
    """A joint weight function reads each part as that part alone is read."""
    rng = np.random.default_rng(0)
    parts = {
        "steps": BasisExpansion(PiecewiseConstant(6), jnp.asarray(rng.normal(size=6))),
        "hats": BasisExpansion(PiecewiseLinear(4), jnp.asarray(rng.normal(size=4))),
        "waves": BasisExpansion(Fourier(3), jnp.asarray(rng.normal(size=3))),
        "constant": Constant(jnp.asarray(1.7)),
    }

    @jax.jit
    def run(parts):
        options = {"solver": FixedStep("rk4_38", 9), "gradient": Direct()}
        joint = solve(lambda t, x, theta: theta, dict.fromkeys(parts, 0.0), Joint(parts), **options)
        alone = {k: solve(lambda t, x, theta: theta, 0.0, w, **options).x for k, w in parts.items()}
        return joint.x, alone

    joint, alone = run(parts)
    for name in parts:
        np.testing.assert_allclose(joint[name], alone[name], rtol=1e-14)
    np.testing.assert_allclose(alone["constant"], 1.7, rtol=1e-14)
    np.testing.assert_allclose(alone["hats"], np.dot([1 / 6, 1 / 3, 1 / 3, 1 / 6], parts["hats"].coefficients))


def count_calls(run, *arguments):
    """What a compiled run gives, and how often it really evaluated its field."""
    calls = []

    def counted(field):
        def wrapped(t, x, theta):
            jax.debug.callback(lambda: calls.append(1))
            return field(t, x, theta)

        return wrapped

    out = jax.block_until_ready(jax.jit(lambda *a: run(counted, *a))(*arguments))
    jax.effects_barrier()
    return out, len(calls)


@pytest.mark.parametrize("key", ["heun", "bosh3", "dopri5"])
def test_nfe_is_what_a_counting_field_counts(key):
    """A last stage that only serves an error estimate or the next step is not evaluated."""
    run = lambda counted, x: solve(counted(lambda t, x, p: -x), x, solver=FixedStep(key, 7), gradient=Direct())
    solution, calls = count_calls(run, jnp.ones(2))
    assert int(solution.nfe) == calls == 7 * get_scheme(key).n_evaluations
    assert (int(solution.n_accepted), int(solution.n_rejected)) == (7, 0)
    assert int(solution.result) == Result.SUCCESS


def test_states_at_asked_times_are_those_of_shorter_solves(x64):
    """In the order asked, equal times and both ends included, forward and backward."""
    field = lambda t, x, theta: {"a": jnp.cos(t) * x["b"], "b": -(x["a"] ** 2)}
    x0 = {"a": jnp.array([0.3, 0.7]), "b": jnp.array([1.0, -1.0])}

    def run(x0, **times):
        return solve(field, x0, solver=FixedStep("rk4", times.pop("n")), gradient=Direct(), **times).x

    @jax.jit
    def everything(x0):
        asked = run(x0, n=8, t1=2.0, ts=[0.0, 0.5, 0.5, 2.0])
        back = run(x0, n=8, t0=1.0, t1=-1.0, ts=np.array([0.75, -1.0]))
        return asked, run(x0, n=2, t1=0.5), run(x0, n=8, t1=2.0), back, run(x0, n=1, t0=1.0, t1=0.75)

    asked, half, end, back, first = everything(x0)
    for name in x0:
        assert asked[name].shape == (4, 2)
        np.testing.assert_array_equal(asked[name][0], x0[name])
        np.testing.assert_allclose(asked[name][1], half[name], rtol=1e-14)
        np.testing.assert_array_equal(asked[name][1], asked[name][2])
        np.testing.assert_allclose(asked[name][3], end[name], rtol=1e-14)
        np.testing.assert_allclose(back[name][0], first[name], rtol=1e-14)


def test_reversed_and_negative_time_mirror_the_forward_solve(x64):
    """y(s) = x(-s) solves dy/ds = -f(-s, y): the same steps with the same numbers."""
    field = lambda t, x, theta: jnp.sin(x) + t
    mirrored = lambda s, y, theta: -field(-s, y, theta)

    @jax.jit
    def run(x):
        options = {"solver": FixedStep("rk4_38", 5), "gradient": Direct()}
        return (
            solve(field, x, t0=0.5, t1=2.0, **options).x,
            solve(mirrored, x, t0=-0.5, t1=-2.0, **options).x,
            solve(field, x, t0=1.0, t1=1.0, **options).x,
        )

    forward, back, nowhere = run(jnp.array([0.3, -2.0]))
    np.testing.assert_array_equal(forward, back)
    np.testing.assert_array_equal(nowhere, [0.3, -2.0])


def test_program_size_does_not_depend_on_the_number_of_steps():
    """Instructions of the lowered program; a network as deep as it has intervals included."""

    def size(n_steps, n_basis, gradient=False):
        theta = jnp.ones((n_basis, 3, 3))

        def run(x, theta):
            weights = BasisExpansion(PiecewiseConstant(n_basis), theta)
            solver = FixedStep("rk4", n_steps)
            return jnp.sum(solve(lambda t, x, w: jnp.tanh(x @ w), x, weights, solver=solver, gradient=Direct()).x)

        program = jax.grad(run, argnums=1) if gradient else run
        return jax.jit(program).lower(jnp.ones((2, 3)), theta).as_text().count("\n")

    assert size(8, 1) == size(512, 1)
    assert size(8, 8) == size(512, 512)
    assert size(1, 1) <= size(512, 512) <= 1.3 * size(8, 1)
    assert size(8, 8, gradient=True) == size(512, 512, gradient=True)


def test_non_finite_states_have_a_code():
    fields = {
        "nan": lambda t, x, theta: jnp.where(t > 0.5, jnp.nan, x),
        "overflow": lambda t, x, theta: 1e30 * x**2,
        "fine": lambda t, x, theta: -x,
    }
    run = lambda field: solve(field, 1.0, solver=FixedStep("euler", 8), gradient=Direct()).result
    results = jax.jit(lambda: {name: run(field) for name, field in fields.items()})()
    assert {name: Result(int(r)) for name, r in results.items()} == {
        "nan": Result.NON_FINITE,
        "overflow": Result.NON_FINITE,
        "fine": Result.SUCCESS,
    }


def test_padded_solvers_equal_fixed_steps_for_every_scheme(x64):
    """One program for every scheme and number of steps, with exact interval indices."""
    m, keys = 6, tuple(SCHEMES)
    rng = np.random.default_rng(0)
    weights = BasisExpansion(PiecewiseConstant(m), jnp.asarray(rng.normal(size=m)))

    def field(t, x, theta):
        return jnp.sin(theta * x + t), {"evaluations": jnp.ones(())}

    def run(weights, solver):
        return solve(field, jnp.array([0.3, -1.0]), weights, solver=solver, gradient=Direct(), has_aux=True)

    padded = jax.jit(run)
    for key in keys:
        solvers = [FixedStep(key, n) for n in (1, 4, 9)]
        fixed = jax.jit(lambda weights, solvers=solvers: [run(weights, solver) for solver in solvers])(weights)
        for solver, expected in zip(solvers, fixed, strict=True):
            got = padded(weights, pad(solver, 7))
            # The nodes of Tsitouras, which are no fractions, are rounded to 1 / 32768 in a padded solver.
            np.testing.assert_allclose(got.x, expected.x, rtol=1e-14 if key in EXACT else 1e-4)
            assert (int(got.nfe), int(got.n_accepted)) == (int(expected.nfe), int(expected.n_accepted))
            assert got.aux == expected.aux
            assert float(got.aux["evaluations"]) == int(got.nfe)
    assert padded._cache_size() == 1


def test_mapped_padded_solvers_equal_those_run_one_by_one(x64):
    solvers = [FixedStep("rk4", 3), FixedStep("euler", 7), FixedStep("dopri5", 2)]
    weights = BasisExpansion(PiecewiseConstant(5), jnp.linspace(-1, 1, 5))
    run = lambda solver: solve(lambda t, x, w: w * x, 1.0, weights, solver=solver, gradient=Direct())
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(pad(solver, 6) for solver in solvers))
    together = jax.jit(jax.vmap(run))(stacked)
    alone = jax.jit(lambda: [run(solver) for solver in solvers])()
    np.testing.assert_allclose(together.x, [s.x for s in alone], rtol=1e-14)
    np.testing.assert_array_equal(together.nfe, [s.nfe for s in alone])


def test_padded_solvers_refuse_what_they_cannot_do():
    run = lambda **kw: solve(lambda t, x, w: x, 1.0, solver=pad(FixedStep("rk4", 2), 4), **kw)
    with pytest.raises(ValueError, match="n_stages=3: 'rk4' needs 4"):
        pad(FixedStep("rk4", 2), 3)
    with pytest.raises(ValueError, match=r"ts are not known at trace time.*'traced' has no interpolant"):
        run(ts=[0.5])


def test_padded_solvers_read_weights_off_their_domain_by_time(x64):
    weights = BasisExpansion(PiecewiseConstant(4), jnp.arange(4.0))
    solvers = [FixedStep("rk4", 8), pad(FixedStep("rk4", 8), 4)]
    fixed, padded = (solve(lambda t, x, w: w * x, 1.0, weights, solver=s, t1=0.5).x for s in solvers)
    np.testing.assert_allclose(padded, fixed, rtol=1e-14)


def test_room_for_padded_steps_is_bounded_by_max_steps():
    def room(max_steps):
        solver = pad(FixedStep("rk4", 4), 4, max_steps)
        end = lambda x: jnp.sum(solve(lambda t, x, w: -(x**2), x, solver=solver).x)
        compiled = jax.jit(jax.grad(end)).lower(jnp.ones(1000)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert room(64) < 64 * 1000 * 4 * 4
    with pytest.raises(ValueError, match="max_steps"):
        pad(FixedStep("rk4", 65), 4, 64)
    assert [pad(FixedStep("euler", n), 1).max_steps for n in (4, 5000)] == [4096, 5000]
