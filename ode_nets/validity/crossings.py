"""Trajectories that cross: the sign that a numerical solution has stopped to be one of an ODE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from ode_nets.arguments import Count, NotNegative, Rule, checked
from ode_nets.integrate import FixedStep, Problem, integrate, theta_at
from ode_nets.integrate.problem import Place, evaluator
from ode_nets.validity.planar import Margin, chord_heights, cross, orientation

PyTree = Any
Trajectories = tuple[Float[np.ndarray, "batch n_times size"], Float[np.ndarray, "n_times"]]
Test = Literal["order", "segments", "jacobian"]
Share = Annotated[float, Rule("numbers in (0, 1]", lambda x: 0 < x <= 1)]
NOISE = 64
"""Multiples of a state's rounding error below which `crossings` tells no two trajectories apart."""
LARGEST = 2048
"""Numbers in a state up to which `folds` forms Jacobians: 32 MiB each and a factorization of some seconds."""


@dataclasses.dataclass(frozen=True)
class Crossings:
    """Where numerical trajectories meet without coinciding (Ott sec. 4).

    Attributes:
      test: `"order"` (1-D: two trajectories change places in a step), `"segments"` (2-D: two steps intersect),
        both exact for the polygons that are tested, beyond a margin; `"jacobian"`: det D Psi_h <= 0 for a step
        Psi_h, which is sufficient and not necessary (see `folds`).
      count: number found.
      places: `[count, ...]`: (t, x) in one dimension, points in two, states of folding steps beyond.
      members: int `[count, 4]`: trajectory and step of the one, and of the other; beyond two dimensions
        (n, k, n, k) of the step that folds.
      examined: number of pairs of steps, or of steps, that were tested; not counting steps that left the finite
        numbers, of which nothing is said.
      reason: why nothing was examined; empty where something was.
    """

    test: Test
    count: int
    places: Float[np.ndarray, "count size"]
    members: Int[np.ndarray, "count 4"]
    examined: int
    reason: str = ""


@checked
def order_changes(
    states: Real[np.ndarray, "n n_times"], t: Real[np.ndarray, "n_times"], margin: NotNegative = 0.0
) -> Crossings:
    """Crossings of trajectories in one dimension: a pair that changes places within a step.

    Exact with margin 0: comparisons of floating-point numbers. Two trajectories that start in one point coincide, and a
    pair that merges without passing does not cross; one that merges and comes out the other way round does, where it
    comes out. Right for fields that depend on time, too.

    Args:
      states: `[n, n_times]`, at common times.
      t: those times, one more than there are steps.
      margin: a pair must be further apart than this before and after.

    Raises:
      ValueError: for shapes that do not fit.
    """
    x = np.asarray(states, float)
    first, second = np.triu_indices(len(x), 1)
    with np.errstate(invalid="ignore"):
        gap = x[first] - x[second]
        side = np.where(np.abs(gap) > margin, np.sign(gap), 0)
    finite = np.isfinite(x)
    tested = (finite[first] & finite[second])[:, :-1] & (finite[first] & finite[second])[:, 1:]
    for i in range(1, len(t)):
        side[:, i] = np.where(side[:, i] == 0, side[:, i - 1], side[:, i])
    pair, k = np.nonzero((side[:, :-1] * side[:, 1:] < 0) & tested)
    n, m = first[pair], second[pair]
    before, after = x[n, k] - x[m, k], x[n, k + 1] - x[m, k + 1]
    tau = np.clip(before / (before - after), 0.0, 1.0)
    places = np.stack([t[k] + tau * (t[k + 1] - t[k]), x[n, k] + tau * (x[n, k + 1] - x[n, k])], axis=-1)
    return Crossings("order", len(k), places, np.stack([n, k, m, k], axis=-1), int(tested.sum()), _why_none(tested))


