"""Where the time of Ott's images goes: CPU seconds an iteration, in tiles and without, and what they consist of.

    python -m benchmarks.ott
    python -m benchmarks.ott --tasks mnist --n-steps 4 --repeats 1 --out /tmp/ott.json

For one seed of `experiments.ott grid mnist` or `cifar10` at a batch of 16: compilation; an iteration at each number of
Euler steps, which is a forward pass and a replay with gradients of as many field evaluations; a test batch at the first
of those numbers; and of one field evaluation the value, the value with gradients, and in tiles the 36 matrix
products alone.
Seconds are those of all threads (`time.process_time`), the least of `repeats`, as cores may be shared.
Writes benchmarks/results/ott_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import default_path, show, write
from experiments.ott.programs import begin, hits_under, training
from experiments.ott.tasks import TASKS, Task
from experiments.ott.tiles import as_computed
from experiments.records.command import command_line
from ode_nets import FixedStep, pad

LENGTH = 4
"""Field evaluations in a loop that times one."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    tasks: tuple[str, ...] = ("mnist", "cifar10")
    """Of the tasks of `experiments.ott` those with images."""
    n_steps: tuple[int, ...] = (4, 16, 64)
    """Euler steps of training."""
    batch_size: int = 16
    """Images of an iteration, and of a test batch."""
    repeats: int = 3
    """Calls of each, after one that is not counted."""
    out: Path | None = None
    """Where the JSON goes."""


def cpu_seconds(function: Callable[..., Any], *args: Any, repeats: int) -> tuple[float, float]:
    """Seconds that all threads take to compile `function` and to call it."""
    began = time.process_time()
    program = jax.jit(function).lower(*args).compile()
    compiled, samples = time.process_time() - began, []
    for _ in range(repeats + 1):
        began = time.process_time()
        jax.block_until_ready(program(*args))
        samples.append(time.process_time() - began)
    return compiled, min(samples[1:])


def measure(options: Options, task: Task) -> dict[str, float]:
    """Seconds of one seed by what they are spent on."""
    x = jax.random.uniform(jax.random.key(0), (options.batch_size, *task.shape))
    y = jnp.arange(len(x)) % task.n_classes
    seconds = lambda function, *args: cpu_seconds(function, *args, repeats=options.repeats)
    state = begin(task, jax.random.split(jax.random.key(1), 1))
    found = {}
    train = training(task, "euler", max(options.n_steps), own=False, many=1)
    for n in options.n_steps:
        found["compile"], found[f"iteration, {n} steps"] = seconds(train, state, x, y, n)
    n = options.n_steps[0]
    solver = pad(FixedStep("euler", n), 1)
    test = lambda params, x, y: hits_under(task, params, x, y, solver)
    _, found[f"test batch, {n} steps"] = seconds(test, state["params"], x, y)

    def forward(x: jax.Array, theta: Any) -> jax.Array:
        field, theta = as_computed(task.field, theta)
        return jax.lax.fori_loop(0, LENGTH, lambda _, x: x + 0.1 * field(0.0, x, theta), x)

    def gradients(x: jax.Array, theta: Any) -> Any:
        field, theta = as_computed(task.field, theta)

        def body(_: int, carry: Any) -> Any:
            y, pull = jax.vjp(lambda x, theta: x + 0.1 * field(0.0, x, theta), carry[0], theta)
            into_x, into_theta = pull(carry[1])
            return y, into_x, jax.tree.map(jnp.add, carry[2], into_theta)

        return jax.lax.fori_loop(0, LENGTH, body, (x, x, jax.tree.map(jnp.zeros_like, theta)))

    theta = jax.tree.map(lambda leaf: leaf[0], state["params"]["field"])
    found["field"] = seconds(forward, x, theta)[1] / LENGTH
    found["field and gradients"] = seconds(gradients, x, theta)[1] / LENGTH
    used = as_computed(task.field, theta)[1]
    if isinstance(used, dict):
        tiles = len(x) * int(np.prod([-(-side // 4) for side in task.shape[:2]]))
        read = jnp.ones((36, tiles, used["products"].shape[1]))
        found["products of a field"] = seconds(jnp.matmul, read, used["products"])[1]
    return found


def main() -> None:
    """The command line."""
    options = command_line(Options, "python -m benchmarks.ott", __doc__)
    results: dict[str, Any] = {}
    for name in options.tasks:
        task = dataclasses.replace(TASKS[name], batch_size=options.batch_size)
        field: Any = task.field
        plain = dataclasses.replace(task, field=dataclasses.replace(field, tiled=False))
        results[name] = {"convolution": measure(options, plain), "tiles": measure(options, task)}
        of = results[name]
        rows = [[key, *(of[form].get(key, "") for form in of)] for key in of["tiles"]]
        show(f"{name}: CPU seconds", ["", *of], rows)
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key != "out"}
    print(f"written to {write(options.out or default_path('ott'), 'ott', {'settings': settings, 'tasks': results})}")


if __name__ == "__main__":
    main()
