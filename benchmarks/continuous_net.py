"""ContinuousNet: compilation against depth, the solver swap in one program, and training against a ResNet.

    python -m benchmarks.continuous_net
    python -m benchmarks.continuous_net --parts compile swap --out /tmp/continuous_net.json

- compile: seconds to trace and to compile one training step at N_t steps, by the clock and of the processor. A
  single step is no loop, so N_t = 2 shows what the loop itself costs.
- swap: one set of weights under a grid of solvers, in one program (`remanifest.swap_solvers`) against one program
  each, with and without compilation.
- training: the paper's two models under Euler with eps = M = N_t, against the ResNet that they then are,
  unrolled in plain Flax with the same weights: compilation, temporary memory, and images a second of loss,
  gradient and update. The losses of both are recorded as a check.
About twenty-five minutes on two cores.
Writes benchmarks/results/continuous_net_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import compare, default_path, show, write
from experiments.records.command import command_line
from ode_nets import remanifest
from ode_nets.gradients import Checkpointed, Direct
from ode_nets.integrate import FixedStep
from ode_nets.nn import ContinuousNet, WideContinuousNet, as_resnet
from ode_nets.weights import PiecewiseConstant

PyTree = Any
Part = Literal["compile", "swap", "training"]
COMPILE: dict[str, Any] = {"widths": (8, 16), "image": (8, 16, 16, 3), "scheme": "rk4", "n_steps": (1, 2, 8, 32)}
GRID = [(s, n) for s in ("euler", "midpoint", "rk4", "rk4_38") for n in (1, 2, 3, 4, 6, 8, 11, 16)]
SWAP = {
    "digits": {"widths": (8, 16), "image": (250, 8, 8, 1)},
    "cifar10": {"widths": (16, 32, 64), "image": (50, 32, 32, 3)},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[Part, ...] = ("compile", "swap", "training")
    """Which of the three."""
    repeats: int = 5
    """Samples of each compilation and each pass over the grid."""
    batch_size: int = 128
    """Images a training step of the 16-32-64 model."""
    wide_batch_size: int = 32
    """Images a training step of the 64-128-256 model."""
    training_repeats: int = 3
    """Samples of each training step."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/continuous_net_<platform>.json."""


def loss_of(net: nn.Module, variables: PyTree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
    """Mean cross-entropy and the new batch statistics."""
    logits, changed = net.apply(variables, images, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]


def gradient_step(net: nn.Module) -> Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]:
    """One step of plain SGD: the loss and the new variables."""

    def step(variables: PyTree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        loss = lambda params: loss_of(net, variables | {"params": params}, images, labels)
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient)
        return value, {"params": params, "batch_stats": stats}

    return step


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call, finished on the device."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------------
# Compilation against the number of steps
# ---------------------------------------------------------------------------------------------------------


def compile_seconds(net: nn.Module, image: tuple[int, ...]) -> dict[str, float]:
    """Seconds to trace and lower and to compile a training step, nothing remembered from earlier ones."""
    images, labels = jax.ShapeDtypeStruct(image, "float32"), jax.ShapeDtypeStruct(image[:1], "int32")
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    jax.clear_caches()
    start, busy = time.perf_counter(), time.process_time()
    lowered = jax.jit(gradient_step(net)).lower(variables, images, labels)
    between = time.perf_counter()
    lowered.compile()
    end = time.perf_counter()
    return {
        "lower": between - start,
        "compile": end - between,
        "total": end - start,
        "processor": time.process_time() - busy,
    }


