"""Training steps compiled for TPU pods, on a machine without one: what devices exchange, and an estimate of its cost.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python -m benchmarks.pods
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python -m benchmarks.pods --models node18 --topologies v5e:2x4

The TPU compiler comes with `python -m pip install 'jax[tpu]'`; no TPU is asked for. Each program is `train_step` of
`experiments.train` with bfloat16 convolutions: ContinuousNet (cifar10) and Wide ContinuousNet (cifar100_wide) at their
last levels, and NODE18 by ACA with HeunEuler at six steps a block. `before` has no mesh, so that XLA places the
reductions by the shardings of the arguments; `global` and `local` are the settings batch_statistics and step_control;
`model_axis` is `before` with the channels of all weights shared by pairs of devices.

The compiler is asked for little effort. For NODE18 with `global` on v5e:2x4 that took 69 s where its own default had
taken 1,192 s, for ContinuousNet with `local` 75 s and 953 s (two cores), and left collectives and bytes as they were;
the temporary memory of the latter is 624 MB in place of 647. `--effort 0` compiles by that default, as training does.

Counted from the compiled text: collectives and bytes of one iteration of every loop and outside of loops, and of a
training step with the solver's counts. An all-reduce of a list of arrays counts once.

An ESTIMATE of seconds a step follows from published figures, nothing of it is measured:
- computation: multiply-adds of all convolutions with channels padded to the 128 of the matrix unit, at its peak, or
  eight passes over the float32 features of each convolution at the memory's bandwidth, whichever is longer;
- communication: an all-reduce of V bytes takes 2 V / (bandwidth of a device's links), and at least 1 us a hop there
  and back along every axis of the topology; nothing overlaps.
Sources: Austin et al., "How to Scale Your Model" (jax-ml.github.io/scaling-book), tables of TPU specifications and
section on the latency of a hop.

Results are written after every program, and programs that are there already are not compiled again. A program takes
one to four minutes on two cores. Writes benchmarks/results/pods.json and docs/figures/pods.png.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks import harness
from benchmarks.collectives import find_collectives, in_a_step, lowered_step
from experiments import configs
from experiments.records.command import command_line
from experiments.training.config import Config
from experiments.training.devices import Devices

Record = dict[str, Any]
Variant = Literal["before", "global", "local", "model_axis"]
Model = Literal["node18", "continuous_net", "wide"]
MODELS: dict[str, tuple[str, int]] = {
    "node18": ("node18_cifar10", 6),
    "continuous_net": ("cifar10", 32),
    "wide": ("cifar100_wide", 8),
}
"""Its config, and steps a block."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip."""

    flops: float
    """Of bfloat16, a second."""
    memory: float
    """Bytes a second."""
    link: float
    """Bytes a second of one link in one direction; there are two links along an axis of the topology."""
    wraps: int
    """Length from which an axis is a ring."""


CHIPS = {
    "v5e": Chip(1.97e14, 8.1e11, 4.5e10, 16),
    "v5p": Chip(4.59e14, 2.8e12, 9e10, 4),
    "v6e": Chip(9.2e14, 1.6e12, 9e10, 16),
}
HOP = 1e-6
"""Seconds."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile."""

    models: tuple[Model, ...] = ("node18", "continuous_net", "wide")
    """Networks."""
    variants: tuple[Variant, ...] = ("before", "global", "local", "model_axis")
    """How devices work together."""
    topologies: tuple[str, ...] = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v6e:2x4")
    """Chips and how they are connected."""
    images: int = 128
    """Images a device, of weak scaling."""
    strong: int = 1024
    """Images a step, of strong scaling; 0 for none."""
    scale: int = 1
    """Divides all widths: 16 makes programs that compile soon."""
    effort: float = -1.0
    """Of the compiler to make programs fast, -1 to 1; 0 is its own default."""
    out: Path = Path("benchmarks/results/pods.json")
    """Where the JSON goes."""
    picture: Path = Path("docs/figures/pods.png")
    """Where the picture goes."""