@checked
def segment_crossings(states: Real[np.ndarray, "n n_points 2"], margin: Margin = 0.0) -> Crossings:
    """Crossings of trajectories in the plane: two steps whose segments intersect inside both; exact.

    The definition of Ott sec. 4, whose tau and tau' lie inside (0, 1): steps that touch in an end or lie on one
    line do not cross, neither do trajectories that share a start. Steps of one trajectory may cross each other.
    For fields that do not depend on time.

    Polygons that follow one curve with other points on it do intersect, the exact solutions of an ODE on one orbit
    too: chords lie to the inside of the curve. `chord_heights` gives a margin that sets that aside.

    Args:
      states: polygons, `[n, n_points, 2]`; not finite points belong to no step.
      margin: the ends of each step must be further than this from the line of the other; or a margin of each step,
        `[n, n_points - 1]`, of which the sum of both counts.

    Raises:
      ValueError: for other shapes.

    Cost: comparisons of the bounding boxes of steps that overlap along the first axis, in chunks.
    """
    z = np.asarray(states, float)
    if np.ndim(margin) and np.shape(margin) != (z.shape[0], z.shape[1] - 1):
        raise ValueError(f"margin has shape {np.shape(margin)}: expected a number, or one a step of states {z.shape}")
    z = np.where(np.isfinite(z).all(-1, keepdims=True), z, np.nan)
    n, k = (index.ravel() for index in np.indices((z.shape[0], z.shape[1] - 1)))
    start, end = z[n, k], z[n, k + 1]
    low, high = np.minimum(start, end), np.maximum(start, end)
    # From left to right, so that a step meets none beyond those that start before it ends.
    order, found = np.argsort(low[:, 0], kind="stable"), []
    left, right = low[order], high[order]
    for first in range(0, len(n), 128):
        rows = slice(first, first + 128)
        columns = slice(first, int(np.searchsorted(left[:, 0], right[rows, 0].max(), side="right")))
        near = (left[rows, None] <= right[None, columns]).all(-1) & (left[None, columns] <= right[rows, None]).all(-1)
        one, other = np.nonzero(np.triu(near, 1))
        found.append(order[first + np.stack([one, other])])
    pairs = np.sort(np.concatenate(found, axis=1), axis=0) if found else np.zeros((2, 0), int)
    i, j = pairs[:, np.lexsort(pairs[::-1])]
    own = np.ravel(margin) if np.ndim(margin) else np.full(len(n), margin / 2)
    for swap in (False, True):
        on, of = (j, i) if swap else (i, j)
        sides = [orientation(start[on], end[on], point, own[on] + own[of]) for point in (start[of], end[of])]
        across = sides[0] * sides[1] < 0
        i, j = i[across], j[across]
    move, other = end[i] - start[i], end[j] - start[j]
    with np.errstate(all="ignore"):
        tau = cross(start[j] - start[i], other) / cross(move, other)
    places = start[i] + np.clip(np.nan_to_num(tau, nan=0.5), 0, 1)[:, None] * move
    members = np.stack([n[i], k[i], n[j], k[j]], axis=-1)
    finite = np.isfinite(start).all(-1) & np.isfinite(end).all(-1)
    m = int(finite.sum())
    return Crossings("segments", len(i), places, members, m * (m - 1) // 2, _why_none(finite))


def _why_none(tested: np.ndarray) -> str:
    """Why nothing was examined, of which steps or pairs of them are finite."""
    return "" if tested.any() or not tested.size else "no step stays in the finite numbers"


@checked
def trajectories(problem: Problem, solver: FixedStep, substeps: Count = 1) -> Trajectories:
    """Numerical trajectories Psi_{tau h}(z_k), tau = j / substeps: what Ott's definition of crossings is about.

    Args:
      problem: with a state `[batch, ...]`.
      solver: its grid.
      substeps: points a step; Euler's partial steps lie on a line, so 1 is exact for it.

    Returns:
      States and n_steps * substeps + 1 times, float64.
    """
    t0, span, n = float(problem.t0), float(problem.sign * problem.span), solver.n_steps
    grid = span * np.arange(n + 1) / n
    # Weights that jump are read by exact arithmetic on the whole grid, and partial steps start from there.
    known = tuple((k / n, 0.0) for k in range(n + 1))
    asked = dataclasses.replace(problem, ts=jnp.asarray(np.abs(grid), problem.span.dtype), known_ts=known)
    states = jax.jit(lambda: integrate(asked, solver).x)()
    parts = [states]
    if substeps > 1:
        taus = np.arange(1, substeps) / substeps
        step = _step_map(problem, solver)
        starts = jnp.asarray(np.abs(grid[:-1]), problem.span.dtype)
        parts += [jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(states[:-1], starts, share) for share in taus]
    whole = np.asarray(states, float).reshape(n + 1, states.shape[1], -1)
    inner = [np.asarray(part, float).reshape(n, states.shape[1], -1) for part in parts[1:]]
    woven = np.stack([whole[:-1], *inner], axis=1).reshape(n * substeps, states.shape[1], -1)
    t = t0 + span * np.arange(n * substeps + 1) / (n * substeps)
    return np.concatenate([woven, whole[-1:]]).swapaxes(0, 1), t


def _step_map(problem: Problem, solver: FixedStep) -> Any:
    """`step(x, tau, share)`: Psi_{share h} from tau, on a batch of states."""
    h = problem.span / solver.n_steps

    def step(x: jax.Array, tau: jax.Array, share: Any) -> jax.Array:
        # A step of full size may end on a jump, which is read from inside the step.
        place = Place(tau, share * h, tau + share * h)
        scheme = solver.scheme
        return scheme.lower(scheme.step(evaluator(problem, place), scheme.lift(x), place.shift(problem)).x)

    return step


@checked
def folds(
    problem: Problem,
    solver: FixedStep,
    *,
    n_samples: Count = 8,
    n_places: Count = 8,
    taus: Sequence[Share] = (0.5, 1.0),
) -> Crossings:
    """Steps that turn space inside out, in any dimension: det D Psi_{tau h} <= 0.

        det D phi_t = exp(int_0^t tr Df) > 0 for the flow phi_t of any ODE   (Liouville)

    The determinant of a partial step is 1 at tau = 0, so where it is not positive at tau it was zero on the way:
    there, neighbouring trajectories meet to first order. Sufficient for crossings and not necessary: steps may
    also carry distant trajectories across each other.

    Args:
      problem: with a state `[batch, ...]` whose samples do not see each other.
      solver: its grid.
      n_samples: samples of the batch, the first ones.
      n_places: steps, spread over the grid, the first and the last among them.
      taus: fractions of a step, in (0, 1].

    Returns:
      `Crossings`. States of more than 2048 numbers are not examined, for what their Jacobians would cost.

    Cost: n_samples * n_places * len(taus) Jacobians of [size, size], one at a time: size forward derivatives and
      a factorization each.
    """
    size = int(np.prod(problem.x0.shape[1:]))
    if size > LARGEST:
        why = f"states of {size} numbers: Jacobians beyond {LARGEST} cost too much"
        return Crossings("jacobian", 0, np.zeros((0, size)), np.zeros((0, 4), int), 0, why)
    states, t = trajectories(problem.of_state(problem.x0[:n_samples]), solver)
    ks = np.unique(np.linspace(0, solver.n_steps - 1, n_places).round().astype(int))
    step, shape = _step_map(problem.of_state(problem.x0[:1]), solver), problem.x0.shape[1:]

    def sign_of(x: jax.Array, t: jax.Array, tau: jax.Array) -> jax.Array:
        one = lambda flat: step(flat.reshape(1, *shape), t, tau).ravel()
        jacobian = jax.jacfwd(one)(x)
        # No factorization is known in half precision.
        jacobian = jacobian.astype(jnp.promote_types(jacobian.dtype, jnp.float32))
        return jnp.where(jnp.isfinite(jacobian).all(), jnp.linalg.slogdet(jacobian)[0], jnp.nan)

    x = jnp.asarray(states[:, ks].reshape(-1, states.shape[-1]), problem.x0.dtype)
    times = jnp.asarray(np.tile(np.abs(t[ks] - t[0]), len(states)), problem.span.dtype)
    all_signs = jax.jit(lambda tau: jax.lax.map(lambda at: sign_of(at[0], at[1], tau), (x, times)))
    signs = np.stack([np.asarray(all_signs(tau)) for tau in taus])
    examined = int(np.isfinite(signs).all(0).sum())
    bad = np.flatnonzero((signs <= 0).any(0))
    n, k = bad // len(ks), ks[bad % len(ks)]
    return Crossings("jacobian", len(bad), np.asarray(x)[bad], np.stack([n, k, n, k], axis=-1), examined)


@checked
def crossings(
    problem: Problem,
    solver: FixedStep,
    *,
    n_samples: Count = 64,
    substeps: Count | None = None,
    margin: NotNegative | None = None,
) -> Crossings:
    """Crossings of a problem's numerical trajectories, by the test that its dimension allows.

    Args:
      problem: with a state `[batch, ...]`.
      solver: its grid.
      n_samples: trajectories, the first of the batch; beyond two dimensions an eighth of them.
      substeps: as in `trajectories`; `None` for 1 under Euler and 8 under any other scheme.
      margin: as in `segment_crossings`; `None` for 64 times the rounding error of the largest state, and in the plane
        `chord_heights` more. Trajectories that an attractor has merged cross each other at random below the one, as
        floating-point numbers, and those on one orbit below the other, as polygons.

    One dimension: `order_changes`. Two: `segment_crossings` for fields that do not depend on time. Beyond, and
    for plane fields that do: `folds`.
    """
    size = int(np.prod(problem.x0.shape[1:]))
    if size > 2 or (size == 2 and not is_autonomous(problem)):
        return folds(problem, solver, n_samples=max(1, n_samples // 8))
    some = problem.of_state(problem.x0[:n_samples])
    substeps = (1 if solver.scheme.n_evaluations == 1 else 8) if substeps is None else substeps
    states, t = trajectories(some, solver, substeps)
    if margin is None:
        largest = np.abs(states[np.isfinite(states)]).max(initial=0.0)
        margin = NOISE * float(jnp.finfo(problem.x0.dtype).eps * largest)
        if size == 2:
            return segment_crossings(states, margin / 2 + chord_heights(states))
    return order_changes(states[..., 0], t, margin) if size == 1 else segment_crossings(states, margin)


@checked
def is_autonomous(problem: Problem) -> bool:
    """Whether the field gives the same slopes, bit by bit, at eight times of the problem.

    Irrational fractions of the whole time, so that no period of a field falls in with them.
    """
    taus = problem.span * jnp.mod(jnp.arange(8) * (5**0.5 - 1) / 2, 1)
    times = [problem.time(tau) for tau in taus]
    slopes = [problem.slope(t, problem.x0, theta_at(problem.weights, t))[0] for t in times]
    return all(bool(jnp.array_equal(slopes[0], slope)) for slope in slopes[1:])
