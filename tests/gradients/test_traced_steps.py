"""A traced number of steps: the values and gradients of `FixedStep`, in one program, at its own cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, MLP, BasisExpansion, Constant, Direct, FixedStep, PiecewiseConstant, Result, solve

FIELD = MLP(2, (6,), time_aware=True)
KEYS = jax.random.split(jax.random.key(0), 3)


def weights(kind):
    if kind == "expansion":
        tree = BasisExpansion(PiecewiseConstant(3), jax.vmap(FIELD.init)(KEYS))
    else:
        tree = FIELD.init(KEYS[0]) if kind == "bare" else Constant(FIELD.init(KEYS[0]))
    return jax.tree.map(lambda leaf: leaf.astype(float), tree)


def loss(theta, x0, solver):
    solution = solve(FIELD, x0, theta, solver=solver, gradient=ACA(None) if solver.length is None else Direct())
    return jnp.sum(solution.x**2), solution


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("kind", "scheme"), [("bare", "heun"), ("constant", "euler"), ("expansion", "midpoint")])
def test_equals_fixed_steps_in_one_program(kind, scheme):
    theta, x0 = weights(kind), jax.random.normal(KEYS[1], (3, 2))
    both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    traced = jax.jit(lambda theta, x0, n: both(theta, x0, FixedStep(scheme, n, 8)))
    fixed_steps = jax.jit(lambda theta, x0, n: both(theta, x0, FixedStep(scheme, n)), static_argnums=2)
    for n in (5, 1) if scheme == "euler" else (5,):
        (value, solution), slopes = traced(theta, x0, n)
        (expected, fixed), wanted = fixed_steps(theta, x0, n)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), slopes, wanted)
        assert (solution.nfe, solution.n_accepted, solution.result) == (fixed.nfe, n, Result.SUCCESS)
    assert traced._cache_size() == 1
    for n in (0, 9):
        (value, solution), slopes = traced(theta, x0, n)
        assert solution.result == Result.MAX_STEPS
        assert all(bool(jnp.isnan(leaf).all()) for leaf in jax.tree.leaves((value, slopes)) if leaf.size)


@pytest.mark.usefixtures("x64")
def test_maps_over_weights_and_over_step_counts():
    thetas = jax.tree.map(lambda leaf: leaf.astype(float), jax.vmap(FIELD.init)(KEYS))
    x0 = jnp.ones((2, 2))
    slope = jax.grad(lambda theta, n: loss(theta, x0, FixedStep("euler", n, 6))[0])
    shared = jax.jit(jax.vmap(slope, in_axes=(0, None)))(thetas, 4)
    counts, mapped = jnp.array([4, 2, 7]), jax.jit(jax.vmap(slope, in_axes=(0, 0)))
    own = mapped(thetas, counts)
    # A lane that would take more than there is room for is lost, and the others are not.
    assert all(bool(jnp.isnan(leaf[2]).all()) for leaf in jax.tree.leaves(own))
    fixed = jax.jit(lambda theta, n: jax.grad(lambda w: loss(w, x0, FixedStep("euler", n))[0])(theta), static_argnums=1)
    for i, n in enumerate((4, 2)):
        theta = jax.tree.map(lambda leaf, i=i: leaf[i], thetas)
        for got, n_got in ((shared, 4), (own, n)):
            wanted = fixed(theta, n_got)
            jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-12), got, wanted)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="max_steps=0"):
        FixedStep("euler", 1, 0)
    with pytest.raises(ValueError, match="n_steps=9"):
        FixedStep("euler", jnp.int32(9), 8)
    with pytest.raises(ValueError, match=r"n_steps=.*2.9.*expected an integer"):
        FixedStep("euler", jnp.float32(2.9))
    x0, solver = jnp.ones(2), FixedStep("euler", jnp.int32(2))
    with pytest.raises(ValueError, match="reverse"):
        jax.jvp(lambda x: solve(FIELD, x, weights("bare"), solver=solver, gradient=ACA()).x, (x0,), (x0,))