# ---------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------


def config_of(model: str, variant: str, batch_size: int, scale: int = 1) -> Config:
    """The config of a training step."""
    config = configs.CONFIGS[MODELS[model][0]]
    widths = tuple(max(1, width // scale) for width in config.model.widths)
    extent = "local" if variant == "local" else "global"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, widths=widths, compute_dtype="bfloat16"),
        batch_size=batch_size,
        batch_statistics=extent,
        step_control=extent,
    )


def mesh_of(topology: str) -> jax.sharding.Mesh:
    """The devices of a topology in a row, none of which need be there."""
    from jax.experimental import topologies

    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return jax.sharding.Mesh(np.array(description.devices), ("data",))


def inspect(
    model: str, variant: str, devices: Devices, batch_size: int, scale: int = 1, effort: float = -1.0
) -> Record:
    """One program, compiled: what it exchanges, takes and computes."""
    config, n_steps = config_of(model, variant, batch_size, scale), MODELS[model][1]
    by_name, shared = variant in ("global", "local"), 2 if variant == "model_axis" else 1
    lowered = lowered_step(config, devices, len(config.refine_epochs), by_name=by_name, model_axis=shared)
    began = time.perf_counter()
    program = lowered.compile(compiler_options={"exec_time_optimization_effort": effort})
    seconds = time.perf_counter() - began
    static = find_collectives(program.as_text())
    blocks = {where.split()[0] for where in static if where.split()[0] not in ("outside", "other")}
    counts = {block: {"n_accepted": n_steps, "n_rejected": 0} for block in blocks}
    memory: Any = program.memory_analysis()
    state = jax.tree.leaves(lowered.args_info[0][0]["params"])
    return {
        "n_devices": len(devices),
        "batch_size": batch_size,
        "effort": effort,
        "compile_seconds": round(seconds, 1),
        "gradient_bytes": sum(4 * math.prod(leaf.shape) for leaf in state),
        "static": static,
        "step": in_a_step(static, counts),
        "outside": static.get("outside loops", {"collectives": 0, "bytes": 0}),
        "temporary_bytes": int(memory.temp_size_in_bytes),
        "argument_bytes": int(memory.argument_size_in_bytes),
    }


# ---------------------------------------------------------------------------------------------------------
# The estimate
# ---------------------------------------------------------------------------------------------------------


def convolutions(model: str, scale: int = 1) -> list[tuple[int, int, int, int, float]]:
    """`(size, kernel, inputs, outputs, passes)` of every convolution; a pass is one forward evaluation."""
    config, n_steps = config_of(model, "global", 1, scale), MODELS[model][1]
    settings: Any = config.model
    stages = 2 if settings.scheme == "heun_euler" else 4
    # Forward, and on the way back once more, with a derivative in the features and one in the kernel.
    of_block = 4.0 * stages * n_steps
    found, size, before = [(32, 3, 3, settings.widths[0], 3.0)], 32, settings.widths[0]
    for i, width in enumerate(settings.widths):
        size = size // 2 if i else size
        if i or model == "node18":
            found += [(size, 3, before, width, 3.0), (size, 3, width, width, 3.0), (size, 1, before, width, 3.0)]
        found += [(size, 3, width, width, of_block)] * 2
        before = width
    return found


