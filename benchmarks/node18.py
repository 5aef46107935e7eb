"""NODE18 at full width: a training step against other libraries and ResNet18, and what many devices exchange.

    python -m benchmarks.node18
    python -m benchmarks.node18 --widths 4 8 --batch-size 4 --repeats 1 --out /tmp/node18.json

- step: seconds and images a second of one step (loss, gradient, update) on 32x32 images. NODE18 by ACA with
  HeunEuler at 1e-2; the same network with diffrax's RecursiveCheckpointAdjoint on our convolution; in PyTorch, by
  TorchDiffEqPack's ACA with HeunEuler at 1e-2, and by torchdiffeq's adjoint with Dopri5 at 1e-5, the setting that
  the paper trains it with, and at HeunEuler's; and ResNet18, here and in PyTorch.
- scaling: the training step of `experiments.train` on 1, 2, 4 and 8 simulated devices with the same batch on each
  (weak scaling), by inspection: the collectives and bytes that a device exchanges in a step, and its temporary
  memory. Cores are shared, so no times are taken. Collectives inside loops are counted once an iteration: of a
  forward loop for every trial, of a backward loop for every accepted step, at the counts that a step on one device
  took.
Ten minutes on two idle cores, most of it in PyTorch.
Writes benchmarks/results/node18_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.collectives import find_collectives, in_a_step, lowered_step
from benchmarks.continuous_net import gradient_step
from experiments.records.command import command_line
from experiments.training import models
from experiments.training.config import Config
from experiments.training.devices import Devices
from ode_nets.nn import NODE18, OdeBlock, ResNet18
from ode_nets.remanifest import n_parameters

PyTree = Any
Part = Literal["step", "scaling"]
OURS = "NODE18, ACA()"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[Part, ...] = ("step", "scaling")
    """Which of the two."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage."""
    batch_size: int = 32
    """Images a step; in `scaling`, images a device."""
    repeats: int = 3
    """Samples of each JAX program, and of what in PyTorch takes seconds."""
    slow_repeats: int = 1
    """Samples of torchdiffeq's adjoint, which takes half a minute."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices."""
    out: Path | None = None
    """Where the JSON goes."""
    inspect: bool = False
    """Print the inspection of this process's devices as JSON and end; how `scaling` asks a process of its own."""


# ---------------------------------------------------------------------------------------------------------
# One training step
# ---------------------------------------------------------------------------------------------------------


def make_batch(batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch_size, 32, 32, 3)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 10, batch_size))


