"""A batch over the devices of a `jax.shard_map`, reduced by name: what one device computes, and what is exchanged."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import NODE18, Adaptive, FixedStep, ResidualUnit, batch_norm, solve, solve_until

PROGRAM = """
import dataclasses, sys
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

from benchmarks.collectives import find_collectives
from ode_nets import *
from ode_nets.weights import RDA, configuration_1

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
x, r = (jax.random.normal(jax.random.key(i), (8, 4, 4, 2)) for i in range(2))
unit = ResidualUnit(2, order="conv-bn-relu", skip_init=False, bias=False)
adaptive = Adaptive("heun_euler", 1e-2, 1e-2, max_steps=99)
evolution = configuration_1(RDA(), 2)
CASES = {
    "quick": [(adaptive, ACA(2), None)],
    "all": [
        (FixedStep("heun", 2), Checkpointed(), evolution),
        (FixedStep("heun", 2), Backsolve(), None),
        (FixedStep(Coupled("heun"), 2), Reversible(), None),
        (adaptive, Direct(), None),
        (adaptive, Checkpointed("block"), None),
        (adaptive, Backsolve(), None),
        (adaptive, ACA(2), evolution),
        (adaptive, Naive(), None),
        (Adaptive(Coupled("heun_euler"), 1e-2, 1e-2), Reversible(), None),
        (FixedStep("heun", jnp.int32(3), 5), ACA(2), None),
        (FixedStep("heun", jnp.int32(3), 5), Direct(), None),
    ],
}

for solver, method, evolution in CASES[sys.argv[1]]:
    block = OdeBlock(unit, PiecewiseConstant(2), solver, method, evolution=evolution)
    variables = block.init(jax.random.key(2), x)
    shared = block.clone(unit=dataclasses.replace(unit, axis_name="data"))
    if isinstance(solver, Adaptive):
        shared = shared.clone(solver=dataclasses.replace(solver, axis_name="data"))
    assert jax.tree.structure(shared.init(jax.random.key(2), x, train=True)) == jax.tree.structure(variables)
    # p starts at zero.
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])

    def loss(block, params, stats, x, r):
        variables = {"params": params, "batch_stats": stats}
        y, changed = block.apply(variables, x, train=True, mutable=["batch_stats", "solution"])
        return jnp.sum(y * r), (changed["batch_stats"], changed["solution"])

    slope = lambda block: jax.grad(partial(loss, block), has_aux=True)

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P())
    def of_device(params, stats, x, r):
        params, stats = jax.lax.pcast((params, stats), "data", to="varying")
        gradient, (stats, solution) = slope(shared)(params, stats, x, r)
        return jax.lax.psum(gradient, "data"), (jax.lax.pmean(stats, "data"), jax.lax.pmax(solution, "data"))

    arguments = params, variables["batch_stats"], x, r
    own, program = jax.jit(slope(block))(*arguments), jax.jit(of_device).lower(*arguments).compile()
    got = program(*arguments)
    what = (solver, method)
    assert jax.device_get(got[1][1]) == jax.device_get(own[1][1]), what
    assert int(own[1][1]["result"]) == 0, what
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(own[0]))
    for a, b in zip(jax.tree.leaves((got[0], got[1][0])), jax.tree.leaves((own[0], own[1][0]))):
        assert float(jnp.abs(a - b).max()) < 1e-13 * max(scale, 1), what
    # The gradient is no part of what loops exchange: statistics are, two channels of mean and square, and an error.
    found = find_collectives(program.as_text())
    inside = found.pop("other loops")
    assert inside["bytes"] <= 64 * inside["collectives"], (what, inside)
print("agree")
"""


@pytest.mark.parametrize("cases", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_every_gradient_method_on_four_devices_is_that_of_one(cases):
    """BN fields and evolved weights, varying types checked, in float64: gradients, statistics, counts."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", PROGRAM, cases]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.strip() == "agree", done.stderr[-2000:]


