"""The adaptive checkpoint adjoint: gradients replayed on the accepted steps of the forward pass."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, checked
from ode_nets.gradients import treeverse
from ode_nets.gradients.back import Cotangents, Point, Pull, round_of, solve_and_return
from ode_nets.gradients.direct import differentiable
from ode_nets.gradients.outputs import mark_derivatives
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.gradients.treeverse import Store
from ode_nets.integrate import Problem, Solution, Solver
from ode_nets.integrate.loop import Keeper, held
from ode_nets.integrate.problem import Place, evaluator
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import any_lane, read, room, select, this_lane, write
from ode_nets.stepping import Step
from ode_nets.trees import Packing

PyTree = Any
RECORDED = 256
"""Steps whose times are written down, or as many as take a sixteenth of the memory of a state. Where more are taken,
states of later ones are recomputed by searching for their steps again, so that no memory grows with the bound on their
number."""

FEW, MANY, MEBIBYTE = 32, 128, 2**20
"""States that `ACA()` keeps: of large ones few, of small ones many, as long as they fit into a mebibyte."""


@dataclasses.dataclass(frozen=True)
@checked
class ACA:
    """The adaptive checkpoint adjoint (ACA algorithm 2, app. A).

    The forward pass keeps the times and starting states of accepted steps and nothing else. The backward pass takes
    each of them once more with its own size, and one local vector-Jacobian product: no rejected trial, no search for
    step sizes, no error estimate and no stage that only serves one. Parameter cotangents add up in one tree. On the
    same accepted steps the gradient is that of `Direct`.

    Args:
      checkpoints: S, how many states are kept at once. While at most S steps are accepted nothing is computed
        twice. Beyond, states are thinned out as they come and recomputed, in as few passes as S states allow: at most
        one more forward pass while n_accepted <= S^2 / 4. Recomputed are steps of recorded size up to the 256th, and
        beyond that their sizes are searched for again. `None` keeps every state, in a buffer of `max_steps` of
        them, which is allocated in full: max_steps * bytes(x0), e.g. 4096 * 16 MiB = 64 GiB for a state of
        [32, 64, 64, 32] in float32. The default, `"auto"`, is 32, and of small states as many as fit into 1 MiB, up to
        128.

    Memory does not depend on `max_steps`, but for four bytes each, and with `None`. On a known number of steps with at
    least as many checkpoints this is `Checkpointed("step")`. Reverse mode only.

    Raises:
      ValueError: for less than one checkpoint.

    Example:
        >>> ACA(8)
        ACA(checkpoints=8)
    """

    checkpoints: Count | Literal["auto"] | None = "auto"

    marks_failed: ClassVar[bool] = True
    """Whether derivatives of a solve that failed are NaN without more ado."""

    def slots(self, size: int, bound: int) -> int:
        """How many states of `size` bytes are kept of at most `bound` steps."""
        if self.checkpoints == "auto":
            return min(max(FEW, min(MANY, MEBIBYTE // max(size, 1))), bound)
        return bound if self.checkpoints is None else min(self.checkpoints, bound)

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        slots = self.slots(_size(problem, solver), solver.bound)
        if solver.length is not None and slots >= solver.length:
            problem = refuse_forward_mode(problem, repr(self))
            return mark_derivatives(differentiable(problem, solver, jax.checkpoint, dense), (problem, solver))
        keeper = lambda problem, solver: _keeper(problem, solver, slots)
        return solve_and_return(problem, solver, dense, repr(self), keeper, _walk)


class Kept(NamedTuple):
    """What the forward pass leaves for the backward one, by round; see `Point`."""

    store: Store
    """Of `Point`s."""
    round: jax.Array
    """Number of the one at hand."""
    step: jax.Array
    """Steps accepted before it."""
    ends: Any
    """Where rounds begin, `[RECORDED + 1]`, and a spare row; `None` where the solver knows its steps."""
    edge: Any
    """The clock before the first round whose end is not recorded, packed; likewise."""


def _packing(clock: Clock, x: PyTree) -> Packing:
    return Packing(Point(clock, x))


def _size(problem: Problem, solver: Solver) -> int:
    """Bytes of what is carried from step to step; a mebibyte where the batch of an exported function may be any."""
    carried = jax.tree.leaves(jax.eval_shape(solver.scheme.lift, problem.x0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in carried)
    return size if isinstance(size, int) else MEBIBYTE


def _recorded(problem: Problem, solver: Solver) -> int:
    return min(max(RECORDED, _size(problem, solver) // (16 * problem.span.dtype.itemsize)), solver.bound)


def _keeper(problem: Problem, solver: Solver, slots: int) -> Keeper:
    n = _recorded(problem, solver)

    def begin(clock: Clock, x: PyTree) -> Kept:
        store = treeverse.new_store(_packing(clock, x).pack(Point(clock, x)), slots)
        if solver.recorded:
            return Kept(store, jnp.int32(0), clock.step, None, None)
        return Kept(store, jnp.int32(0), clock.step, room(n + 1, clock.tau), Packing(clock).pack(clock))

    def keep(kept: Kept, clock: Clock, x: PyTree, mine: Any) -> Kept:
        i = round_of(kept, clock)
        kept = kept._replace(round=i, step=clock.step)
        row = _packing(clock, x).pack(Point(clock, x))
        kept = kept._replace(store=treeverse.keep(kept.store, i, row, solver.bound))
        if kept.ends is None:
            return kept
        ends = write(kept.ends, jnp.minimum(i, n + 1), clock.tau)
        return kept._replace(ends=ends, edge=select(i == n, Packing(clock).pack(clock), kept.edge))

    return Keeper(begin, keep)


def _walk(problem: Problem, solver: Solver, kept: Kept, end: Point, pull: Pull, start: Cotangents) -> Cotangents:
    """By states that are stored, and by those that are computed again from them."""
    packing = _packing(*end)

    def advance(i: jax.Array, packed: Any) -> Any:
        return packing.pack(_advance(problem, solver, kept, i, packing.unpack(packed)))

    stored = lambda i, packed, ct, mine: pull(i, packing.unpack(packed), ct, mine)
    return treeverse.reverse(round_of(kept, end.clock), kept.store, solver.bound, advance, stored, start)


def _advance(problem: Problem, solver: Solver, kept: Kept, i: jax.Array, point: Point) -> Point:
    """The point after a round: by steps that are known, or by searching for them again."""
    step = lambda place, x, error: solver.scheme.advance(
        evaluator(problem, place), x, place.shift(problem), error=error
    )
    n_known = solver.bound if kept.ends is None else kept.ends.shape[0] - 2
    if n_known >= solver.bound:
        clock, x = point
        if solver.recorded:
            place, moved = solver.place(problem, i, None, None, None), solver.running(clock)
        else:
            end = read(kept.ends, i + 1)
            place, moved = Place(clock.tau, end - clock.tau, end), end > clock.tau
        after = Point(clock._replace(tau=place.end, step=clock.step + 1), step(place, x, False)[0])
        return select(this_lane(moved), after, point)
    late = i >= n_known
    packing = _packing(point.clock, point.x)

    def trial(carry: Any) -> Any:
        clock, x = packing.unpack(carry[0])
        end, place = read(kept.ends, jnp.minimum(i + 1, n_known)), solver.propose(problem, clock)
        place = select(late, place, Place(clock.tau, end - clock.tau, end))
        new, error = step(place, x, late)
        judged, accepted = solver.judge(problem, clock, place, x, Step(new, error, (), (), None, None, None, 0))
        mine = this_lane(jnp.where(late, solver.running(clock), end > clock.tau))
        known = clock._replace(tau=end, step=clock.step + 1)
        clock = select(mine, select(late, held(judged), known), clock)
        moved = mine & (accepted | ~late)
        over = any_lane(moved) | ~any_lane(solver.running(clock)) | ~late
        return packing.pack(Point(clock, select(moved, new, x))), over

    over = any_lane(point.clock.step < 0)
    packed, _ = jax.lax.while_loop(lambda carry: ~carry[1], trial, (packing.pack(point), over))
    point = packing.unpack(packed)
    return point._replace(clock=select(i + 1 == n_known, Packing(point.clock).unpack(kept.edge), point.clock))
