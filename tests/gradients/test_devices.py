"""Solves inside `jax.shard_map`, which checks what varies between devices, and on arrays with explicit sharding."""

import subprocess
import sys

import pytest

PROGRAM = """
import os
import sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ode_nets import ACA, Adaptive, Backsolve, Direct, FixedStep, solve

field = lambda t, x, w: jnp.tanh(x @ w)
x, w = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (3, 3))


def loss(w, x, solver, method):
    return jnp.sum(solve(field, x, w, solver=solver, gradient=method).x ** 2)


def mesh(kind):
    return jax.make_mesh((2,), ("d",), axis_types=(kind,))


SOLVERS = FixedStep("rk4", 4), FixedStep("rk4", jnp.int32(4), 6), Adaptive("bosh3", 1e-6, 1e-6, max_steps=60)
METHODS = Direct(), ACA(2), Backsolve()
for i, solver in enumerate(SOLVERS):
    # Each grid and each method once, or all with all.
    for method in METHODS if sys.argv[1] == "all" else METHODS[i : i + 1]:
        own = jax.grad(lambda w: loss(w, x, solver, method))(w)

        @jax.jit
        @partial(jax.shard_map, mesh=mesh(jax.sharding.AxisType.Auto), in_specs=(P(), P("d")), out_specs=P())
        def sharded(w, x):
            return jax.grad(lambda w: jax.lax.psum(loss(w, x, solver, method), "d"))(w)

        with jax.set_mesh(mesh(jax.sharding.AxisType.Explicit)):
            arguments = jax.device_put(w, P()), jax.device_put(x, P("d"))
            explicit = jax.device_get(jax.jit(jax.grad(lambda w, x: loss(w, x, solver, method)))(*arguments))
        # Steps of each device's own differ by what the tolerance allows.
        for got in (sharded(w, x), explicit):
            assert float(jnp.abs(got - own).max()) < (2e-4 if isinstance(solver, Adaptive) else 1e-5), (solver, method)
print("agree")
"""


@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_gradients_are_those_of_one_device(which):
    """Varying types checked, and arrays of explicit sharding, under three methods on three grids."""
    command = [sys.executable, "-c", PROGRAM, which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout.strip() == "agree", done.stderr[-2000:]