def in_lanes(function):
    """Two devices, as members of a `jax.vmap` with a named axis."""
    return jax.vmap(function, axis_name="data")


def test_statistics_of_a_batch_in_parts_are_those_of_all_of_it(x64):
    x = 3 + jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 5))
    params = {"scale": jnp.full(5, 2.0), "bias": jnp.ones(5)}
    y, used = in_lanes(lambda x: batch_norm(x, params, axis_name="data"))(x)
    expected, whole = batch_norm(x.reshape(8, 3, 3, 5), params)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-12, atol=1e-13)
    for name, value in whole.items():
        np.testing.assert_allclose(used[name], jnp.stack([value, value]), rtol=1e-13)


def test_a_norm_and_its_derivative_reduce_once_each():
    params = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    norm = lambda x: jax.grad(lambda x: jnp.sum(jnp.sin(batch_norm(x, params, axis_name="data")[0])))(x)
    text = str(jax.make_jaxpr(jax.shard_map(norm, mesh=mesh, in_specs=spec, out_specs=spec))(jnp.ones((4, 2))))
    assert text.count("psum") == 2


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_steps_by_the_error_of_all_samples(x64, norm):
    """A stiff sample on one device shortens the steps of all, as it does in one batch; without the name it does not."""
    rates = jnp.array([[0.5, 1.0], [2.0, 30.0]])
    field = lambda t, x, k: -k * x
    solver = Adaptive("bosh3", 1e-4, 1e-4, norm=norm)
    whole = solve(field, jnp.ones(4), rates.reshape(-1), solver=solver)
    shared = Adaptive("bosh3", 1e-4, 1e-4, norm=norm, axis_name="data")
    got = in_lanes(lambda k: solve(field, jnp.ones(2), k, solver=shared))(rates)
    assert got.n_accepted.tolist() == [int(whole.n_accepted)] * 2
    assert got.n_rejected.tolist() == [int(whole.n_rejected)] * 2
    np.testing.assert_allclose(got.x.reshape(-1), whole.x, rtol=1e-12)
    own = in_lanes(lambda k: solve(field, jnp.ones(2), k, solver=solver))(rates)
    assert own.n_accepted[0] < own.n_accepted[1]


def test_a_state_that_is_not_finite_on_one_device_stops_all():
    solver = Adaptive("bosh3", first_step=0.1, axis_name="data")
    x = jnp.array([[1.0], [jnp.nan]])
    got = in_lanes(lambda x: solve(lambda t, x, k: -x, x, solver=solver))(x)
    assert got.n_accepted.tolist() == [0, 0]
    assert (got.result != 0).all()


def test_devices_that_would_wait_for_each_other_are_refused():
    field = lambda t, x, k: -x + jax.lax.pmean(x, "data")
    run = lambda solver: in_lanes(lambda x: solve(field, x, solver=solver).x)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"reduces over the axis 'data'.*axis_name='data'"):
        run(Adaptive("bosh3"))
    assert run(Adaptive("bosh3", axis_name="data")).shape == run(FixedStep("heun", 2)).shape == (2, 3)
    until = partial(solve_until, event=lambda t, x: x[0] - 0.5, solver=Adaptive("bosh3", axis_name="data"))
    with pytest.raises(ValueError, match="reduce over the axis 'data': an event stops"):
        in_lanes(lambda x: until(lambda t, x, k: -x, x).solution.x)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="axis_name=3: expected a text"):
        Adaptive("bosh3", axis_name=3)


def test_variables_are_made_where_there_is_no_axis():
    net = NODE18(widths=(2,), axis_name="data", solver=Adaptive("heun_euler", 0.1, axis_name="data"))
    shapes = [jax.eval_shape(n.init, jax.random.key(0), jnp.ones((1, 8, 8, 3))) for n in (net, NODE18(widths=(2,)))]
    assert shapes[0]["params"] == shapes[1]["params"]
    assert ResidualUnit(2, axis_name="data").init(jax.random.key(0)).keys() == {"bn1", "bn2", "conv1", "conv2", "skip"}
