"""Three bodies under gravity (ACA sec. 4.4): their law, starts, and trajectories that say how far they can be trusted.

Without units, as in the published code: one time unit is about 40.8 years, which the paper calls a year. Everything
works for two bodies and for more than three, too. Solutions are chaotic: truth is computed in float64.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ode_nets.arguments import Key, checked
from ode_nets.fields import SecondOrder
from ode_nets.gradients import Direct, solve
from ode_nets.integrate import Adaptive, Solution
from ode_nets.stepping import all_finite
from ode_nets.trees import known

Places = Real[Array, "*lanes n 3"]
Masses = Real[np.ndarray | Array, "n"]

GRAVITY = 0.2004844 * 7.239324
"""G of ACA eq. 32 in the units of the published code, the product of its two constants."""
SPEED = 7.239324
"""dr/dt of a body whose velocity the published code calls 1."""
CLOSE = 0.05
"""Distance below which `truth` names an encounter: it takes less than a hundredth of the time unit."""


class Start(NamedTuple):
    """Where bodies are, how fast they move, and what they weigh."""

    r: Any
    """Positions, `[n, 3]`."""
    v: Any
    """Velocities dr/dt, `[n, 3]`."""
    masses: Any
    """`[n]`, above 0."""


PUBLISHED = Start(
    r=((0.0, 0.2, 0.0), (0.5, 0.0, 0.5), (0.0, 0.0, 0.5)),
    v=((0.0, 0.1 * SPEED, 0.0), (0.0, 0.0, 0.1 * SPEED), (0.1 * SPEED, 0.0, 0.0)),
    masses=(1.1, 1.1, 0.9),
)
"""The case of the published code."""
UNEQUAL = PUBLISHED._replace(masses=(1.5, 1.0, 0.7))
"""The same start of three masses that differ, as the paper says of its own."""


@checked
def differences(r: Places) -> Real[Array, "*lanes n others 3"]:
    """Of every body to each of the others: r_i - r_{i+k}, k = 1, ..., n - 1, counted around.

    Args:
      r: `[..., n, 3]`.

    Returns:
      `[..., n, n - 1, 3]`.
    """
    n = r.shape[-2]
    return jnp.stack([r - jnp.roll(r, -k, axis=-2) for k in range(1, n)], axis=-2)


@checked
def acceleration(r: Places, masses: Real[Array, "n"]) -> Float[Array, "*lanes n 3"]:
    """Newton's law of gravitation.

        r_i'' = - sum_{j != i} G m_j (r_i - r_j) / |r_i - r_j|^3        (ACA eq. 32)

    Args:
      r: positions, `[..., n, 3]`, all different.
      masses: `[n]`.

    Returns:
      Like `r`.
    """
    d = differences(r)
    others = jnp.stack([jnp.roll(masses, -k) for k in range(1, r.shape[-2])], axis=-1)
    cubes = jnp.sum(d**2, axis=-1) ** 1.5
    return -GRAVITY * jnp.sum((others / cubes)[..., None] * d, axis=-2)


@checked
def field(t: Any, x: Any, masses: Real[Array, "n"]) -> Any:
    """The bodies as a system of first order.

        dr/dt = v
        dv/dt = acceleration(r)                              (ACA eq. 32)

    Args:
      t: time, not read.
      x: the pair `(r, v)`, `[..., n, 3]` each.
      masses: `[n]`, the theta of this field.

    Returns:
      Like `x`.
    """
    return SecondOrder(lambda t, r, v, masses: acceleration(r, masses))(t, x, masses)


@checked
def augmented(r: Places) -> Float[Array, "*lanes size"]:
    """Positions and what the law is made of, the input of models with partial knowledge.

        Aug = {r_i, d, d / |d|, d / |d|^2, d / |d|^3},  d = r_i - r_j, j != i        (ACA eq. 33)

    Args:
      r: `[..., n, 3]`.

    Returns:
      `[..., n (12 n - 9)]`, 81 numbers of three bodies, 27 of each. Acceleration is linear in it.
    """
    d = differences(r)
    length = jnp.linalg.norm(d, axis=-1, keepdims=True)
    powers = jnp.stack([d, d / length, d / length**2, d / length**3], axis=-2)
    each = jnp.concatenate([r, powers.reshape(*r.shape[:-1], -1)], axis=-1)
    return each.reshape(*r.shape[:-2], -1)


# ---------------------------------------------------------------------------------------------------------
# What is conserved
# ---------------------------------------------------------------------------------------------------------


@checked
def energies(r: Places, v: Places, masses: Masses) -> tuple[Float[Array, "*lanes"], Float[Array, "*lanes"]]:
    """Kinetic and potential energy, whose sum a solution conserves.

        sum_i m_i |v_i|^2 / 2,   - sum_{i < j} G m_i m_j / |r_i - r_j|

    Args:
      r, v: `[..., n, 3]`.
      masses: `[n]`.

    Returns:
      Two arrays `[...]`.
    """
    m = jnp.asarray(masses)
    products = jnp.stack([m * jnp.roll(m, -k) for k in range(1, r.shape[-2])], axis=-1)
    potential = -GRAVITY / 2 * jnp.sum(products / jnp.linalg.norm(differences(r), axis=-1), axis=(-2, -1))
    return jnp.sum(m * jnp.sum(v**2, axis=-1), axis=-1) / 2, potential


@checked
def momentum(v: Real[Array, "*lanes n space"], masses: Masses) -> Real[Array, "*lanes space"]:
    """sum_i m_i v_i, which a solution conserves: `[..., 3]` of `[..., n, 3]`."""
    return jnp.einsum("...nc,n->...c", v, jnp.asarray(masses))


@checked
def angular_momentum(r: Places, v: Places, masses: Masses) -> Real[Array, "*lanes 3"]:
    """sum_i m_i r_i x v_i, which a solution conserves: `[..., 3]` of `[..., n, 3]`."""
    return momentum(jnp.cross(r, v), masses)


# ---------------------------------------------------------------------------------------------------------
# Starts and true trajectories
# ---------------------------------------------------------------------------------------------------------


@checked
def random_start(key: Key, masses: Masses | None = None, *, virial: float = 0.4, apart: float = 0.3) -> Start:
    """Three bodies in a cube of side 1, at rest as a whole, bound together.

        kinetic energy = virial * |potential energy| < |potential energy|

    Args:
      key: PRNG key.
      masses: `[n]`, of another number of bodies too; `None`: three, uniform in [0.5, 1.5).
      virial: above 0 and below 1. A half is what bound systems have on average; with less they collapse first, and
        meet closely. The published start has 0.1.
      apart: least distance of two bodies.

    Returns:
      The start, in the default floating dtype.

    Raises:
      ValueError: for masses or numbers out of range, or where a thousand draws have not been far enough apart. Not to
        be called inside jit, which cannot raise.

    A bound system may still throw out one of its bodies: see `Truth.escaping`.
    """
    if not 0 < virial < 1:
        raise ValueError(f"virial={virial}: expected a number above 0 and below 1; from 1 on bodies fly apart")
    if not 0 <= apart < 1:
        raise ValueError(f"apart={apart}: expected a distance of at least 0 and below 1")
    place_key, speed_key, mass_key = jax.random.split(key, 3)
    drawn = masses is None
    m = jax.random.uniform(mass_key, (3,), minval=0.5, maxval=1.5) if drawn else jnp.asarray(masses, float)
    n = _check_masses(m)
    start, far = _draw(place_key, speed_key, m, virial, apart)
    if not far:
        raise ValueError(f"apart={apart}: none of 1000 draws has {n} bodies so far apart in a cube of side 1; lower it")
    return start


@jax.jit
def _draw(place_key: jax.Array, speed_key: jax.Array, masses: jax.Array, virial: Any, apart: Any) -> tuple[Start, Any]:
    """The first of 1000 starts whose bodies are far enough apart, and whether there is one."""
    r = jax.random.uniform(place_key, (1000, *masses.shape, 3))
    far = jnp.min(jnp.linalg.norm(differences(r), axis=-1), axis=(-2, -1)) >= apart
    r, v = r[jnp.argmax(far)], jax.random.normal(speed_key, r.shape[1:])
    v = v - momentum(v, masses) / jnp.sum(masses)
    kinetic, potential = energies(r, v, masses)
    return Start(r, v * jnp.sqrt(-virial * potential / kinetic), masses), jnp.any(far)


class Truth(NamedTuple):
    """A solution at a tight tolerance, and how far it can be trusted."""

    r: Float[Array, "n_times n 3"]
    """Positions at the times asked for, float64."""
    v: Float[Array, "n_times n 3"]
    """Velocities, likewise."""
    energy_drift: float
    """Largest |E(t) - E(0)| at the times asked for, beside the sizes of its two parts at 0, as E(0) may be 0."""
    momentum_drift: float
    """Largest |P(t) - P(0)| beside the largest sum_i m_i |v_i|."""
    closest: float
    """Smallest distance of two bodies, at the steps of the solver, which are short where it is small."""
    pair: tuple[int, int]
    """Which two, counted from 0."""
    closest_time: float
    """And when."""
    escaping: tuple[int, ...]
    """Bodies that leave at the last time: unbound to the rest, moving away, three times as far as the rest is wide."""

    @property
    def remarks(self) -> list[str]:
        """Close encounters and escapes, in words."""
        found = []
        if self.closest < CLOSE:
            i, j = self.pair
            found.append(
                f"bodies {i + 1} and {j + 1} meet at a distance of {self.closest:.2g} at {self.closest_time:.4g}"
            )
        return found + [f"body {i + 1} escapes" for i in self.escaping]


@checked
def truth(start: Start, ts: Real[np.ndarray | Array, "n_times"], *, tolerance: float = 1e-12) -> Truth:
    """The trajectories of bodies, with the drift of what they should conserve.

    Args:
      start: at time 0.
      ts: times asked for, `[n_times]`, rising from at least 0.
      tolerance: rtol and atol of Dopri5, at most 1e-7.

    Returns:
      `Truth`. After a close encounter errors have grown by orders of magnitude: look at its drifts and remarks.

    Raises:
      ValueError: for shapes, times or masses out of range, two bodies at one place, and outside of float64: call it
        under `jax.enable_x64(True)`. Not to be called inside jit.
      RuntimeError: if the solve fails, as where bodies collide.
    """
    if not 0 < tolerance <= 1e-7:
        raise ValueError(f"tolerance={tolerance}: expected a number above 0 and at most 1e-7")
    r, v, masses = (jnp.asarray(leaf, float) for leaf in start)
    ts = jnp.asarray(ts, float)
    if not all(known(leaf) for leaf in (r, v, masses, ts)):
        raise ValueError("truth is told outside of jit, where it can raise: solve with `field` inside")
    if r.dtype != jnp.float64:
        raise ValueError("truth is computed in float64: call it under jax.enable_x64(True)")
    n = _check_masses(masses)
    if r.shape != (n, 3) or v.shape != (n, 3) or not all_finite(r, v):
        raise ValueError(f"r {list(r.shape)}, v {list(v.shape)}: expected finite numbers [{n}, 3], as {n} masses say")
    if not bool(jnp.all(jnp.any(differences(r) != 0, axis=-1))):
        raise ValueError(f"r={r.tolist()}: expected bodies at different places")
    rising = ts.ndim == 1 and ts.size and float(ts[0]) >= 0 and bool((ts[1:] > ts[:-1]).all())
    if not rising or not 0 < float(ts[-1]) < math.inf:
        raise ValueError(f"ts={ts.tolist()}: expected a list of finite times, rising from at least 0 to more than 0")
    solution, drifts, closest = _solve((r, v), masses, ts, tolerance)
    solution.raise_for_result()
    r, v = solution.x
    distance, at, i, k = (leaf.item() for leaf in closest)
    return Truth(
        r=r,
        v=v,
        energy_drift=float(drifts[0]),
        momentum_drift=float(drifts[1]),
        closest=distance,
        pair=(min(i, (i + k + 1) % n), max(i, (i + k + 1) % n)),
        closest_time=at,
        escaping=tuple(j for j in range(n) if _escapes(j, *map(np.asarray, (r[-1], v[-1], masses)))),
    )


@jax.jit
def _solve(x: Any, masses: jax.Array, ts: jax.Array, tolerance: Any) -> tuple[Solution, Any, Any]:
    """A solution; its drifts; the smallest distance, when it is reached, by which body to which next one."""
    solver = Adaptive("dopri5", tolerance, tolerance, max_steps=20_000)
    solution = solve(field, x, masses, solver=solver, gradient=Direct(), t1=ts[-1], ts=ts, dense=True)
    between = solution.dense
    assert between is not None
    r, v = jax.tree.map(lambda start, asked: jnp.concatenate([start[None], asked]), x, solution.x)
    parts, impulse = energies(r, v, masses), momentum(v, masses)
    energy, size = parts[0] + parts[1], jnp.abs(parts[0][0]) + jnp.abs(parts[1][0])
    largest = jnp.max(momentum(jnp.linalg.norm(v, axis=-1, keepdims=True), masses))
    drifts = (
        jnp.max(jnp.abs(energy - energy[0])) / size,
        jnp.max(jnp.linalg.norm(impulse - impulse[0], axis=-1)) / largest,
    )
    # Asked times may be far apart.
    distances = jnp.linalg.norm(differences(jnp.concatenate([between.x[0], solution.x[0]])), axis=-1)
    times = jnp.concatenate([between.steps.t, ts])
    distances = jnp.where(jnp.isfinite(times)[:, None, None], distances, jnp.inf)
    at, i, k = jnp.unravel_index(jnp.argmin(distances), distances.shape)
    return dataclasses.replace(solution, dense=None), drifts, (distances[at, i, k], times[at], i, k)


def _escapes(i: int, r: np.ndarray, v: np.ndarray, masses: np.ndarray) -> bool:
    """Whether body i leaves the others for good, as far as a moment tells."""
    others = np.arange(len(masses)) != i
    mean = lambda x: masses[others] @ x[others] / masses[others].sum()
    away, speed = r[i] - mean(r), v[i] - mean(v)
    reduced = masses[i] * masses[others].sum() / masses.sum()
    bound = GRAVITY * masses[i] * np.sum(masses[others] / np.linalg.norm(r[i] - r[others], axis=-1))
    wide = np.max(np.linalg.norm(r[others] - mean(r), axis=-1))
    return bool(reduced * speed @ speed / 2 > bound and away @ speed > 0 and np.linalg.norm(away) > 3 * wide)


def _check_masses(masses: jax.Array) -> int:
    """How many bodies there are."""
    if masses.ndim != 1 or len(masses) < 2 or not bool(jnp.all((masses > 0) & jnp.isfinite(masses))):
        raise ValueError(f"masses={masses.tolist()}: expected a list of two or more finite numbers above 0")
    return len(masses)
