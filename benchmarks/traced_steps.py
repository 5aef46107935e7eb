"""A number of steps that changes while a model trains: one traced program against one program a number.

    python -m benchmarks.traced_steps
    python -m benchmarks.traced_steps --tasks landscape --n-steps 4 --repeats 1 --out /tmp/traced.json

Times loss and gradient of Ott's networks, five seeds side by side, under `FixedStep` whose number of steps is an array,
with `ACA(None)`, where one program serves every number, and is an integer, with `Direct` and `Checkpointed`, which
compile anew for each: milliseconds a call, seconds of compilation, and temporary memory. What adaptation saves by one
program is the compilation of every further number of steps that it visits; what it pays is the difference of the calls.
Writes benchmarks/results/traced_steps_<platform>.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness import Measurement, compare, default_path, show, write
from experiments.ott.programs import classify, draw
from experiments.ott.tasks import TASKS, Task
from experiments.records.command import command_line
from ode_nets import ACA, Checkpointed, Direct, FixedStep, GradientMethod

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    tasks: tuple[str, ...] = ("landscape", "spheres2")
    """Networks of `experiments.ott.tasks`, of those whose data are generated."""
    n_steps: tuple[int, ...] = (4, 16, 64)
    """Steps of Euler."""
    max_steps: int = 500
    """Room of the traced program."""
    seeds: int = 5
    """Networks side by side."""
    repeats: int = 10
    """Samples of each."""
    out: Path | None = None
    """Where the JSON goes."""


def gradient_of(task: Task, solver: Callable[[Any], Any], gradient: GradientMethod) -> Callable[..., PyTree]:
    """Loss and gradient of all seeds on one batch, with the solver that `solver` makes of a number of steps."""

    def one(params: PyTree, x: jax.Array, y: jax.Array, n: Any) -> Any:
        def loss_of(params: PyTree) -> jax.Array:
            logits, _ = classify(task, params, x, solver(n), gradient)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.value_and_grad(loss_of)(params)

    return jax.vmap(one, in_axes=(0, None, None, None))


def measure_task(options: Options, name: str) -> dict[str, Measurement]:
    """Measurements by `"<n> <kind>"`."""
    task = TASKS[name]
    (x, y), _ = task.load(0, task.batch_size, 1, None)
    params = jax.vmap(task.init)(jax.random.split(jax.random.key(0), options.seeds))
    variants = {}
    for n in options.n_steps:
        traced = gradient_of(task, lambda n: FixedStep("euler", n, options.max_steps), ACA(None))
        kinds = {"traced": lambda *a, f=traced, n=n: f(*a[:3], a[3][str(n)])}
        for kind, gradient in (("direct", Direct()), ("checkpointed", Checkpointed())):
            fixed = gradient_of(task, lambda _, n=n: FixedStep("euler", n), gradient)
            kinds[kind] = lambda *a, f=fixed: f(*a[:3], 0)
        variants |= {f"{n} {kind}": function for kind, function in kinds.items()}
    counts = {str(n): jnp.int32(n) for n in options.n_steps}
    batch = draw(jax.random.key(1), x, y, task.batch_size)
    return compare(variants, params, *batch, counts, repeats=options.repeats)


def main() -> None:
    """The command line."""
    options = command_line(Options, "python -m benchmarks.traced_steps", __doc__)
    results, rows = {}, []
    for name in options.tasks:
        found = measure_task(options, name)
        results[name] = {key: measurement.record() for key, measurement in found.items()}
        for n in options.n_steps:
            of = [results[name][f"{n} {kind}"] for kind in ("traced", "direct", "checkpointed")]
            rows.append([f"{name}, {n} steps", *(1e3 * r["median"] for r in of), *(r["compile"] for r in of)])
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key != "out"}
    path = write(options.out or default_path("traced_steps"), "traced_steps", {"settings": settings, "tasks": results})
    columns = ["", "traced", "direct", "checkpointed", "compile traced", "direct", "checkpointed"]
    show("loss and gradient: milliseconds a call (medians), seconds of compilation", columns, rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