def by_diffrax(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same training step with each ODE block solved and differentiated by diffrax; it keeps no statistics."""

    def solve(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        block = context.module
        if not isinstance(block, OdeBlock) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        theta = jax.tree.map(lambda leaf: leaf[0], block.variables["params"]["coefficients"])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, theta: block.unit.apply(theta, x, t)[0]),
            diffrax.Heun(), 0.0, 1.0, None, args[0], theta, max_steps=256,
            stepsize_controller=diffrax.PIDController(rtol=block.solver.rtol, atol=block.solver.atol),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        )  # fmt: skip
        return solution.ys[0]

    def intercepted(*args: Any) -> Any:
        with nn.intercept_methods(solve):
            return step(*args)

    return intercepted


def measure_step(options: Options) -> dict[str, Any]:
    """All programs by name, and what the solver of our NODE18 counted."""
    images, labels = make_batch(options.batch_size)
    node, resnet = NODE18(widths=options.widths), ResNet18(widths=options.widths)
    keys = jax.random.key(0)
    both = {name: jax.jit(net.init)(keys, images[:1]) for name, net in (("node", node), ("resnet", resnet))}
    both = {name: {key: tree[key] for key in ("params", "batch_stats")} for name, tree in both.items()}

    def on(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda both, images, labels: step(both[name], images, labels)

    variants = {
        OURS: on("node", gradient_step(node)),
        "NODE18, diffrax RecursiveCheckpointAdjoint": on("node", by_diffrax(gradient_step(node))),
        "ResNet18": on("resnet", gradient_step(resnet)),
    }
    counted = jax.jit(lambda v: node.apply(v, images, train=True, mutable=["batch_stats", "solution"])[1]["solution"])
    counts = {name: {key: int(n) for key, n in block.items()} for name, block in counted(both["node"]).items()}
    losses = {name: float(jax.jit(step)(both, images, labels)[0]) for name, step in variants.items()}
    measured = harness.compare(variants, both, images, labels, repeats=options.repeats, min_seconds=0.0)
    programs = {name: m.record() for name, m in measured.items()}
    for name, run in torch_peers(options).items():
        found: dict[str, Any] = {}
        repeats = options.slow_repeats if "adjoint" in name else options.repeats
        call = lambda run=run, found=found: found.update(run())
        programs[name] = harness.measure(call, repeats=repeats, min_seconds=0.0, compiled=False).record() | found
    for program in programs.values():
        program["images_per_second"] = float(f"{options.batch_size / program['minimum']:.4g}")
    return {
        "widths": options.widths,
        "batch_size": options.batch_size,
        "n_parameters": {name: n_parameters(variables) for name, variables in both.items()},
        "counts": counts,
        "losses": losses,
        "programs": programs,
        "ratio_to_resnet18": programs[OURS]["minimum"] / programs["ResNet18"]["minimum"],
    }


def torch_peers(options: Options) -> dict[str, Callable[[], dict[str, int]]]:
    """The same networks in PyTorch by name; each call is one training step and returns its counts."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch
    import torchdiffeq
    import TorchDiffEqPack

    tnn: Any = torch.nn
    times = torch.tensor([0.0, 1.0])

    def conv_norm(n_in: int, n_out: int, size: int = 3, stride: int = 1) -> Any:
        conv = tnn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)
        tnn.init.kaiming_normal_(conv.weight, mode="fan_out")
        return tnn.Sequential(conv, tnn.BatchNorm2d(n_out))

    class Basic(tnn.Module):
        def __init__(self, n_in: int, n_out: int, stride: int):
            super().__init__()
            self.first, self.second = conv_norm(n_in, n_out, 3, stride), conv_norm(n_out, n_out)
            self.shortcut = tnn.Identity() if n_in == n_out and stride == 1 else conv_norm(n_in, n_out, 1, stride)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    class Field(tnn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.net = tnn.Sequential(conv_norm(width, width), tnn.ReLU(), conv_norm(width, width), tnn.ReLU())
            self.nfe = 0

        def forward(self, t: Any, x: Any) -> Any:
            self.nfe += 1
            return self.net(x)

    class Ode(tnn.Module):
        def __init__(self, width: int, solve: Callable[[Any, Any], Any]):
            super().__init__()
            self.field, self.solve = Field(width), solve

        def forward(self, x: Any) -> Any:
            return self.solve(self.field, x)

    def network(second: Callable[[int], Any]) -> Any:
        layers, n_in = [conv_norm(3, options.widths[0]), tnn.ReLU()], options.widths[0]
        for stage, width in enumerate(options.widths):
            layers += [Basic(n_in, width, 1 if stage == 0 else 2), second(width)]
            n_in = width
        return tnn.Sequential(*layers, tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Linear(n_in, 10))

    def step_of(second: Callable[[int], Any]) -> Callable[[], dict[str, int]]:
        torch.manual_seed(0)
        net = network(second)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        images = torch.randn(options.batch_size, 3, 32, 32)
        labels = torch.randint(0, 10, (options.batch_size,))
        fields = [module for module in net.modules() if isinstance(module, Field)]

        def step() -> dict[str, int]:
            for field in fields:
                field.nfe = 0
            optimizer.zero_grad()
            loss = tnn.functional.cross_entropy(net(images), labels)
            forward = sum(field.nfe for field in fields)
            loss.backward()
            optimizer.step()
            total = sum(field.nfe for field in fields)
            size = sum(p.numel() for p in net.parameters())
            return {"nfe": forward, "nfe_backward": total - forward, "n_parameters": size}

        return step

    pack = {"method": "RK12", "h": None, "t0": 0.0, "t1": 1.0, "rtol": 1e-2, "atol": 1e-2,
            "print_neval": False, "neval_max": 500000}  # fmt: skip
    aca = lambda field, x: TorchDiffEqPack.odesolve_adjoint(field, x, options=dict(pack))

    def adjoint(method: str, tol: float) -> Callable[[Any, Any], Any]:
        return lambda field, x: torchdiffeq.odeint_adjoint(field, x, times, rtol=tol, atol=tol, method=method)[-1]

    heun, dopri5 = adjoint("adaptive_heun", 1e-2), adjoint("dopri5", 1e-5)
    return {
        "NODE18, TorchDiffEqPack ACA": step_of(lambda width: Ode(width, aca)),
        "NODE18, torchdiffeq adjoint, HeunEuler 1e-2": step_of(lambda width: Ode(width, heun)),
        "NODE18, torchdiffeq adjoint, Dopri5 1e-5": step_of(lambda width: Ode(width, dopri5)),
        "ResNet18, PyTorch": step_of(lambda width: Basic(width, width, 1)),
    }


# ---------------------------------------------------------------------------------------------------------
# What devices exchange
# ---------------------------------------------------------------------------------------------------------


def training_program(options: Options, devices: Devices) -> Any:
    """The step of `experiments.train` on CIFAR-10, compiled for a batch that is spread over the devices."""
    size = len(devices) * options.batch_size
    model = models.Node18Settings(widths=options.widths, scheme="heun_euler", rtol=1e-2, gradient="aca")
    config = Config("cifar10", model=model, batch_size=size)
    return lowered_step(config, devices).compile()


def inspect(options: Options, counts: dict[str, Any]) -> list[dict[str, Any]]:
    """The training step on each number of devices: collectives, their bytes and temporary memory a device."""
    records = []
    for n in options.devices:
        program = training_program(options, Devices.take(n))
        memory, static = program.memory_analysis(), find_collectives(program.as_text() or "")
        records.append(
            {
                "n_devices": n,
                "batch_size": n * options.batch_size,
                "static": static,
                "step": in_a_step(static, counts),
                "temporary_bytes": None if memory is None else int(memory.temp_size_in_bytes),
            }
        )
    return records


def measure_scaling(options: Options) -> list[dict[str, Any]]:
    """`inspect` in a process with as many simulated devices as asked for."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(options.devices)}"
    command = [sys.executable, "-m", "benchmarks.node18", "--inspect", "--batch-size", str(options.batch_size)]
    command += ["--widths", *map(str, options.widths), "--devices", *map(str, options.devices)]
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def count_on_one_device(options: Options) -> dict[str, Any]:
    """What the solver of each block counts on the first batch."""
    images, _ = make_batch(options.batch_size)
    net = NODE18(widths=options.widths)
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    counted = jax.jit(lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats", "solution"])[1]["solution"])
    counts = jax.device_get(counted({key: variables[key] for key in ("params", "batch_stats")}, images))
    return {name: {key: int(n) for key, n in block.items()} for name, block in counts.items()}


def main(options: Options) -> None:
    if options.inspect:
        print(json.dumps(inspect(options, count_on_one_device(options))))
        return
    results: dict[str, Any] = {}
    if "step" in options.parts:
        record = results["step"] = measure_step(options)
        ours = record["programs"][OURS]["minimum"]
        keys = ("minimum", "images_per_second", "nfe", "nfe_backward")
        rows = [
            [name, program["minimum"] / ours, *(program.get(key, "") for key in keys)]
            for name, program in record["programs"].items()
        ]
        columns = ["", "time to ours", "s/step", "images/s", "nfe", "nfe backward"]
        harness.show(f"widths {options.widths}, batch {options.batch_size}", columns, rows)
        print(f"our nfe {sum(block['nfe'] for block in record['counts'].values())}; ", end="")
        print(f"NODE18 takes {record['ratio_to_resnet18']:.2f} times as long as ResNet18")
    if "scaling" in options.parts:
        results["scaling"] = measure_scaling(options)
        rows = [
            [r["n_devices"], r["batch_size"], r["step"]["collectives"], r["step"]["bytes"] / 2**20]
            + [sum(found["collectives"] for where, found in r["static"].items() if kind in where)
               for kind in ("outside", "forward", "backward")]
            for r in results["scaling"]
        ]  # fmt: skip
        columns = ["devices", "images", "collectives a step", "MiB a step", "outside loops", "in trials", "in replays"]
        harness.show("weak scaling by inspection", columns, rows)
    out = options.out or harness.default_path("node18")
    print(f"written to {harness.write(out, 'node18', results)}")


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.node18", __doc__))
