"""A particle that rolls in a potential landscape until it rests: its class is the minimum where it ends."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Real

from ode_nets.arguments import Count, Finite, Key, Natural, Numbers, Positive, Rule, checked
from ode_nets.gradients import Direct, solve
from ode_nets.integrate import FixedStep
from ode_nets.stepping import all_finite

Range = Annotated[
    tuple[float, float], Rule("two finite numbers, the lower first", lambda r: -math.inf < r[0] < r[1] < math.inf)
]
FRICTION = 0.2
"""gamma of Ott eq. 4 (published code)."""


@dataclasses.dataclass(frozen=True)
@checked
class Polynomial:
    """A real polynomial in one or more variables.

        V(x) = sum_j c_j prod_i x_i^e_ji

    Args:
      coefficients: c, one a term.
      exponents: e, one tuple a term, all of one length, which is the dimension; integers of at least 0.

    Raises:
      ValueError: for dimension 0, no terms, lengths that differ, or exponents or coefficients out of range.
    """

    coefficients: tuple[Finite, ...]
    exponents: tuple[tuple[Natural, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))
        lengths = {len(row) for row in self.exponents}
        if not self.coefficients or len(self.exponents) != len(self.coefficients) or len(lengths) != 1:
            raise ValueError(
                f"{len(self.coefficients)} coefficients with exponents of lengths {sorted(lengths)}: expected as many "
                "rows of exponents as coefficients, at least one, and one length for all"
            )
        if lengths == {0}:
            raise ValueError(f"exponents={self.exponents} have dimension 0: expected at least one variable")

    @classmethod
    @checked
    def from_roots(cls, roots: Sequence[Finite], scale: Finite = 1.0) -> Polynomial:
        """scale * prod_i (x - roots_i), in one variable."""
        powers = np.atleast_1d(np.poly(np.asarray(roots, float)))[::-1] * scale
        return cls(tuple(powers), tuple((e,) for e in range(len(powers))))

    @property
    def dimension(self) -> int:
        """Number of variables."""
        return len(self.exponents[0])

    @property
    def degree(self) -> int:
        """Of the highest term that is not zero; 0 for a constant."""
        return max((sum(e) for c, e in zip(self.coefficients, self.exponents, strict=True) if c != 0), default=0)

    @checked
    def __call__(self, x: Numbers) -> Any:
        """V at `[..., dimension]`: `[...]`, of NumPy or JAX as `x` is."""
        if np.shape(x)[-1:] != (self.dimension,):
            raise ValueError(f"x has shape {np.shape(x)}: expected [..., {self.dimension}]")
        total = 0.0 * x[..., 0]
        for c, row in zip(self.coefficients, self.exponents, strict=True):
            if c != 0:
                total = total + c * math.prod(x[..., i] ** e for i, e in enumerate(row) if e)
        return total

    def derivative(self, i: int) -> Polynomial:
        """dV/dx_i."""
        factors = [c * row[i] for c, row in zip(self.coefficients, self.exponents, strict=True)]
        rows = [(*row[:i], max(row[i] - 1, 0), *row[i + 1 :]) for row in self.exponents]
        return Polynomial(tuple(factors), tuple(rows))

    def gradient(self, x: jax.Array) -> jax.Array:
        """dV/dx at `[..., dimension]`, like `x`."""
        return jnp.stack([self.derivative(i)(x) for i in range(self.dimension)], axis=-1)


POTENTIAL = Polynomial.from_roots((0.0, 2.0, 0.5, -1.0, -0.6, 1.6), 0.2)
"""V(x) = 0.2 x (x - 2) (x - 0.5) (x + 1) (x + 0.6) (x - 1.6), with three minima (Ott Fig. 2, published code)."""


@checked
def field(t: Numbers, state: jax.Array, theta: tuple[Polynomial, Any]) -> jax.Array:
    """The particle with friction.

        dx/dt = v
        dv/dt = -dV/dx - gamma v                             (Ott eq. 4)

    Args:
      t: time, not read.
      state: `[..., 2 d]`, positions and then velocities.
      theta: the potential, static, and gamma.

    Returns:
      Like `state`.
    """
    potential, gamma = theta
    d = potential.dimension
    x, v = state[..., :d], state[..., d:]
    return jnp.concatenate([v, -potential.gradient(x) - gamma * v], axis=-1)


@checked
def minima(potential: Polynomial, *, box: Positive = 4.0, starts: Count = 512) -> Float[np.ndarray, "n dimension"]:
    """The local minima of a potential, `[n, dimension]`, sorted by their first coordinate; float64.

    In one dimension all of them, from the real roots of V'. Beyond, those that Newton's method finds from a
    Halton-like net of `starts` points in [-box, box]^d; a particle that rests elsewhere is reported by
    `generate` and not misnamed. Degenerate minima, like that of x^4, do not count: particles creep towards them.

    Raises:
      ValueError: if the potential is not bounded from below, does not confine, or has no minimum.
    """
    _check_confining(potential)
    d = potential.dimension
    slopes = [potential.derivative(i) for i in range(d)]
    curvatures = [[slope.derivative(j) for j in range(d)] for slope in slopes]

    def hessian(x: np.ndarray) -> np.ndarray:
        return np.stack([np.stack([c(x) for c in row], -1) for row in curvatures], -2)

    if d == 1:
        powers = np.zeros(potential.degree)
        for c, (e,) in zip(slopes[0].coefficients, slopes[0].exponents, strict=True):
            if c != 0:
                powers[e] += c
        roots = np.roots(powers[::-1])
        size = float(np.abs(roots).max(initial=0.0)) or 1.0
        # A double root splits into a pair with imaginary parts of the order of sqrt(eps).
        x = roots[np.abs(roots.imag) < 1e-6 * size].real[:, None]
    else:
        steps = np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29][:d]) if d <= 10 else np.sqrt(np.arange(2, d + 2) + 0.5)
        size, x = box, box * (2 * np.mod(np.outer(np.arange(1, starts + 1), steps), 1) - 1)

    def newton(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A step of Newton's method and its length, `[n, 1]`."""
        h, g = hessian(x), np.stack([slope(x) for slope in slopes], -1)
        # Uphill curvature is turned around, so that the method descends and does not find saddles.
        values, vectors = np.linalg.eigh(np.where(np.isfinite(h), h, 0.0))
        strength = np.abs(values)
        strength = np.maximum(strength, np.maximum(1e-9 * strength.max(1, keepdims=True), 1e-300))
        scaled = np.einsum("nij,nj->ni", vectors.swapaxes(-1, -2), g) / strength
        move = np.einsum("nij,nj->ni", vectors, scaled)
        return move, np.linalg.norm(move, axis=1, keepdims=True)

    with np.errstate(all="ignore"):
        for _ in range(60):
            move, length = newton(x)
            # A twentieth of the box at most, so that a start ends in a minimum near it.
            x = x - move * np.minimum(1, 0.05 * size / np.maximum(length, 1e-300))
        still = newton(x)[1][:, 0] <= 1e-6 * size
        # A curvature is a sum whose terms cancel in a degenerate minimum, to within their rounding.
        terms = [Polynomial(tuple(map(abs, c.coefficients)), c.exponents)(np.abs(x)) for row in curvatures for c in row]
        lowest = np.linalg.eigvalsh(np.where(np.isfinite(hessian(x)), hessian(x), -1.0))[:, 0]
        curved = lowest > 1e-7 * np.max(terms, axis=0)
    found: list[np.ndarray] = []
    for point in x[still & curved & np.isfinite(x).all(1)]:
        if not any(np.linalg.norm(point - other) < 2.5e-5 * size for other in found):
            found.append(point)
    if not found:
        where = "" if d == 1 else f" that Newton's method finds from within |x_i| <= {box}"
        raise ValueError(f"{potential} has no minimum with a positive definite Hessian{where}")
    return np.stack(sorted(found, key=lambda point: np.round(np.divide(point, size), 6).tolist()))