def estimate(record: Record, model: str, topology: str, scale: int = 1) -> Record:
    """Seconds of a training step, from published figures alone."""
    kind, shape = topology.split(":")
    chip, axes = CHIPS[kind], [int(n) for n in shape.split("x")]
    images = record["batch_size"] / record["n_devices"]
    padded = lambda n: 128 * math.ceil(n / 128)
    compute = 0.0
    for size, kernel, n_in, n_out, passes in convolutions(model, scale):
        flops = 2 * images * size**2 * kernel**2 * padded(n_in) * padded(n_out)
        traffic = 8 * images * size**2 * 4 * n_out
        compute += passes * max(flops / chip.flops, traffic / chip.memory)
    hops = sum(n // 2 if n >= chip.wraps else n - 1 for n in axes)
    bandwidth = sum(chip.link * (2 if n >= chip.wraps else 1) for n in axes if n > 1)
    latency = record["step"]["collectives"] * 2 * HOP * hops
    transfer = 2 * record["step"]["bytes"] / bandwidth
    total = compute + latency + transfer
    parts = {"compute": compute, "latency": latency, "transfer": transfer}
    return parts | {"seconds": total, "efficiency": compute / total}


# ---------------------------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------------------------


def draw(records: dict[str, Record], path: Path, scale: int = 1) -> None:
    """Estimated efficiency of weak scaling, and bytes a step beside the gradient's.

    What a device reduces in a step does not depend on how many there are, so larger topologies are estimated by the
    counts of the smallest one that was compiled.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"before": ":", "global": "--", "local": "-", "model_axis": "-."}
    weak = [r for key, r in records.items() if r["scaling"] == "weak" and " v5e:" in key and "effort" not in key]
    smallest: dict[tuple[str, str], Record] = {}
    for r in sorted(weak, key=lambda r: r["n_devices"]):
        smallest.setdefault((r["model"], r["variant"]), r)
    for (model, variant), r in smallest.items():
        found = {math.prod(shape): f"v5e:{shape[0]}x{shape[1]}" for shape in ((2, 4), (4, 4), (8, 8), (16, 16))}
        shares = [estimate(r, model, topology, scale)["efficiency"] for topology in found.values()]
        color, label = f"C{list(MODELS).index(model)}", f"{model}, {variant}".replace("_", " ")
        left.plot(list(found), shares, styles[variant], color=color, marker="o", markersize=3, label=label)
        right.barh(label, r["step"]["bytes"] / r["gradient_bytes"], color=color)
    left.set(xscale="log", xlabel="devices (v5e)", ylabel="efficiency, an estimate", ylim=(0, 1.02))
    right.set(xscale="log", xlabel="bytes of a step / bytes of the gradient")
    right.axvline(1, color="black", linewidth=0.8)
    left.set_xticks([8, 16, 64, 256], labels=["8", "16", "64", "256"], minor=False)
    left.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), fontsize=7, ncols=3, loc="outside lower center")
    figure.savefig(path, dpi=150)


def main(options: Options) -> None:
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("error: there is no TPU compiler here; python -m pip install 'jax[tpu]' brings it, no TPU is needed")
    records: dict[str, Record] = {}
    if options.out.exists():
        records = json.loads(options.out.read_text())["results"]
    for topology in options.topologies:
        devices = Devices(mesh_of(topology))
        sizes = {"weak": options.images * len(devices)} | ({"strong": options.strong} if options.strong else {})
        for model in options.models:
            for variant in options.variants:
                for scaling, size in sizes.items():
                    key = f"{model} {variant} {topology} {size}"
                    key += f", effort {options.effort:g}" if options.effort != -1 else ""
                    if key not in records:
                        records[key] = {"model": model, "variant": variant, "topology": topology, "scaling": scaling}
                        records[key] |= inspect(model, variant, devices, size, options.scale, options.effort)
                        print(f"{key}: compiled in {records[key]['compile_seconds']} s", flush=True)
                    records[key]["estimate"] = estimate(records[key], model, topology, options.scale)
                    harness.write(options.out, "pods", records)
    rows = []
    for key, r in records.items():
        sizes = (r["step"]["bytes"], r["gradient_bytes"], r["temporary_bytes"])
        row = [key, r["outside"]["collectives"], r["step"]["collectives"], *(size / 2**20 for size in sizes)]
        rows.append([*row, r["estimate"]["seconds"], r["estimate"]["efficiency"]])
    columns = ["", "outside loops", "collectives a step", "MiB a step", "gradient MiB", "temporary MiB"]
    harness.show("training steps on pods", [*columns, "s/step (estimate)", "efficiency (estimate)"], rows)
    draw(records, options.picture, options.scale)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.pods", __doc__))
