"""What a compiled program exchanges between devices, read from its text."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.training import models
from experiments.training.config import Config
from experiments.training.devices import Devices
from experiments.training.optimizers import make_optimizer
from experiments.training.steps import init_state, train_step

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVE = re.compile(r" = (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
CALL = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)


def find_collectives(text: str) -> dict[str, dict[str, int]]:
    """Collectives of a compiled program: of its top level, and of each loop by the ODE block that it belongs to.

    Args:
      text: of the optimized program, `compiled.as_text()`.

    Returns:
      `{where: {"collectives", "bytes"}}` with where "outside loops", "<block> forward" or "<block> backward" for
      one iteration of a solver's loop, or "other loops". Bytes are those of the results, on one device.
    """
    own: dict[str, list[int]] = {}
    calls: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
            name = "ENTRY" if head.group(1) else head.group(2)
            own[name], calls[name] = [], []
        if found := COLLECTIVE.search(line):
            shapes = SHAPE.findall(found.group(1))
            own[name].append(
                sum(BYTES.get(kind, 4) * math.prod(map(int, filter(None, n.split(",")))) for kind, n in shapes)
            )
        where = _loop(line) if " while(" in line else ""
        for several, one in CALL.findall(line):
            calls[name] += [(called.strip(" %"), where) for called in (several or one).split(",")]
    totals: dict[str, dict[str, int]] = {}

    def visit(computation: str, where: str) -> None:
        for size in own.get(computation, ()):
            total = totals.setdefault(where, {"collectives": 0, "bytes": 0})
            total["collectives"] += 1
            total["bytes"] += size
        for called, inside in calls.get(computation, ()):
            visit(called, inside if where == "outside loops" and inside else where)

    visit("ENTRY", "outside loops")
    return totals


def _loop(line: str) -> str:
    """Whose loop a `while` is, from the name of the operation that it was compiled from."""
    path = re.search(r'op_name="([^"]*)"', line)
    block = re.search(r"ode\d+_\d+|block\d+", path.group(1)) if path else None
    if path is None or block is None:
        return "other loops"
    return f"{block.group(0)} {'backward' if 'transpose' in path.group(1) else 'forward'}"


def lowered_step(
    config: Config, devices: Devices, level: int = 0, *, by_name: bool = True, model_axis: int = 1
) -> Any:
    """The training step of `experiments.train` on 50,000 images of 32x32, to be compiled for devices.

    Args:
      level: of refinement.
      by_name: as it is; otherwise without a mesh, by the shardings of its arguments alone.
      model_axis: so many devices share the channels of every weight, its momentum and its average; not by name.
    """
    if model_axis > 1:
        grid = devices.mesh.devices.reshape(-1, model_axis)
        devices = Devices(Mesh(grid, (*devices.mesh.axis_names, "model")))
    size, n_classes = config.batch_size, 100 if config.dataset == "cifar100" else 10
    net, optimizer = models.build(config, n_classes, level), make_optimizer(config, 50_000 // size)
    place = lambda where: partial(jax.tree.map, lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where))
    state = jax.eval_shape(partial(init_state, net, optimizer), jnp.zeros((1, 32, 32, 3)), 0)
    images, labels = jax.ShapeDtypeStruct((50_000, 32, 32, 3), "uint8"), jax.ShapeDtypeStruct((50_000,), "int32")
    scaling, seed = (jax.ShapeDtypeStruct((3,), "float32"),) * 2, jax.ShapeDtypeStruct((), "int32")
    images, labels, scaling, seed = place(devices.everywhere)((images, labels, scaling, seed))
    state = jax.tree.map(lambda s: place(_by_channels(s, devices.mesh, model_axis))(s), state)
    order = place(devices.spread(axis=1))(jax.ShapeDtypeStruct((50_000 // size, size), "int32"))
    arguments = (state, images, labels, order, scaling, seed)
    return train_step.lower(config, net, optimizer, *arguments, mesh=devices.mesh if by_name else None)


def _by_channels(array: jax.ShapeDtypeStruct, mesh: Mesh, model_axis: int) -> NamedSharding:
    shared = model_axis > 1 and array.ndim > 0 and array.shape[-1] % model_axis == 0
    return NamedSharding(mesh, PartitionSpec(*[None] * (array.ndim - 1), "model") if shared else PartitionSpec())


def in_a_step(static: dict[str, dict[str, int]], counts: dict[str, Any]) -> dict[str, int]:
    """Collectives and bytes of one training step, loops taken as often as the solver's counts say."""
    total = {"collectives": 0, "bytes": 0}
    for where, found in static.items():
        block, _, side = where.partition(" ")
        times = 1
        if block in counts:
            of = counts[block]
            times = of["n_accepted"] + (of["n_rejected"] if side == "forward" else 0)
        for key in total:
            total[key] += times * found[key]
    return total
