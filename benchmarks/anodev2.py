"""What evolving weights cost: training steps of the twelve networks of ANODEV2, and RDA beside a field evaluation.

    python -m benchmarks.anodev2
    python -m benchmarks.anodev2 --networks resnet4 --batch-size 64 --out /tmp/anodev2.json

- training step: all that `experiments.train` does with a batch: augmentation, loss and gradients with ANODE's
  checkpointing, batch statistics, SGD. An epoch is the median step times the steps of 50,000 images; steps are
  alike, and `--whole-epochs` times all of them instead
- inference: logits of the batch
- multiply-adds: of convolutions and dense layers in one forward pass, counted from their shapes
- evolution: the kernels of a block from w(0) to w(1) in ten steps of RDA, beside one evaluation of the
  block's right-hand side on the batch; and both with their gradients
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import compare, default_path, show, write
from experiments.configs import anodev2 as cells
from experiments.records.command import command_line
from experiments.training import models
from experiments.training.optimizers import make_optimizer
from experiments.training.steps import init_state, train_step
from ode_nets.nn import ANODEV2, anodev2_net
from ode_nets.nn.anodev2 import Form, Network
from ode_nets.nn.evolving import join_kernels

PyTree = Any


@dataclass(frozen=True)
class Config:
    """What to time."""

    networks: tuple[Network, ...] = get_args(Network)
    forms: tuple[Form, ...] = get_args(Form)
    batch_size: int = 256
    """Images a step; the paper's is 256."""
    n_images: int = 50_000
    """Images of an epoch; CIFAR-10 has 50,000."""
    repeats: int = 3
    """Samples of each program."""
    whole_epochs: bool = False
    """Time an epoch step by step too, on data of its size; long without an accelerator."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/anodev2_<platform>.json."""


def training_step(form_config: Any, net: ANODEV2, optimizer: Any) -> Callable[..., Any]:
    scaling = (jnp.full(3, 0.5), jnp.full(3, 0.25))

    def step(state: PyTree, images: jax.Array, labels: jax.Array, order: jax.Array) -> Any:
        return train_step(form_config, net, optimizer, state, images, labels, order, scaling, 0)

    return step


def epoch_seconds(step: Callable[..., Any], state: PyTree, data: tuple[Any, ...]) -> float:
    """Every step of one epoch, after a first one that compiles."""
    program = jax.jit(step, donate_argnums=0)
    state, _ = jax.block_until_ready(program(jax.tree.map(jnp.array, state), *data))
    began = time.perf_counter()
    for _ in range(len(data[-1])):
        state, metrics = program(state, *data)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - began


def multiply_adds(network: str, n_evaluations: int) -> int:
    """Of one image's forward pass, with so many evaluations of each ODE block."""
    conv = lambda size, k, n_in, n_out: size**2 * k**2 * n_in * n_out
    if network == "alexnet":
        head = 4096 * 384 + 384 * 192 + 192 * 10
        return conv(32, 5, 3, 64) + n_evaluations * conv(16, 5, 64, 64) + head
    narrow, wide = 2 * conv(32, 3, 16, 16), 2 * conv(16, 3, 32, 32)
    if network == "resnet4":
        return conv(32, 3, 3, 16) + n_evaluations * narrow + 256 * 10
    down = conv(16, 3, 16, 32) + conv(16, 3, 32, 32) + conv(16, 1, 16, 32)
    return conv(32, 3, 3, 16) + narrow + down + n_evaluations * (narrow + wide) + 128 * 10


def measure_network(config: Config, network: str) -> dict[str, Any]:
    """Training steps and inference of every form, interleaved."""
    settings: dict[str, Any] = {
        form: dataclasses.replace(cells.cell(network, form), batch_size=config.batch_size) for form in config.forms
    }
    nets: dict[str, Any] = {form: models.build(one, 10) for form, one in settings.items()}
    n_steps = config.n_images // config.batch_size
    rng = np.random.default_rng(0)
    n_images = config.n_images if config.whole_epochs else config.batch_size
    images = jnp.asarray(rng.integers(0, 256, (n_images, 32, 32, 3), np.uint8))
    labels = jnp.asarray(rng.integers(0, 10, n_images, np.int32))
    order = jnp.asarray(rng.integers(0, n_images, (n_steps, config.batch_size), np.int32))
    batch = jnp.asarray(rng.normal(size=(config.batch_size, 32, 32, 3)), jnp.float32)

    trained, states = {}, {}
    for form, net in nets.items():
        optimizer = make_optimizer(settings[form], n_steps)
        trained[form] = training_step(settings[form], net, optimizer)
        start = jax.jit(lambda net=net, optimizer=optimizer: init_state(net, optimizer, batch[:1], 0))
        states[form] = start()
    steps = {form: lambda s, *data, form=form: trained[form](s[form], *data) for form in nets}
    logits = {form: lambda s, x, form=form: nets[form].apply(_variables(s[form]), x) for form in nets}
    timed: dict[str, Any] = {"repeats": config.repeats, "min_seconds": 0.0}
    by_kind = {
        "training_step": compare(steps, states, images, labels, order, **timed),
        "inference": compare(logits, states, batch, **timed),
    }
    found: dict[str, Any] = {}
    for form, net in nets.items():
        found[form] = {kind: programs[form].record() for kind, programs in by_kind.items()}
        found[form]["seconds_per_epoch"] = by_kind["training_step"][form].median * n_steps
        if config.whole_epochs:
            whole = epoch_seconds(trained[form], states[form], (images, labels, order))
            found[form]["seconds_per_whole_epoch"] = whole
        found[form]["multiply_adds"] = multiply_adds(network, net.solver.n_steps)
    return found