def measure_compilation(repeats: int) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Records and table rows by number of steps, and whether M grows with it or stays 8."""
    cases = [(basis, n_steps) for basis in ("M = N_t", "M = 8") for n_steps in COMPILE["n_steps"]]
    samples: dict[Any, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for basis, n_steps in cases:
            theta = PiecewiseConstant(n_steps if basis == "M = N_t" else 8)
            net = ContinuousNet(10, COMPILE["widths"], theta, FixedStep(COMPILE["scheme"], n_steps))
            samples[basis, n_steps].append(compile_seconds(net, COMPILE["image"]))
    least = {case: {key: min(sample[key] for sample in taken) for key in taken[0]} for case, taken in samples.items()}
    records, rows = [], []
    for (basis, n_steps), seconds in least.items():
        ratios = [seconds[key] / least[basis, first][key] for first in (1, 2) for key in ("total", "processor")]
        names = ("total_to_1", "processor_to_1", "total_to_2", "processor_to_2")
        records.append({"basis": basis, "n_steps": n_steps, "seconds": seconds} | dict(zip(names, ratios, strict=True)))
        rows.append([f"{basis}, N_t = {n_steps}", *seconds.values(), *ratios])
    return records, rows


# ---------------------------------------------------------------------------------------------------------
# Solver swap
# ---------------------------------------------------------------------------------------------------------


def count_hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(jnp.argmax(logits, -1) == labels)


def measure_swap(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds of the grid in one program and in one program a solver."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, *case["image"])), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, (2, case["image"][0])))
    solvers = [FixedStep(scheme, n_steps) for scheme, n_steps in GRID]
    net = ContinuousNet(10, case["widths"], PiecewiseConstant(8), FixedStep("rk4", 8))
    variables = jax.jit(net.init)(jax.random.key(0), images[0])

    def batches() -> Iterator[tuple[jax.Array, jax.Array]]:
        return zip(images, labels, strict=True)

    def one_program() -> Callable[[], list[Any]]:
        swap = remanifest.compile_swap(net, variables, (images[0], labels[0]), count_hits, solvers, lanes=1)
        return lambda: remanifest.run_swap(swap, variables, solvers, batches)[0]

    def many_programs() -> Callable[[], list[Any]]:
        def program(solver: FixedStep) -> Callable[..., jax.Array]:
            manifestation = net.clone(solver=solver, gradient=Direct())
            score = jax.jit(lambda v, x, y: count_hits(manifestation.apply(v, x), y))
            return score.lower(variables, images[0], labels[0]).compile()

        programs = [program(solver) for solver in solvers]
        return lambda: [jax.device_get(sum(compiled(variables, x, y) for x, y in batches())) for compiled in programs]

    record: dict[str, Any] = case | {"n_batches": 2}
    passes, hits = {}, {}
    for name, make in (("one_program", one_program), ("many_programs", many_programs)):
        jax.clear_caches()
        start = time.perf_counter()
        passes[name] = make()
        compiled = time.perf_counter()
        hits[name] = [int(np.squeeze(score)) for score in passes[name]()]
        record[name] = {"compile": compiled - start, "with_compilation": time.perf_counter() - start}
    steady: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            steady[name].append(seconds_of(run))
    for name, taken in steady.items():
        record[name] |= {"steady_minimum": min(taken), "steady_median": statistics.median(taken)}
    one, many = record["one_program"], record["many_programs"]
    record["times_faster_with_compilation"] = many["with_compilation"] / one["with_compilation"]
    record["steady_ratio"] = one["steady_minimum"] / many["steady_minimum"]
    record["images_scored_differently"] = sum(abs(a - b) for a, b in zip(*hits.values(), strict=True))
    return record


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


def measure_training(net: ContinuousNet, batch_size: int, repeats: int) -> dict[str, Any]:
    """One training step of an Euler ContinuousNet, by two gradient methods, and of the ResNet that it is."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch_size, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, net.n_classes, batch_size))
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    # Skip-init starts at zero, where the units would not change the loss that both are compared by.
    lift = lambda path, leaf: leaf + 0.1 if path[-1].key == "skip" else leaf
    variables["params"] = jax.tree_util.tree_map_with_path(lift, variables["params"])
    resnet, twin = as_resnet(net, variables)

    def on(which: int, net: nn.Module) -> Callable[..., Any]:
        step = gradient_step(net)
        return lambda both, images, labels: step(both[which], images, labels)

    variants = {
        "resnet, unrolled": on(1, resnet),
        "continuous, Direct": on(0, net.clone(gradient=Direct())),
        "continuous, Checkpointed": on(0, net.clone(gradient=Checkpointed())),
    }
    both = (variables, twin)
    losses = {name: float(jax.jit(step)(both, images[:2], labels[:2])[0]) for name, step in variants.items()}
    jax.clear_caches()
    measured = compare(variants, both, images, labels, repeats=repeats, min_seconds=0.0)
    return {
        "widths": net.widths,
        "n_steps": net.solver.n_steps,
        "batch_size": batch_size,
        "n_parameters": remanifest.n_parameters(variables),
        "losses_of_two_images": losses,
        "images_per_second": {name: batch_size / m.minimum for name, m in measured.items()},
        "seconds_per_step": {name: m.record() for name, m in measured.items()},
    }


def training_rows(name: str, record: dict[str, Any]) -> list[list[Any]]:
    steps = record["seconds_per_step"]
    return [
        [
            f"{name}, {variant}",
            record["images_per_second"][variant],
            taken["minimum"] / steps["resnet, unrolled"]["minimum"],
            taken["lower"] + taken["compile"],
            (taken["temporary_bytes"] or 0) / 2**20,
        ]
        for variant, taken in steps.items()
    ]


def main(options: Options) -> None:
    """Measure, print and write, part by part."""
    path, results = options.out or default_path("continuous_net"), dict[str, Any]()
    if "compile" in options.parts:
        records, rows = measure_compilation(options.repeats)
        results["compile"] = {"settings": COMPILE, "cases": records}
        columns = ["", "lower", "compile", "total", "processor", "to N_t=1", "proc.", "to N_t=2", "proc."]
        show(f"seconds to compile a training step, least of {options.repeats}", columns, rows)
        write(path, "continuous_net", results)
    if "swap" in options.parts:
        results["swap"] = {"grid": GRID, "nets": {}}
        rows = []
        for name, case in SWAP.items():
            record = results["swap"]["nets"][name] = measure_swap(case, options.repeats)
            for kind in ("one_program", "many_programs"):
                taken = record[kind]
                rows.append(
                    [f"{name}, {kind.replace('_', ' ')}"]
                    + [taken[key] for key in ("compile", "with_compilation", "steady_minimum")]
                )
            ratios = [record["times_faster_with_compilation"], record["steady_ratio"]]
            rows.append([f"{name}: times faster; steady ratio", "", *ratios])
        columns = ["seconds", "compile", "with compilation", "steady"]
        show(f"{len(GRID)} manifestations of one set of weights", columns, rows)
        write(path, "continuous_net", results)
    if "training" in options.parts:
        results["training"] = {}
        rows = []
        narrow = ContinuousNet(10, (16, 32, 64), PiecewiseConstant(32), FixedStep("euler", 32), epsilon=32.0)
        wide = WideContinuousNet(solver=FixedStep("euler", 8), epsilon=8.0)
        for name, net, size in (
            ("16-32-64", narrow, options.batch_size),
            ("64-128-256", wide, options.wide_batch_size),
        ):
            record = results["training"][name] = measure_training(net, size, options.training_repeats)
            rows += training_rows(name, record)
        columns = ["", "images/s", "time to resnet's", "compile s", "temporary MiB"]
        show("training, 32x32x3 images", columns, rows)
        write(path, "continuous_net", results)
    print(f"written to {path}")


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.continuous_net", __doc__))
