"""Re-manifestation of a trained model: refine it, compress it, and evaluate it under other solvers.

Every function takes a description (`net`) and its variables and changes neither. Coefficients are recognized
by the name that `OdeBlock` gives them, in parameters, batch statistics and optimizer states alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import Direct
from ode_nets.integrate import FixedStep, pad
from ode_nets.nn.evolving import EVOLVED
from ode_nets.weights import (
    Basis,
    PiecewiseConstant,
    interpolation_matrix,
    projection_matrix,
    refinement_matrix,
    transform,
)

PyTree = Any
COEFFICIENTS = "coefficients"
"""Name of the variables of an `OdeBlock`, in every collection."""


def map_coefficients(tree: PyTree, function: Callable[[PyTree], PyTree]) -> PyTree:
    """Apply a function to every leaf that is stacked by basis function, wherever it is in a tree.

    Args:
      tree: variables, or an optimizer state made of trees like them.
      function: maps one array `[n_basis, ...]` to another.

    Returns:
      The tree with those leaves replaced and all others as they are.
    """

    def leaf(path: tuple[Any, ...], value: Any) -> Any:
        names = [getattr(key, "key", None) for key in path]
        # The parameters of a q may have any names of their own.
        return function(value) if COEFFICIENTS in names and EVOLVED not in names else value

    return jax.tree_util.tree_map_with_path(leaf, tree)


def n_parameters(variables: PyTree) -> int:
    """Number of trainable parameters in `variables["params"]`."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(variables["params"]))


def refine(net: nn.Module, variables: PyTree, factor: int = 2) -> tuple[nn.Module, PyTree]:
    """The same theta(t) with more coefficients, solved with as many times the steps.

    The refinement of training (ContinuousNet sec. 5.2): N_t and M grow together.

    Args:
      net: a model with `basis` and a `FixedStep` as `solver`.
      variables: `{collection: tree}`: `params`, `batch_stats`, and optimizer states under any other name.
      factor: of both.

    Returns:
      The refined description and its variables. Under one and the same solver both compute the same function,
      wherever the new intervals of the batch statistics lie inside the old ones: always, but for a piecewise
      linear basis of two knots or more, whose statistics are averaged over intervals that overlap.

    Raises:
      ValueError: for a net without a basis, a solver without a step count, or a factor that is not an integer of
        at least 1.
    """
    old = _basis_of(net)
    if not isinstance(net.solver, FixedStep):
        raise ValueError(f"net.solver={net.solver!r}: only a FixedStep has a number of steps to multiply")
    solver = FixedStep(net.solver.scheme, net.solver.n_steps * factor)
    return _rebased(net.clone(solver=solver), variables, old.refined(factor), refinement_matrix(old, factor))


def project(net: nn.Module, variables: PyTree, basis: Basis) -> tuple[nn.Module, PyTree]:
    """The L2 projection of theta(t) onto another basis, without data (ContinuousNet sec. 4.4).

    Batch statistics, which are kept by equal intervals, are averaged over as many new intervals.

    Raises:
      ValueError: for a net without a basis.
    """
    return _rebased(net, variables, basis, projection_matrix(_basis_of(net), basis))


def interpolate(net: nn.Module, variables: PyTree, basis: Basis) -> tuple[nn.Module, PyTree]:
    """theta(t) sampled at the nodes of another basis, without data.

    Raises:
      ValueError: for a net without a basis.
    """
    return _rebased(net, variables, basis, interpolation_matrix(_basis_of(net), basis))


def _basis_of(net: nn.Module) -> Basis:
    basis = getattr(net, "basis", None)
    if not isinstance(basis, Basis):
        raise ValueError(
            f"net is a {type(net).__name__}, whose weights are in no basis: expected a module with a `basis`, such as "
            "ContinuousNet or OdeBlock; a ResNet's weights have one in the ContinuousNet that `as_resnet` took"
        )
    return basis


def _rebased(net: nn.Module, variables: PyTree, basis: Basis, matrix: np.ndarray) -> tuple[nn.Module, PyTree]:
    intervals = projection_matrix(PiecewiseConstant(_basis_of(net).n_basis), PiecewiseConstant(basis.n_basis))
    changed = {}
    for name, tree in variables.items():
        change = partial(transform, matrix=intervals if name == "batch_stats" else matrix)
        changed[name] = map_coefficients(tree, change)
    return net.clone(basis=basis), changed


