"""Evolved weights: the two configurations, special cases, kernels, gradients, and refusals."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import (
    ACA,
    MLP,
    RDA,
    Adaptive,
    Backsolve,
    BasisExpansion,
    Box,
    Checkpointed,
    Constant,
    Dirac,
    Direct,
    Evolution,
    Evolved,
    Exponential,
    FixedStep,
    Flattened,
    FlowStep,
    Joint,
    PiecewiseConstant,
    PiecewiseLinear,
    Recorded,
    Result,
    Still,
    WeightFunction,
    configuration_1,
    configuration_2,
    get_scheme,
    pad,
    solve,
)
from ode_nets.weights import kernel_matrix

RNG = np.random.default_rng(0)
W0 = {"a": jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32), "b": jnp.asarray(RNG.normal(size=2), jnp.float32)}
X0 = RNG.normal(size=(4, 2))


def field(t, x, theta):
    return jnp.tanh(x @ theta["a"] + theta["b"])


def linear(w, p):
    return jax.tree.map(lambda leaf: p["rate"] * leaf, w)


def rotation(w, p):
    """A smooth q that couples the leaves."""
    return {"a": p["m"] @ w["a"] - jnp.outer(w["b"], w["b"]), "b": jnp.sin(w["a"] @ w["b"])}


def wide(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)


def assert_same(got, want, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


# ---------------------------------------------------------------------------------------------------------
# Configurations and special cases
# ---------------------------------------------------------------------------------------------------------


def test_configurations_are_the_papers_recursions(x64):
    """Eq. 9: five steps, each with its own weights. App. A.1: two steps, before and after ten of the weights."""
    q, w0, x0 = RDA(advection=0.3, reaction=0.2), {"k": jnp.asarray(RNG.normal(size=(3, 3, 2, 2)))}, jnp.asarray(X0)
    p = q.init(jax.random.key(0), w0)
    f = lambda t, x, theta: jnp.tanh(x @ theta["k"].sum((0, 1)))

    def by(configuration, n_steps):
        solver = FixedStep("euler", n_steps)
        return solve(f, x0, Evolved(w0, p, configuration(q)), solver=solver, gradient=Direct()).x

    x, w = x0, w0
    for _ in range(5):
        x, w = x + f(0, x, w) / 5, q.flow(w, p, 1 / 5)
    np.testing.assert_allclose(by(configuration_1, 5), x, rtol=1e-14)
    w = w0
    for _ in range(10):
        w = q.flow(w, p, 1 / 10)
    half = x0 + f(0, x0, w0) / 2
    np.testing.assert_allclose(by(configuration_2, 2), half + f(0, half, w) / 2, rtol=1e-14)


@pytest.mark.parametrize(
    ("solver", "weight_solver"),
    [(FixedStep("rk4", 3), FlowStep(4)), (Adaptive("heun_euler", rtol=1e-2, max_steps=16), FixedStep("euler", 4))],
    ids=["fixed steps, flow", "adaptive steps, euler"],
)
def test_still_weights_are_the_neural_ode_exactly(solver, weight_solver):
    """q = 0 and Dirac, bit by bit, under any two grids; the gradient is that of `Constant` too."""
    evolution = Evolution(Still(), weight_solver, PiecewiseConstant(2))
    loss = lambda weights: jnp.sum(solve(field, X0, weights, solver=solver, gradient=ACA()).x ** 2)
    value, slope = jax.jit(jax.value_and_grad(loss))(Evolved(W0, {}, evolution))
    want, want_slope = jax.jit(jax.value_and_grad(loss))(Constant(W0))
    assert value == want
    assert_same(slope.w0, want_slope.theta, rtol=1e-5)


def test_one_step_of_a_network_is_a_hypernetwork():
    """From weights of zero it writes all weights of the parent from an embedding; eq. 2 adds w0 in general."""
    keys = jax.random.split(jax.random.key(0), 3)
    embedding = jax.random.normal(keys[0], (3,))
    p = {"embedding": embedding, "matrix": jax.random.normal(keys[1], (6, 3)), "bias": jax.random.normal(keys[2], (6,))}
    hyper = lambda p: jnp.tanh(p["matrix"] @ p["embedding"] + p["bias"])
    q = lambda w, p: {"a": hyper(p)[:4].reshape(2, 2), "b": hyper(p)[4:]}
    evolution = Evolution(q, FixedStep("euler", 1), PiecewiseConstant(1), times=(1,))
    generated = q(None, p)
    zero = jax.tree.map(jnp.zeros_like, W0)
    read = jax.jit(lambda w0: Evolved(w0, p, evolution).at(0.3))
    assert_same(read(zero), generated, rtol=1e-5)
    assert_same(read(W0), jax.tree.map(jnp.add, W0, generated), rtol=1e-5)


def test_any_q_evolves_any_weights(x64):
    """A linear map has its exponential; a perceptron on the flat vector and a convolution their own solves."""
    w0 = wide(W0)
    evolution = Evolution(linear, Adaptive("dopri5", rtol=1e-9, atol=1e-12), PiecewiseConstant(1), times=(1,))
    read = jax.jit(lambda w0, p, evolution: Evolved(w0, p, evolution).at(1.0), static_argnums=2)
    got = read(w0, {"rate": jnp.asarray(-0.7)}, evolution)
    assert_same(got, jax.tree.map(lambda leaf: np.exp(-0.7) * leaf, w0), rtol=1e-8)

    q = Flattened(MLP(size=6, hidden=(5,)))
    evolution = Evolution(q, FixedStep("midpoint", 3), PiecewiseLinear(4))
    p = wide(evolution.init(jax.random.key(0), w0))
    flat = jnp.concatenate([w0["a"].ravel(), w0["b"]])
    unit = lambda t, x, p: q.unit.apply(p, x)[0]
    end = jax.jit(lambda p: solve(unit, flat, p, solver=FixedStep("midpoint", 3), gradient=Direct()).x)(p)
    got = read(w0, p, evolution)
    np.testing.assert_allclose(jnp.concatenate([got["a"].ravel(), got["b"]]), end, rtol=1e-13)

    taps = jnp.asarray(RNG.normal(size=(3, 3)))
    smooth = lambda w, p: jax.scipy.signal.convolve2d(w, p, mode="same")
    w0, evolution = jnp.asarray(RNG.normal(size=(5, 5))), Evolution(smooth, FixedStep("euler", 2), PiecewiseLinear(3))
    half = w0 + smooth(w0, taps) / 2
    np.testing.assert_allclose(read(w0, taps, evolution), half + smooth(half, taps) / 2, rtol=1e-12)


def test_reads_like_the_expansion_it_computes(x64):
    """The protocol of weight functions, alone, inside `Joint`, and under a solver of traced step count."""
    evolution = Evolution(rotation, FixedStep("heun", 6), PiecewiseConstant(3))
    weights = Evolved(wide(W0), {"m": jnp.asarray(RNG.normal(size=(2, 2)))}, evolution)
    path, expanded = evolution.path(weights.w0, weights.p), weights.expanded()
    assert isinstance(weights, WeightFunction)
    assert not weights.continuous
    assert weights.domain == (0.0, 1.0)
    assert weights.n_sections(6) == 3
    for k in range(3):
        want = jax.tree.map(lambda leaf, k=k: leaf[2 * k], path)
        assert_same(weights.at(k / 3), want, rtol=0)
        assert_same(weights.at_node(2 * k, 6, 1, 2), want, rtol=0)
    section = jax.tree.map(lambda leaf: leaf[1], weights.sections(3))
    assert_same(section.at_node(1, 2, 0, 1), expanded.at(0.5), rtol=0)

    joined = lambda weights: Joint({"w": weights})
    read_jointly = lambda t, x, theta: field(t, x, theta["w"])
    solvers = (FixedStep("heun", 5), pad(FixedStep("heun", 5), 4))

    @jax.jit
    def run(weights):
        return [solve(read_jointly, X0, joined(weights), solver=s, gradient=Direct()).x for s in solvers]

    jax.tree.map(np.testing.assert_array_equal, run(weights), run(expanded))


class Explosion:
    """dw/dt = p w^2 has no solution at t = 1 / (p w0); so do steps of it end."""

    def __call__(self, w, p):
        return p * w * w

    def flow(self, w, p, h):
        return w + h * self(w, p)


@pytest.mark.parametrize("weight_solver", [FlowStep(8), FixedStep("euler", 8), Adaptive("bosh3", max_steps=8)])
def test_failed_weight_odes_show_in_the_result(x64, weight_solver):
    """Weights that blow up before t = 1 leave theta NaN and the state with a code, though tanh hides the infinite."""
    evolution = Evolution(Explosion(), weight_solver, PiecewiseConstant(2), (0.5, 1))
    weights = Evolved(jnp.ones(2), jnp.asarray(1e30), evolution)
    saturated = lambda t, x, w: jnp.tanh(w * x)
    methods = ((FIXED, Checkpointed()), (FIXED, ACA(2)), (ADAPTIVE, ACA()))

    @jax.jit
    def run(weights):
        return [solve(saturated, jnp.ones(2), weights, solver=s, gradient=g).result for s, g in methods]

    assert run(weights) == [Result.NON_FINITE] * 3


def test_other_domains_stretch_the_weight_ode(x64):
    """Twice the time is twice the rate."""
    w0 = wide(W0)
    long = Evolution(linear, FixedStep("rk4", 4), PiecewiseLinear(5), domain=(1.0, 3.0))
    unit = Evolution(linear, FixedStep("rk4", 4), PiecewiseLinear(5))
    got = Evolved(w0, {"rate": jnp.asarray(0.5)}, long).at(2.5)
    assert_same(got, Evolved(w0, {"rate": jnp.asarray(1.0)}, unit).at(0.75), rtol=1e-14)


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


def theta_of(kernel, n, t=Fraction(1), span=1.0):
    """int_0^t K(t - tau) cos(tau) dtau on n steps."""
    return kernel_matrix(kernel, [t], n, span)[0] @ np.cos(span * np.arange(n + 1) / n)


@pytest.mark.parametrize(
    ("kernel", "exact"),
    [
        (Exponential(3.0), (9 * np.cos(1) + 3 * np.sin(1) - 9 * np.exp(-3)) / 10),
        (Box(0.25), (np.sin(1) - np.sin(0.75)) / 0.25),
        (Box(2.0), np.sin(1) / 2),
        (lambda s: s, 1 - np.cos(1)),
    ],
    ids=["exponential", "box", "box longer than the past", "function"],
)
def test_kernels_are_integrated_to_second_order(kernel, exact):
    errors = [abs(theta_of(kernel, n) - exact) for n in (16, 32, 64)]
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 2, atol=0.05)


def test_kernels_written_in_jax_are_those_written_in_numpy():
    """Under jit too: their values are constants of the program."""
    kernel = lambda s: 3.0 * jnp.exp(-3.0 * s)
    evolution = lambda: Evolution(Still(), FlowStep(8), PiecewiseConstant(2), kernel=kernel)
    read = jax.jit(lambda w0: Evolved(w0, {}, evolution()).at(0.9))
    want = kernel_matrix(Exponential(3.0), [Fraction(1, 2)], 8)[0].sum()
    assert_same(read(W0), jax.tree.map(lambda leaf: want * leaf, W0), rtol=1e-5)


def test_kernels_see_real_time_and_start_from_nothing(x64):
    """On a domain of length 2 ages are up to 2; theta(0) = 0 of a kernel without a delta."""
    exact = (9 * np.cos(2) + 3 * np.sin(2) - 9 * np.exp(-6)) / 10
    np.testing.assert_allclose(theta_of(Exponential(3.0), 512, span=2.0), exact, rtol=1e-4)
    evolution = Evolution(rotation, FixedStep("heun", 4), PiecewiseLinear(5), kernel=Exponential(3.0))
    weights = Evolved(wide(W0), {"m": jnp.eye(2)}, evolution)
    assert_same(weights.at(0.0), jax.tree.map(jnp.zeros_like, weights.w0), atol=0)
    path = evolution.path(weights.w0, weights.p)
    remember = lambda solver: Evolution(rotation, solver, PiecewiseLinear(2), kernel=Exponential(3.0), grid=64)
    adaptive, stepped = (
        Evolved(weights.w0, weights.p, remember(solver)).at(1.0)
        for solver in (Adaptive("dopri5", rtol=1e-9, atol=1e-9), FixedStep("rk4", 64))
    )
    assert_same(adaptive, stepped, rtol=1e-7)
    row = kernel_matrix(Exponential(3.0), [Fraction(1, 2)], 4)[0]
    assert_same(weights.at(0.5), jax.tree.map(lambda leaf: jnp.tensordot(row, leaf, 1), path), rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------

FIXED, ADAPTIVE = FixedStep("heun", 4), Adaptive("heun_euler", rtol=1e-2, atol=1e-2, max_steps=8)


@pytest.mark.parametrize(
    ("solver", "kernel", "methods"),
    [
        (FIXED, Exponential(2.0), (Checkpointed("block"), ACA(2))),
        pytest.param(ADAPTIVE, Dirac(), (ACA(),), marks=pytest.mark.slow),
        pytest.param(FIXED, Dirac(), (Checkpointed(), Checkpointed("block"), ACA(2)), marks=pytest.mark.slow),
        pytest.param(ADAPTIVE, Exponential(2.0), (Checkpointed(), ACA()), marks=pytest.mark.slow),
    ],
)
def test_methods_agree_on_w0_and_p(x64, solver, kernel, methods):
    """Some of them on the state, one more on the weights, and a central difference, in float64."""
    evolution = lambda method: Evolution(rotation, FIXED, PiecewiseLinear(5), kernel=kernel, gradient=method)
    p = {"m": jnp.asarray(RNG.normal(size=(2, 2)))}

    def loss(w0, p, method, weight_method):
        weights = Evolved(w0, p, evolution(weight_method))
        return jnp.sum(jnp.cos(solve(field, X0, weights, solver=solver, gradient=method).x))

    @jax.jit
    def run(w0, p):
        pairs = [(Direct(), Direct()), *((method, Direct()) for method in methods), (Direct(), ACA(2))]
        return [jax.value_and_grad(loss, (0, 1))(w0, p, *pair) for pair in pairs]

    (_, want), *others = run(wide(W0), p)
    for _, got in others:
        assert_same(got, want, rtol=1e-11, atol=1e-13)
    if isinstance(solver, FixedStep):
        moved = lambda s: run(jax.tree.map(lambda leaf: leaf + s, wide(W0)), {"m": p["m"] + s})[0][0]
        slope = sum(leaf.sum() for leaf in jax.tree.leaves(want))
        np.testing.assert_allclose((moved(1e-5) - moved(-1e-5)) / 2e-5, slope, rtol=1e-8)


def test_exact_flow_and_fixed_steps_have_one_gradient_in_the_limit(x64):
    """The semigroup differentiated, against many RK4 steps of eq. 8; and `Backsolve` against both."""
    q, w0 = RDA(0.3, 0.4, 0.2, sigma=None, sharing="tensor"), jnp.asarray(RNG.normal(size=(3, 3, 2, 2)))
    p, f = q.init(jax.random.key(0), w0), lambda t, x, w: jnp.tanh(x @ w.sum(0)[0])

    def loss(w0, p, weight_solver, method):
        weights = Evolved(w0, p, Evolution(q, weight_solver, PiecewiseLinear(5)))
        return jnp.sum(solve(f, X0, weights, solver=FixedStep("rk4", 16), gradient=method).x ** 2)

    @jax.jit
    def run(w0, p):
        cases = ((FlowStep(4), Direct()), (FixedStep("rk4", 64), Direct()), (FlowStep(4), Backsolve()))
        return [jax.grad(loss, (0, 1))(w0, p, *case) for case in cases]

    exact, stepped, adjoint = run(w0, p)
    assert_same(stepped, exact, rtol=1e-6, atol=1e-8)
    assert_same(adjoint, exact, rtol=1e-3, atol=1e-5)


def test_gradient_of_the_weight_function_is_one_of_w0_and_p():
    weights = Evolved(W0, {"rate": jnp.asarray(0.3)}, configuration_1(linear, 3))
    loss = lambda weights: jnp.sum(solve(field, X0, weights, solver=FixedStep("euler", 3), gradient=ACA(2)).x)
    slope = jax.jit(jax.grad(loss))(weights)
    assert isinstance(slope, Evolved)
    assert jax.tree.structure(slope) == jax.tree.structure(weights)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------


def expanded(q, w0=None, **options):
    evolution = Evolution(q, FixedStep("euler", 2), PiecewiseConstant(2), **options)
    return Evolved(W0 if w0 is None else w0, {}, evolution).expanded()


class Raveled(Still):
    """A q whose flow, which FlowStep takes instead of q, loses the shape of w."""

    def flow(self, w, p, s):
        return jax.tree.map(jnp.ravel, w)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Evolution(Raveled(), FlowStep(2), PiecewiseConstant(2)).path({"a": jnp.ones((2, 2))}, {}),
            r"q.flow of .* returned\['a'\] of shape \(4,\) .*expected \(2, 2\)",
        ),
        (lambda: expanded(lambda w, p: w["a"]), "returned the structure .*: expected that of w0"),
        (lambda: expanded(lambda w, p: w | {"b": w["b"][:1]}), r"returned\['b'\] of shape \(1,\) .*those of w0"),
        (lambda: expanded(lambda w, p: w, w0={"n": jnp.arange(3)}), r"w0\['n'\] has dtype int"),
        (lambda: expanded(lambda w, p: w, w0={}), "w0 holds no array"),
        (lambda: expanded(Still(), kernel=Box(0.3)), r"Box\(width=0.3\) does not match the weight grid of step 0.5"),
        (lambda: expanded(Still(), kernel=lambda s: s[:1]), r"kernel gave .* one finite number an age"),
        (lambda: expanded(Still(), kernel=lambda s: 1 / s), "kernel gave .* one finite number an age"),
        (lambda: expanded(Still(), kernel=Exponential(9.0)), r"Exponential\(rate=9.0\) is too narrow .* of step 0.5"),
        (lambda: Evolution(linear, FixedStep("euler", np.array(2)), PiecewiseConstant(2)), "expected FlowStep, Fixed"),
        (
            lambda: Evolution(linear, Recorded.at(get_scheme("rk4"), np.ones(1), 1), PiecewiseConstant(1)),
            r"solver=Recorded\(rk4, .*expected FlowStep, Fixed",
        ),
        (lambda: expanded(Still(), times=(0, 0.3)), "times contains 3/10, which is no point k / 2"),
        (lambda: expanded(Still(), times=(0, 1.5)), "expected 2 fractions in"),
        (lambda: expanded(Still(), times=(0,)), "expected 2 fractions in"),
        (lambda: expanded(Still(), grid=4), r"grid=4: expected None or 2, the steps of FixedStep"),
        (lambda: Evolution(linear, Adaptive("bosh3"), PiecewiseConstant(2), grid=3), "times contains 1/2"),
        (lambda: expanded(Still(), domain=(1, 1)), "expected .* with t0 < t1"),
        (lambda: expanded("RDA"), "q='RDA': expected a function"),
        (lambda: Evolution(linear, FlowStep(2), PiecewiseConstant(2)), "has no flow"),
        (lambda: Evolution(Still(), FlowStep(2), BasisExpansion), "basis=BasisExpansion: expected a Basis"),
        (lambda: configuration_2(Still(), 4, 10), "n_steps=4 does not fit n_weight_steps=10.*multiple of n_steps - 1"),
        (lambda: FlowStep(0), "n_steps=0"),
        (lambda: Box(0.0), "width=0.0"),
        (lambda: Exponential(-1.0), "rate=-1.0"),
    ],
)
def test_bad_input_is_named_at_trace_time(make, message):
    with pytest.raises(ValueError, match=message), np.errstate(divide="ignore"):
        jax.eval_shape(lambda: jax.tree.leaves(make()))


def test_weights_that_are_numbers_flow_as_arrays_do():
    class Still:
        def flow(self, w, p, h):
            return jax.tree.map(lambda a: a * (1 - h), w)

        def __call__(self, w, p):
            return jax.tree.map(jnp.negative, w)

    evolution = Evolution(Still(), FlowStep(4), PiecewiseConstant(2))
    np.testing.assert_array_equal(evolution.path(1.0, {}), evolution.path(jnp.float32(1.0), {}))
