"""Programs that every revision of the library can run: what `benchmarks.against` compares.

    python benchmarks/cases.py mlp_heun_euler_1e-2 digits

Prints one line of JSON: for each case the shortest of its runs and the least processor time of tracing and compiling,
in seconds. Reads the library from the path, and nothing else of this repository.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.fields import MLP, ResidualUnit
from ode_nets.gradients import ACA, Checkpointed, Direct, solve
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.nn import NODE18, ContinuousNet
from ode_nets.tableaus import get_tableau
from ode_nets.weights import PiecewiseConstant

RUNS, COMPILATIONS, SECONDS = 15, 3, 4.0
"""Runs of a program, compilations of it, and seconds after which no more of either are started."""


def _solve(field: Any, x: Any, theta: Any, solver: Any, gradient: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    def loss(x: Any, theta: Any) -> Any:
        return jnp.sum(solve(field, x, theta, solver=solver, gradient=gradient).x ** 2)

    return jax.value_and_grad(loss, (0, 1)), (x, theta)


def mlp(solver: Any, gradient: Any, width: int = 64) -> Any:
    """An MLP of one hidden layer, batch 256."""
    field, x = MLP(width, (width,)), jax.random.normal(jax.random.key(0), (4 * width, width))
    return _solve(field, x, field.init(jax.random.key(1)), solver, gradient)


def unit(solver: Any, gradient: Any, channels: int = 64) -> Any:
    """The field of NODE18 on [16, 16, 16, channels]."""
    unit = ResidualUnit(channels, order="conv-bn-relu", skip_init=False, bias=False)
    x = jax.random.normal(jax.random.key(0), (16, 16, 16, channels))
    return _solve(lambda t, x, theta: unit.apply(theta, x, t)[0], x, unit.init(jax.random.key(1)), solver, gradient)


def network(net: Any, shape: tuple[int, ...]) -> Any:
    """Loss and gradient of a network in training."""
    x = jax.random.normal(jax.random.key(0), shape)
    variables = net.init(jax.random.key(1), x)

    def loss(params: Any, x: Any) -> Any:
        out, _ = net.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.mean(jax.nn.log_softmax(out[0] if isinstance(out, tuple) else out)[:, 0])

    return jax.value_and_grad(loss), (variables["params"], x)


def traced_steps(gradient: Any) -> Any:
    """A number of steps that is a variable of the program."""
    try:
        from ode_nets import TracedStep
    except ImportError:
        solver: Any = lambda n: FixedStep("euler", n, 500)
    else:
        solver = lambda n: TracedStep(get_tableau("euler"), n, 500)
    field = MLP(64, (64,))
    x = jax.random.normal(jax.random.key(0), (256, 64))

    def loss(theta: Any, n: Any) -> Any:
        return jnp.sum(solve(field, x, theta, solver=solver(n), gradient=gradient).x ** 2)

    return jax.value_and_grad(loss), (field.init(jax.random.key(1)), jnp.int32(64))


def _adaptive(make: Callable[..., Any], scheme: str, tol: float) -> Callable[[], Any]:
    return lambda: make(Adaptive(scheme, tol, tol, first_step=1.0, max_steps=1024), ACA())


CASES: dict[str, Callable[[], Any]] = {
    f"{name}_{scheme}_{tol}": _adaptive(make, scheme, float(tol))
    for name, make in (("mlp", mlp), ("unit", unit))
    for scheme in ("heun_euler", "dopri5")
    for tol in ("1e-2", "1e-5")
}
CASES |= {
    "mlp_rk4_32_direct": partial(mlp, FixedStep("rk4", 32), Direct()),
    "mlp_rk4_32_checkpointed": partial(mlp, FixedStep("rk4", 32), Checkpointed()),
    "mlp_rk4_256_aca": partial(mlp, FixedStep("rk4", 256), ACA()),
    "traced_steps": partial(traced_steps, ACA(None)),
    "digits": lambda: network(
        ContinuousNet(widths=(8, 16), basis=PiecewiseConstant(2), solver=FixedStep("rk4", 2)), (64, 8, 8, 1)
    ),
    "continuous_net": lambda: network(
        ContinuousNet(basis=PiecewiseConstant(4), solver=FixedStep("rk4", 4)), (32, 32, 32, 3)
    ),
    "node18": lambda: network(
        NODE18(widths=(8, 16, 32, 64), solver=Adaptive("heun_euler", 1e-2, 1e-2), gradient=ACA()), (32, 32, 32, 3)
    ),
}


def measure(case: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the shortest run, and least ones of the processor to trace and compile."""
    compiled, args = jax.jit(jnp.sin).lower(1.0).compile(), (1.0,)  # a process's first compilation loads the compiler
    compilations: list[float] = []
    while len(compilations) < COMPILATIONS and sum(compilations) < SECONDS:
        jax.clear_caches()
        function, args = case()
        began = time.process_time()
        compiled = jax.jit(function).lower(*args).compile()
        compilations.append(time.process_time() - began)
    jax.block_until_ready(compiled(*args))
    runs: list[float] = []
    while len(runs) < RUNS and sum(runs) < SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        runs.append(time.perf_counter() - start)
    return {"compile": min(compilations), "run": min(runs)}


if __name__ == "__main__":
    print(json.dumps({name: measure(CASES[name]) for name in sys.argv[1:] or CASES}))