def nfe(solver: FixedStep, n_blocks: int = 1) -> int:
    """Field evaluations of one forward pass: stages that the state depends on, times steps, times blocks.

    Raises:
      ValueError: for a scheme that cannot tell, as no implicit one can.
    """
    if solver.scheme.n_evaluations is None:
        raise ValueError(f"scheme {solver.scheme.name!r} takes as many evaluations a step as it needs; solve and count")
    return solver.n_steps * solver.scheme.n_evaluations * n_blocks


def make_swap(net: nn.Module, score: Callable[[jax.Array, PyTree], PyTree], lanes: int = 1) -> Callable[..., PyTree]:
    """A function that evaluates one set of weights under any fixed-step solver without compiling again.

    Args:
      net: a model with `solver` and `gradient` attributes.
      score: `score(logits, batch) -> pytree` of sums over the batch.
      lanes: solvers evaluated side by side, with `jax.vmap`. They all run as long as the longest of them
        and hold their states together; 1 runs each for exactly its own field evaluations.

    Returns:
      `swap(variables, images, batch, solvers)`, to be compiled: `solvers` from `stack_solvers` with `lanes`
      entries; the scores of each, stacked.
    """

    def one(variables: PyTree, images: jax.Array, batch: PyTree, solver: Any) -> PyTree:
        manifestation = net.clone(solver=solver, gradient=Direct())
        logits: Any = manifestation.apply(variables, images)
        return score(logits, batch)

    def single(variables: PyTree, images: jax.Array, batch: PyTree, solvers: Any) -> PyTree:
        scores = one(variables, images, batch, jax.tree.map(lambda leaf: leaf[0], solvers))
        return jax.tree.map(lambda leaf: leaf[None], scores)

    # One lane is not vmapped: batched kernels would turn every convolution into a grouped one.
    return single if lanes == 1 else jax.vmap(one, in_axes=(None, None, None, 0))