def _variables(state: PyTree) -> PyTree:
    return {name: state[name] for name in ("params", "batch_stats")}


def measure_evolution(config: Config, network: Network) -> dict[str, Any]:
    """Ten steps of the kernels of the last block, against one evaluation of its right-hand side."""
    net = anodev2_net(network, "configuration_2")
    evolution: Any = net.evolution
    key = jax.random.key(0)
    params = jax.jit(net.init)(key, jnp.zeros((1, 32, 32, 3)))["params"]
    name = "block2" if network == "resnet10" else "block1"
    options: dict[str, tuple[int, dict[str, Any]]] = {
        "alexnet": (64, {"kernel_size": 5, "n_convolutions": 1, "bias": True}),
        "resnet10": (32, {}),
    }
    width, changes = options.get(network, (16, {}))
    unit, size = net._unit(width, **changes), 32 if network == "resnet4" else 16
    x = jax.random.normal(key, (config.batch_size, size, size, width))

    def evolve(block: PyTree, x: jax.Array) -> Any:
        return evolution.path(block["evolved"]["w0"], block["evolved"]["p"])

    def evaluate(block: PyTree, x: jax.Array) -> Any:
        norms = jax.tree.map(lambda leaf: leaf[0], block["coefficients"])
        return unit.apply(join_kernels(unit, norms | block["evolved"]["w0"]), x)

    def with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
        total = lambda block, x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(block, x)))
        return jax.value_and_grad(total, argnums=(0, 1))

    programs = {"ten steps of RDA": evolve, "field evaluation": evaluate}
    programs |= {f"{key}, gradient": with_gradient(program) for key, program in programs.items()}
    timed = compare(programs, params[name], x, repeats=20)
    ratio = lambda kind: timed["ten steps of RDA" + kind].median / timed["field evaluation" + kind].median
    ratios = {"ratio": ratio(""), "ratio of gradients": ratio(", gradient")}
    return {key: value.record() for key, value in timed.items()} | ratios


def main(config: Config) -> None:
    results: dict[str, Any] = {"training": {}, "evolution": {}}
    for network in config.networks:
        results["evolution"][network] = measure_evolution(config, network)
        results["training"][network] = measure_network(config, network)
    settings = dataclasses.asdict(config) | {"out": None}
    path = write(config.out or default_path("anodev2"), "anodev2", {"settings": settings} | results)

    rows = []
    for network, forms in results["training"].items():
        first = next(iter(forms.values()))
        for form, found in forms.items():
            step, infer = (found[kind]["median"] for kind in ("training_step", "inference"))
            ratios = [step / first["training_step"]["median"], infer / first["inference"]["median"]]
            ratios.append(found["multiply_adds"] / first["multiply_adds"])
            epoch = found["seconds_per_whole_epoch" if config.whole_epochs else "seconds_per_epoch"]
            rows.append([f"{network}, {form}", step, epoch, infer, *ratios])
    title = "s / epoch" if config.whole_epochs else "s / epoch of like steps"
    columns = ["", "s / step", title, "s inference", "step ratio", "inference ratio", "multiply-adds"]
    show(f"batch of {config.batch_size}, medians; ratios against {config.forms[0]}", columns, rows)
    names = ("ten steps of RDA", "field evaluation")
    rows = [
        [network, *(found[key]["median"] * 1e3 for key in names), found["ratio"], found["ratio of gradients"]]
        for network, found in results["evolution"].items()
    ]
    show("milliseconds", ["", *names, "ratio", "with gradients"], rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main(command_line(Config, "python -m benchmarks.anodev2", __doc__))