class Rest(NamedTuple):
    """Where particles are when they rest or time is up, leaves with the leading axis of the batch."""

    x: Float[Array, "n dimension"]
    """Positions."""
    v: Float[Array, "n dimension"]
    """Velocities."""
    label: Int32[Array, "n"]
    """Nearest minimum."""
    at_rest: Bool[Array, "n"]
    """Slow, and within reach of that minimum."""


@checked
def simulate(
    potential: Polynomial,
    places: Real[np.ndarray | Array, "n_minima dimension"],
    state: Float[Array, "n size"],
    *,
    gamma: Numbers = FRICTION,
    t_max: Positive = 100.0,
    h: Positive = 0.02,
    speed: Positive = 1e-3,
    reach: Positive = 0.02,
    sections: Count = 20,
) -> Rest:
    """Follow particles until all rest, or for a time t_max; pure and compilable.

    Args:
      potential: V.
      places: its minima, `[n_minima, dimension]`.
      state: positions and velocities at the start, `[n, 2 dimension]`.
      gamma: friction, scalar.
      t_max, h: longest time, and the step of RK4.
      speed, reach: a particle rests where |v| < speed and |x - minimum| < reach (Ott, published code).
      sections: how often in t_max it is looked whether all rest.

    Returns:
      `Rest`. A particle that left the finite numbers is not at rest.

    Cost: RK4 steps of the whole batch until the last particle rests. Not differentiable in reverse mode.
    """
    minima, n_steps = jnp.asarray(places, state.dtype), max(1, math.ceil(t_max / sections / h - 1e-9))
    solver = FixedStep("rk4", n_steps)

    def one(state: jax.Array) -> jax.Array:
        motion = lambda t, x, gamma: field(t, x, (potential, gamma))
        return solve(motion, state, gamma, solver=solver, gradient=Direct(), t1=t_max / sections).x

    def rest(state: jax.Array) -> Rest:
        x, v = jnp.split(state, 2, axis=-1)
        distance = jnp.linalg.norm(x[:, None] - minima, axis=-1)
        slow = jnp.linalg.norm(v, axis=-1) < speed
        return Rest(x, v, jnp.argmin(distance, 1).astype(jnp.int32), slow & (distance.min(1) < reach))

    def going(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        # One that runs away never rests, and the others do not wait for it.
        done = rest(carry[1]).at_rest | ~jnp.isfinite(carry[1]).all(-1)
        return (carry[0] < sections) & ~done.all()

    def section(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return carry[0] + 1, jax.vmap(one)(carry[1])

    return rest(jax.lax.while_loop(going, section, (jnp.int32(0), state))[1])


@checked
def generate(
    key: Key,
    n: Count,
    potential: Polynomial = POTENTIAL,
    *,
    x_range: Range = (-1.0, 2.0),
    v_range: Range = (-2.0, 2.0),
    gamma: Positive = FRICTION,
    t_max: Positive = 100.0,
    h: Positive = 0.02,
    speed: Positive = 1e-3,
    reach: Positive = 0.02,
) -> tuple[Float[Array, "n size"], Int32[Array, "n"]]:
    """Starts of particles and the minima where they come to rest (Ott sec. 3.2).

    Args:
      key: PRNG key.
      n: number of particles, at least 1.
      potential: V, confining, with at least one minimum.
      x_range, v_range: of every component of positions and velocities at the start, uniform.
      gamma: friction, above 0.
      t_max, h: longest time, and the step of RK4.
      speed, reach: when a particle rests, see `simulate`, in the units of the potential: `speed` far below what
        takes a particle over its lowest barrier, `reach` at most half of the distance between two minima.

    Returns:
      Starts, `[n, 2 dimension]` in the default floating dtype, and labels, int32 `[n]`: the index in `minima`.

    Raises:
      ValueError: for an empty set, ranges or numbers out of range, a potential as in `minima`, and particles
        that run away or have not come to rest at a known minimum in time, with their number. Not to be
        called inside jit, which cannot raise; `simulate` can.
    """
    places, shape = minima(potential), (n, potential.dimension)
    closest = min((float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2)), default=math.inf)
    if reach > closest / 2:
        raise ValueError(
            f"reach={reach}: expected at most {closest / 2:.3g}, half of the distance between two minima of "
            f"{potential}; scale speed={speed} like it"
        )
    x_key, v_key = jax.random.split(key)
    x = jax.random.uniform(x_key, shape, minval=x_range[0], maxval=x_range[1])
    v = jax.random.uniform(v_key, shape, minval=v_range[0], maxval=v_range[1])
    start = jnp.concatenate([x, v], axis=-1)
    settings: dict[str, Any] = {"gamma": gamma, "t_max": t_max, "h": h, "speed": speed, "reach": reach}
    rest = jax.jit(lambda start: simulate(potential, places, start, **settings))(start)
    if not all_finite(rest.x, rest.v):
        raise ValueError(f"particles ran away to infinity: h={h} is too coarse, or the potential does not confine")
    if moving := int(jnp.sum(~rest.at_rest)):
        raise ValueError(
            f"{moving} of {n} particles have not come to rest at one of {len(places)} minima by t_max={t_max}: raise "
            f"t_max or gamma={gamma}"
        )
    return start, rest.label


def _check_confining(potential: Polynomial) -> None:
    """V -> infinity in every direction tried: exact in one dimension, axes, diagonals and random ones beyond."""
    d = potential.dimension
    random = np.random.default_rng(0).normal(size=(4096 if d > 1 else 1, d))
    signs = itertools.islice(itertools.product((-1.0, 1.0), repeat=d), 4096)
    directions = np.concatenate([np.eye(d), -np.eye(d), np.asarray(list(signs)), random])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    by_degree, sizes = np.zeros((2, potential.degree + 1, len(directions)))
    for c, row in zip(potential.coefficients, potential.exponents, strict=True):
        if c != 0:
            term = c * np.prod(directions ** np.asarray(row), axis=1)
            by_degree[sum(row)] += term
            sizes[sum(row)] += np.abs(term)
    # Along a ray V is a polynomial of the distance, whose highest coefficient decides, however small it is beside
    # those of other degrees. What rounding leaves of terms of one degree that cancel is none.
    leading = np.zeros(len(directions))
    for line, size in zip(by_degree[1:], sizes[1:], strict=True):
        leading = np.where(np.abs(line) > 1e-9 * size, line, leading)
    if (leading < 0).any():
        where = np.round(directions[int(np.argmin(leading))], 3).tolist()
        raise ValueError(f"{potential} is unbounded below: it falls without end along {where}")
    if (leading == 0).any():
        where = np.round(directions[int(np.argmin(leading))], 3).tolist()
        raise ValueError(f"{potential} does not confine: it is flat along {where}, where a particle may never rest")
