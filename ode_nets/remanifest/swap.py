"""Solver swaps: one set of weights under a grid of fixed-step solvers, in one compiled program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, Natural, Rule, checked
from ode_nets.gradients import Direct
from ode_nets.integrate import FixedStep, pad
from ode_nets.remanifest.costs import nfe
from ode_nets.remanifest.exchangeable import check_exchangeable

PyTree = Any
Solvers = Annotated[Sequence[FixedStep], Rule("solvers FixedStep, at least one", bool)]


@checked
def make_swap(net: nn.Module, score: Callable[[jax.Array, PyTree], PyTree], lanes: Count = 1) -> Callable[..., PyTree]:
    """A function that evaluates one set of weights under any fixed-step solver without compiling again.

    Args:
      net: a model with `solver` and `gradient` attributes.
      score: `score(logits, batch) -> pytree` of sums over the batch.
      lanes: solvers evaluated side by side, with `jax.vmap`. They all run as long as the longest of them
        and hold their states together; 1 runs each for exactly its own field evaluations.

    Returns:
      `swap(variables, images, batch, solvers)`, to be compiled: `solvers` from `stack_solvers` with `lanes`
      entries; the scores of each, stacked.

    Raises:
      ValueError: for a net without a solver and a gradient method to exchange, see `Exchangeable`.
    """
    check_exchangeable(net, "solver", "gradient")

    def one(variables: PyTree, images: jax.Array, batch: PyTree, solver: Any) -> PyTree:
        manifestation = net.clone(solver=solver, gradient=Direct())
        logits: Any = manifestation.apply(variables, images)
        return score(logits, batch)

    def single(variables: PyTree, images: jax.Array, batch: PyTree, solvers: Any) -> PyTree:
        scores = one(variables, images, batch, jax.tree.map(lambda leaf: leaf[0], solvers))
        return jax.tree.map(lambda leaf: leaf[None], scores)

    # One lane is not vmapped: batched kernels would turn every convolution into a grouped one.
    return single if lanes == 1 else jax.vmap(one, in_axes=(None, None, None, 0))


@checked
def stack_solvers(solvers: Solvers, n_stages: Count, max_steps: Count | None = None) -> Any:
    """Solvers as arrays with a leading axis, padded to `n_stages` stages; `max_steps` by default what they need."""
    most = max_steps or _most_steps(solvers, n_stages)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(pad(solver, n_stages, most) for solver in solvers))


def _most_steps(solvers: Solvers, n_stages: int) -> int:
    """The bound under which all of them can be stacked."""
    return max(pad(solver, n_stages).max_steps for solver in solvers)


@dataclasses.dataclass(frozen=True)
class Swap:
    """A net compiled once for every solver of at most `n_stages` stages; made by `compile_swap`.

    Attributes:
      program: `program(variables, images, batch, solvers) -> scores`, leaves `[lanes, ...]`.
      lanes: solvers a call takes.
      n_stages: stages that each solver is padded to; max_steps: the most steps that it may have.
      temporary_bytes: memory the program needs beside its arguments and results.
    """

    program: Callable[..., PyTree]
    lanes: int
    n_stages: int
    max_steps: int
    temporary_bytes: int


@checked
def compile_swap(
    net: nn.Module,
    variables: PyTree,
    example: tuple[jax.Array, PyTree],
    score: Callable[[jax.Array, PyTree], PyTree],
    solvers: Solvers,
    *,
    lanes: Count | None = None,
    bytes_available: Natural | None = None,
) -> Swap:
    """Compile `make_swap` for a grid of solvers.

    Args:
      net, variables: a trained model.
      example: `(images, batch)`, arrays or their shapes; all batches to come must have these shapes.
      score: `score(logits, batch) -> pytree` of sums.
      solvers: the grid, or any solvers with as many stages and as many steps at least.
      lanes: solvers side by side; `None` for as many as `bytes_available` allows.
      bytes_available: bound of the temporary memory where `lanes` is `None`; `None` for no bound.

    Returns:
      The compiled program. Where not all solvers fit side by side into the bound, their program is compiled
      to learn its memory, and one with fewer lanes after it.

    Raises:
      ValueError: for an empty grid, fewer than one lane, or a net as `make_swap` refuses.
    """
    n_stages = max(solver.scheme.n_evaluations or 0 for solver in solvers)
    most = _most_steps(solvers, n_stages)
    bound = math.inf if lanes is not None or bytes_available is None else bytes_available
    lanes = min(lanes or len(solvers), len(solvers))
    while True:
        stacked = stack_solvers([solvers[0]] * lanes, n_stages, most)
        program = jax.jit(make_swap(net, score, lanes)).lower(variables, *example, stacked).compile()
        used = int(getattr(program.memory_analysis(), "temp_size_in_bytes", 0))
        if lanes == 1 or used <= bound:
            return Swap(program, lanes, n_stages, most, used)
        lanes = lanes_within(int(bound), -(-used // lanes), lanes - 1)


@checked
def run_swap(
    swap: Swap,
    variables: PyTree,
    solvers: Solvers,
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
        stacked = stack_solvers([solvers[i] for i in padded], swap.n_stages, swap.max_steps)
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


@checked
def swap_solvers(
    net: nn.Module,
    variables: PyTree,
    solvers: Solvers,
    batches: Callable[[], Iterable[tuple[jax.Array, PyTree]]],
    score: Callable[[jax.Array, PyTree], PyTree],
    lanes: Count | None = 1,
    timer: Callable[[], float] | None = None,
    bytes_available: Natural | None = None,
) -> tuple[list[PyTree], list[float]]:
    """Evaluate one set of weights under many fixed-step solvers, in one compiled program.

    `ContinuousNet[scheme, n_steps][theta]` for each (scheme, n_steps)    (ContinuousNet sec. 5.3, eq. 27)

    `compile_swap` and `run_swap` in one; see there for arguments, results and errors.

    Example:
        >>> net = OdeBlock(MLP(2, (4,)), PiecewiseConstant(2), FixedStep("rk4", 2))
        >>> x = jnp.ones((3, 2))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> score = lambda outputs, batch: jnp.sum(jnp.abs(outputs))
        >>> solvers = [FixedStep("euler", 8), FixedStep("rk4", 2)]
        >>> scores, seconds = swap_solvers(net, variables, solvers, lambda: [(x, ())], score)
        >>> len(scores), bool(abs(scores[0] - scores[1]) < 0.05 * scores[1])
        (2, True)
    """
    example = next(iter(batches()))
    swap = compile_swap(net, variables, example, score, solvers, lanes=lanes, bytes_available=bytes_available)
    return run_swap(swap, variables, solvers, batches, timer)


@checked
def lanes_within(bytes_available: int, bytes_one: int, n_solvers: int) -> int:
    """How many solvers fit side by side: at least one, at most all."""
    return max(1, min(n_solvers, bytes_available // max(bytes_one, 1)))
