"""What the digests of checkpoints cost, beside saving and restoring them.

    python -m benchmarks.checkpoints
    python -m benchmarks.checkpoints --models cifar10 --repeats 3 --folder /tmp --out /tmp/checkpoints.json

The training state of a model of `experiments.configs`, with weights and momentum drawn at random, is saved and restored
as `experiments.train` does it, by turns with plain Orbax, which keeps no digests:

- save: until the checkpoint is on disk, and the part of it that training waits for
- restore: of the newest checkpoint, whole, as `--resume` does it
- digests: SHA-256 of every array by itself; at saving this happens while Orbax writes, at restoring afterwards

Shares are medians of the differences, turn by turn, over the median of plain Orbax. About two minutes on two cores.
Writes benchmarks/results/checkpoints_<platform>.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.harness import Measurement, default_path, show, write
from experiments.configs import CONFIGS
from experiments.records.command import command_line
from experiments.records.digests import differing, digests
from experiments.training import models
from experiments.training.checkpoints import KEPT, Checkpoints
from experiments.training.optimizers import make_optimizer
from experiments.training.steps import init_state

PyTree = Any


@dataclass(frozen=True)
class Config:
    """What to time."""

    models: tuple[str, ...] = ("cifar10", "node18_cifar10")
    """Configs by name; refined ones as they are at the end."""
    repeats: int = 20
    """Samples of each."""
    folder: Path | None = None
    """Where checkpoints are written meanwhile; default the system's temporary folder."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/checkpoints_<platform>.json."""


def make_state(name: str) -> PyTree:
    """The training state of a config on CIFAR's images, at its last level, with random numbers for weights."""
    config = CONFIGS[name]
    net = models.build(config, 10, config.level(config.epochs - 1))
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(partial(init_state, net, make_optimizer(config, 390)), image, np.int32(0))
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(rng.normal(size=leaf.shape) if floating else np.zeros(leaf.shape), leaf.dtype)

    return jax.tree.map(drawn, shapes)


def measure_checkpoints(name: str, repeats: int, folder: Path | None = None) -> dict[str, Any]:
    """Seconds of saving and restoring the state of a config with digests and without, and of the digests."""
    state = jax.block_until_ready(make_state(name))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)
    expected, notes = digests(state), {"level": 0}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        ours = Checkpoints(Path(place))
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT["latest"], create=True)
        plain = ocp.CheckpointManager(Path(place) / "plain", options=options)

        def save_plainly(step: int) -> None:
            parts = {"state": ocp.args.StandardSave(state), "notes": ocp.args.JsonSave(notes)}
            plain.save(step, args=ocp.args.Composite(**parts))

        def restore_plainly(step: int) -> PyTree:
            return plain.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]

        turns = []
        for step in range(repeats + 1):
            seconds = {}
            for kind, save, wait in (
                ("plain ", save_plainly, plain.wait_until_finished),
                ("", partial(ours.save, "latest", state=state, notes=notes), ours.wait),
            ):
                began = time.perf_counter()
                save(step=step)
                seconds[f"{kind}save, waited for"] = time.perf_counter() - began
                wait()
                seconds[f"{kind}save"] = time.perf_counter() - began
            seconds["plain restore"] = timed(partial(restore_plainly, step))
            seconds["restore"] = timed(partial(ours.newest, lambda notes: like))
            seconds["digests"] = timed(partial(differing, expected, state))
            turns.append(seconds)
        plain.close()
        ours.close()
    # The first save and the first restore set things up.
    samples = {part: [seconds[part] for seconds in turns[1:]] for part in turns[0]}
    shares = {}
    for part in ("save", "save, waited for", "restore"):
        more = [a - b for a, b in zip(samples[part], samples[f"plain {part}"], strict=True)]
        shares[part] = round(statistics.median(more) / statistics.median(samples[f"plain {part}"]), 4)
    return {part: Measurement(tuple(several), 1).record() for part, several in samples.items()} | {
        "more_than_plain": shares,
        "megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6,
        "n_arrays": len(jax.tree.leaves(state)),
    }


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main() -> None:
    """The command line."""
    config = command_line(Config, "python -m benchmarks.checkpoints", __doc__)
    results = {name: measure_checkpoints(name, config.repeats, config.folder) for name in config.models}
    parts = ("plain save", "save", "save, waited for", "plain restore", "restore", "digests")
    rows = [
        [name, found["megabytes"], *(1e3 * found[part]["median"] for part in parts)]
        + [100 * share for share in found["more_than_plain"].values()]
        for name, found in results.items()
    ]
    columns = ["model", "MB", *(f"{part} [ms]" for part in parts)]
    columns += [f"{part}: more [%]" for part in ("save", "waited for", "restore")]
    show("Digests of checkpoints, medians", columns, rows)
    print(write(config.out or default_path("checkpoints"), "checkpoints", results))


if __name__ == "__main__":
    main()
