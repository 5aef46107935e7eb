"""The weights of a run under other solvers: the grid of (scheme, N_t) that several commands evaluate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.images import data
from experiments.records.files import RunError
from experiments.records.swaps import Row
from experiments.training.config import Config
from experiments.training.parallel import by_block
from experiments.training.run import load_run
from experiments.training.steps import padded_batches
from ode_nets import remanifest, validity
from ode_nets.integrate import FixedStep, pad
from ode_nets.remanifest import Manifestation
from ode_nets.remanifest.exchangeable import Part

PyTree = Any
Batches = Callable[[], Iterator[tuple[jax.Array, jax.Array]]]
MAX_BATCH_SIZE = 250
RESTATED_ON = 512
"""Training images that missing statistics are estimated on."""


def score(logits: jax.Array, labels: jax.Array) -> PyTree:
    """Summed cross-entropy, hits, and images that diverged of a batch; images with label -1 are padding."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    # The largest of many NaN is the first, so that what diverged would pass for class 0.
    real, finite = labels >= 0, jnp.isfinite(logits).all(-1)
    return {
        "loss": jnp.sum(jnp.where(real, loss, 0.0)),
        "hits": jnp.sum(real & finite & (logits.argmax(-1) == labels)),
        "diverged": jnp.sum(real & ~finite),
    }


def default_steps(trained: int) -> tuple[int, ...]:
    """Step counts below, at and above the trained one, half of them no divisor or multiple of it."""
    ratios = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.5, 1.75, 2, 3, 4)
    return tuple(sorted({max(1, round(trained * ratio)) for ratio in ratios}))


def loaded(folder: Path, which: str, *parts: Part) -> tuple[Config, nn.Module, PyTree, dict[str, Any]]:
    """`load_run`, of a network with a solver to swap, and with further parts that are to be exchanged."""
    config, net, variables, notes = load_run(folder, which)
    try:
        remanifest.check_exchangeable(net, "solver", "gradient", *parts)
    except ValueError as error:
        raise RunError(f"the run in {folder}: {error}") from error
    model: Any = net
    if not isinstance(model.solver, FixedStep):
        raise RunError(f"the run in {folder} has net.solver={model.solver!r}: expected a FixedStep to exchange")
    return config, net, variables, notes


@dataclasses.dataclass(frozen=True)
class Restat:
    """Batch statistics of manifestations that meet intervals which the trained one does not.

    Attributes:
      trained: the network with the solver and basis of training, whose statistics are kept.
      images: of training, that all others' are estimated on.
      sentence: what was estimated, in words.
    """

    trained: nn.Module
    images: jax.Array
    sentence: str

    def __call__(self, net: nn.Module, variables: PyTree) -> PyTree:
        """Variables for a network under the solver and basis that it has."""
        return variables if net == self.trained else remanifest.restat(net, variables, self.images)

    def program(self, net: nn.Module, n_stages: int) -> Callable[[FixedStep, PyTree], PyTree]:
        """The same of a network under any solver of at most `n_stages` stages, compiled once."""

        @jax.jit
        def estimated(solver: FixedStep, variables: PyTree, images: jax.Array) -> PyTree:
            return remanifest.restat(net.clone(solver=solver), variables, images)

        def complete(solver: FixedStep, variables: PyTree) -> PyTree:
            if net.clone(solver=solver) == self.trained:
                return variables
            return estimated(pad(solver, n_stages), variables, self.images)

        return complete


def restat_of(net: nn.Module, variables: PyTree, dataset: data.Dataset) -> Restat | None:
    """What other solvers and bases need, if they may meet intervals that no stage of the net's own solver meets."""
    if not remanifest.has_intervals(net, variables):
        return None
    images = data.normalize(jnp.asarray(dataset.x_train[:RESTATED_ON]), dataset.mean, dataset.std)
    unmet = remanifest.unmet_intervals(net, variables, images)
    return Restat(net, images, validity.say_statistics(unmet, len(images))) if unmet else None


def make_batches(dataset: data.Dataset, split: str, most: int | None = None) -> tuple[Batches, int]:
    """Batches of a split as `remanifest.run_swap` takes them, scaled and of one shape; the number of images.

    Args:
      dataset, split: which images; most: the first so many alone.

    Raises:
      RunError: if the split holds no images.
    """
    images, labels = getattr(dataset, f"x_{split}")[:most], getattr(dataset, f"y_{split}")[:most]
    if not len(images):
        raise RunError(f"the run has no {split} images: it was trained with validation_fraction=0")
    n_batches = -(-len(images) // MAX_BATCH_SIZE)
    batch_size = -(-len(images) // n_batches)
    scale = jax.jit(data.normalize)

    def batches() -> Iterator[tuple[jax.Array, jax.Array]]:
        for x, y in padded_batches(images, labels, batch_size):
            yield scale(x, dataset.mean, dataset.std), jnp.asarray(y)

    return batches, len(images)


def memory_bound(memory_gib: float | None) -> int:
    """Bytes that the lanes of a swap may take."""
    stats = jax.devices()[0].memory_stats() or {}
    half = stats.get("bytes_limit", 8 * 2**30) // 2
    return half if memory_gib is None else int(memory_gib * 2**30)


def n_blocks(net: nn.Module, variables: PyTree, images: jax.Array) -> int:
    """How many ODE blocks a network solves for a batch."""
    _, found = jax.eval_shape(partial(net.apply, mutable=["solution"]), variables, images)
    return len(by_block(found.get("solution", {})))


def evaluate_grid(
    net: nn.Module,
    variables: PyTree,
    grid: list[Manifestation],
    batches: Batches,
    n_images: int,
    lanes: int | None = None,
    memory_gib: float | None = None,
    restat: Restat | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """One row a manifestation on a uniform grid, and what the program was.

    `lanes=None` takes one lane on a CPU, where lanes side by side cost more than one after another, and
    elsewhere as many as the compiled program's temporary memory allows. Where each manifestation has statistics
    of its own, by `restat`, there is one lane.
    """
    if restat is not None or (lanes is None and jax.default_backend() == "cpu"):
        lanes = 1
    solvers = [FixedStep(at.scheme, at.counted) for at in grid]
    start = time.perf_counter()
    example = next(iter(batches()))
    bound = memory_bound(memory_gib)
    swap = remanifest.compile_swap(net, variables, example, score, solvers, lanes=lanes, bytes_available=bound)
    compile_seconds = time.perf_counter() - start
    scores, seconds = [], []
    complete = None if restat is None else restat.program(net, swap.n_stages)
    for group in [solvers] if complete is None else [[solver] for solver in solvers]:
        own = variables if complete is None else complete(group[0], variables)
        found, taken = remanifest.run_swap(swap, own, group, batches, time.perf_counter)
        scores, seconds = scores + found, seconds + taken
    blocks = n_blocks(net, variables, example[0])
    rows = [
        {
            "scheme": at.scheme,
            "n_steps": at.n_steps,
            "accuracy": int(sums["hits"]) / n_images,
            "loss": None if sums["diverged"] else float(sums["loss"]) / n_images,
            "diverged": int(sums["diverged"]),
            "nfe": remanifest.nfe(solver, blocks),
            "seconds": taken,
        }
        for at, solver, sums, taken in zip(grid, solvers, scores, seconds, strict=True)
    ]
    program = {
        "lanes": swap.lanes,
        "temporary_mib": swap.temporary_bytes / 2**20,
        "compile_seconds": compile_seconds,
        "run_seconds": sum(seconds),
    }
    return rows, program
