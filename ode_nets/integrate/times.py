"""Times: what can be said of them before a program runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import is_real, shown
from ode_nets.trees import known


def time_dtype() -> Any:
    """Times are float64 where JAX has it, else float32."""
    return jnp.result_type(float)


def resolution(t: Any) -> float:
    """Relative rounding of a known time, by the precision that it came in."""
    dtype = getattr(t, "dtype", np.dtype(np.float64))
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else float(np.finfo(np.float64).eps)


def direction_of(t0: Any, t1: Any) -> Any:
    """The sign of a solve, a scalar of the dtype of times: 1.0 forward in time, -1.0 where t1 < t0."""
    if known((t0, t1)):
        return jnp.asarray(-1.0 if float(t1) < float(t0) else 1.0, time_dtype())
    return jnp.where(jnp.asarray(t1) < jnp.asarray(t0), -1.0, 1.0).astype(time_dtype())


def covers_domain(t0: Any, t1: Any, domain: Any) -> bool:
    """Whether [t0, t1] is known to be a domain, to the rounding of the times as they were given."""
    if domain is None or not known((t0, t1)):
        return False
    scale = max(abs(float(domain[0])), abs(float(domain[1])))
    return all(abs(float(t) - end) <= resolution(t) * scale for t, end in zip((t0, t1), domain, strict=True))


def check_times(t0: Any, t1: Any, ts: Any) -> tuple[Any, tuple[tuple[float, float], ...] | None]:
    """Check times as far as they are known.

    Returns:
      `ts`, within [t0, t1] where rounding had put an end of it beyond; and, where all are known, each asked time as a
      fraction of the span, with what that fraction may be off by rounding.

    Raises:
      ValueError: see `make_problem`.
    """
    for name, t in (("t0", t0), ("t1", t1)):
        if isinstance(t, (list, tuple)):
            t = np.asarray(t) if known(t) else jnp.asarray(t)
        if not is_real(t):
            raise ValueError(f"{name}={shown(t)}: expected a time, a real number")
        if np.shape(t) != ():
            raise ValueError(f"{name} has shape {np.shape(t)}: expected a scalar; use jax.vmap for several solves")
        if known(t) and not math.isfinite(float(t)):
            raise ValueError(f"{name}={float(t)}: expected a finite time")
    if known((t0, t1)):
        _check_apart(float(t0), float(t1))
    if ts is None:
        return None, None
    if isinstance(ts, (list, tuple)):
        ts = np.asarray(ts) if known(ts) else jnp.asarray(ts)
    if not is_real(ts):
        raise ValueError(f"ts={shown(ts)}: expected times, real numbers")
    if jnp.ndim(ts) != 1 or jnp.shape(ts)[0] == 0:
        raise ValueError(
            f"ts has shape {jnp.shape(ts)}: expected a non-empty vector of times; leave it out for the state at t1"
        )
    if not known((t0, t1, ts)):
        return ts, None
    return _known_times(float(t0), float(t1), ts, max(resolution(t) for t in (t0, t1, ts)))


def _check_apart(start: float, end: float) -> None:
    dtype = np.dtype(time_dtype())
    if start != end and dtype.type(start) == dtype.type(end):
        raise ValueError(
            f"t1={end} is t0={start} in {dtype}: no time passes between them; shift the origin of time, or enable "
            "float64 (jax.config.update('jax_enable_x64', True))"
        )


def _known_times(start: float, end: float, ts: Any, relative: float) -> tuple[np.ndarray, Any]:
    times = np.asarray(ts, np.float64)
    sign = 1 if end >= start else -1
    slack = 4 * relative * max(abs(start), abs(end))
    if not np.isfinite(times).all():
        raise ValueError(f"ts={times.tolist()}: expected finite times")
    if any(sign * (b - a) < -slack for a, b in itertools.pairwise(times)):
        raise ValueError(f"ts={times.tolist()} is not sorted from t0={start} towards t1={end}; sort it")
    if sign * (times[0] - start) < -slack or sign * (end - times[-1]) < -slack:
        raise ValueError(
            f"ts={times.tolist()} leaves the interval from t0={start} to t1={end}; move t0 and t1, or drop times"
        )
    times = np.clip(times, min(start, end), max(start, end))
    span = abs(end - start) or 1.0
    fractions = np.abs(times - start) / span
    return times, tuple((float(f), slack / span) for f in fractions)