def stack_solvers(solvers: Sequence[FixedStep], n_stages: int) -> Any:
    """Solvers as arrays with a leading axis, padded to `n_stages` stages."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(pad(solver, n_stages) for solver in solvers))


@dataclasses.dataclass(frozen=True)
class Swap:
    """A net compiled once for every solver of at most `n_stages` stages; made by `compile_swap`.

    Attributes:
      program: `program(variables, images, batch, solvers) -> scores`, leaves `[lanes, ...]`.
      lanes: solvers a call takes.
      n_stages: stages that each solver is padded to.
      temporary_bytes: memory the program needs beside its arguments and results.
    """

    program: Callable[..., PyTree]
    lanes: int
    n_stages: int
    temporary_bytes: int


def compile_swap(
    net: nn.Module,
    variables: PyTree,
    example: tuple[jax.Array, PyTree],
    score: Callable[[jax.Array, PyTree], PyTree],
    solvers: Sequence[FixedStep],
    *,
    lanes: int | None = None,
    bytes_available: int | None = None,
) -> Swap:
    """Compile `make_swap` for a grid of solvers.

    Args:
      net, variables: a trained model.
      example: `(images, batch)`, arrays or their shapes; all batches to come must have these shapes.
      score: `score(logits, batch) -> pytree` of sums.
      solvers: the grid, or any solvers with as many stages.
      lanes: solvers side by side; `None` for as many as `bytes_available` allows.
      bytes_available: bound of the temporary memory where `lanes` is `None`; `None` for no bound.

    Returns:
      The compiled program. Where not all solvers fit side by side into the bound, their program is compiled
      to learn its memory, and one with fewer lanes after it.

    Raises:
      ValueError: for an empty grid or fewer than one lane.
    """
    if not solvers or (lanes is not None and lanes < 1):
        raise ValueError(f"{len(solvers)} solvers in lanes={lanes}: expected at least one of each")
    n_stages = max(solver.scheme.n_evaluations or 0 for solver in solvers)
    bound = math.inf if lanes is not None or bytes_available is None else bytes_available
    lanes = min(lanes or len(solvers), len(solvers))
    while True:
        stacked = stack_solvers([solvers[0]] * lanes, n_stages)
        program = jax.jit(make_swap(net, score, lanes)).lower(variables, *example, stacked).compile()
        used = int(getattr(program.memory_analysis(), "temp_size_in_bytes", 0))
        if lanes == 1 or used <= bound:
            return Swap(program, lanes, n_stages, used)
        lanes = lanes_within(int(bound), -(-used // lanes), lanes - 1)


def run_swap(
    swap: Swap,
    variables: PyTree,
    solvers: Sequence[FixedStep],
    batches: Callable[[], Iterable[tuple[jax.Array, PyTree]]],
    timer: Callable[[], float] | None = None,
) -> tuple[list[PyTree], list[float]]:
    """Evaluate one set of weights under many fixed-step solvers with a compiled program.

    Args:
      swap: from `compile_swap`.
      variables: of the net it was compiled for.
      solvers: the grid of (scheme, n_steps).
      batches: makes an iterable of `(images, batch)`, all of the shapes compiled for.
      timer: a clock in seconds, to time the program on each chunk of lanes, without what makes the batches;
        `None` for no times.

    Returns:
      One score a solver, in order, summed over batches; and the seconds of each: a chunk's, shared out by the
      solvers' field evaluations (empty without a timer).
    """

    def timed(stacked: Any, images: jax.Array, batch: PyTree) -> tuple[PyTree, float]:
        if timer is None:
            return swap.program(variables, images, batch, stacked), 0.0
        # Copying and scaling images may still be under way, and is no part of any solver's cost.
        images, batch = jax.block_until_ready(jax.device_put((images, batch)))
        start = timer()
        sums = jax.block_until_ready(swap.program(variables, images, batch, stacked))
        return sums, timer() - start

    # Solvers of like cost share a chunk, since the lanes of one all run as long as the longest.
    by_cost = sorted(range(len(solvers)), key=lambda i: nfe(solvers[i]))
    chunks = [by_cost[i : i + swap.lanes] for i in range(0, len(by_cost), swap.lanes)]
    scores: list[PyTree] = [None] * len(solvers)
    seconds = [0.0] * len(solvers)
    for number, chunk in enumerate(chunks):
        padded = chunk + [chunk[-1]] * (swap.lanes - len(chunk))
        stacked = stack_solvers([solvers[i] for i in padded], swap.n_stages)
        if timer is not None and number == 0:
            jax.block_until_ready(swap.program(variables, *next(iter(batches())), stacked))
        total, elapsed = None, 0.0
        for images, batch in batches():
            sums, taken = timed(stacked, images, batch)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
            elapsed += taken
        total = jax.device_get(total)
        cost = sum(nfe(solvers[i]) for i in chunk)
        for lane, i in enumerate(chunk):
            scores[i] = jax.tree.map(lambda leaf, lane=lane: leaf[lane], total)
            seconds[i] = elapsed * nfe(solvers[i]) / cost
    return scores, seconds if timer is not None else []


def swap_solvers(
    net: nn.Module,
    variables: PyTree,
    solvers: Sequence[FixedStep],
    batches: Callable[[], Iterable[tuple[jax.Array, PyTree]]],
    score: Callable[[jax.Array, PyTree], PyTree],
    lanes: int | None = 1,
    timer: Callable[[], float] | None = None,
    bytes_available: int | None = None,
) -> tuple[list[PyTree], list[float]]:
    """Evaluate one set of weights under many fixed-step solvers, in one compiled program.

    ContinuousNet[scheme, n_steps][theta] for each (scheme, n_steps)      (ContinuousNet sec. 5.3, eq. 27)

    `compile_swap` and `run_swap` in one; see there for arguments, results and errors.
    """
    example = next(iter(batches()))
    swap = compile_swap(net, variables, example, score, solvers, lanes=lanes, bytes_available=bytes_available)
    return run_swap(swap, variables, solvers, batches, timer)


def lanes_within(bytes_available: int, bytes_one: int, n_solvers: int) -> int:
    """How many solvers fit side by side: at least one, at most all."""
    return max(1, min(n_solvers, bytes_available // max(bytes_one, 1)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both: lower cost, higher value; sorted by cost.

    Args:
      points: `(cost, value)`; points with a value that is NaN are never in the front.
    """
    best, front = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def export_inference(
    net: nn.Module,
    variables: PyTree,
    image_shape: tuple[int, int, int],
    *,
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    dtype: str = "float32",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """A trained model as one serialized function that runs without `ode_nets` and without Flax.

        logits = jax.export.deserialize(bytearray(data)).call(images)

    The weights and the preprocessing are inside; the batch may have any size.

    Args:
      net, variables: a trained model.
      image_shape: height, width, channels.
      preprocess: what is done to images before the net, e.g. scaling; pure.
      dtype: of the images that the function takes, `[batch, *image_shape]`.
      platforms: to lower for.

    Returns:
      Bytes to write to a file.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    function = jax.jit(lambda images: net.apply(variables, preprocess(images)))
    return bytes(jax.export.export(function, platforms=tuple(platforms))(images).serialize())
