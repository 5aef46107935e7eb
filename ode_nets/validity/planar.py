"""Points and chords in the plane: on which side, beyond all rounding, and how far a curve leaves its chord."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int, Real

from ode_nets.arguments import Rule, checked, is_real

Points = Real[np.ndarray, "n 2"]
_AT_LEAST_0 = Rule(
    "a number of at least 0, or an array of such",
    lambda m: is_real(m) and bool(np.all((np.asarray(m, float) >= 0) & (np.asarray(m, float) < np.inf))),
)
Margin = Annotated[Any, _AT_LEAST_0]
PointMargin = Annotated[float | Real[np.ndarray, "n"], _AT_LEAST_0]
_ROUNDING = (3 + 16 * 2.0**-53) * 2.0**-53
"""Bound of the rounding error of an orientation, relative to the sum of its terms (Shewchuk 1997, sec. 4.1)."""
RESOLVED = 0.25
"""Angle, in radians, up to which two successive chords are taken for those of one smooth curve: 25 a turn."""


@checked
def orientation(a: Points, b: Points, c: Points, margin: PointMargin = 0.0) -> Int[np.ndarray, "n"]:
    """On which side of the line from a to b the point c lies: 1 left, -1 right, 0 within a margin; exact.

    The sign of (a - c) x (b - c). Where floating-point arithmetic cannot be sure of it, it is computed again in
    fractions.

    Args:
      a, b, c: `[n, 2]`, finite; of integers what float64 makes of them.
      margin: distance from the line up to which a point counts as on it, a number or `[n]`; that distance is
        rounded.

    Returns:
      int `[n]`.
    """
    a, b, c = (np.asarray(points, np.float64) for points in (a, b, c))
    with np.errstate(over="ignore", invalid="ignore"):
        left = (a[:, 0] - c[:, 0]) * (b[:, 1] - c[:, 1])
        right = (a[:, 1] - c[:, 1]) * (b[:, 0] - c[:, 0])
        area = left - right
        margin = np.broadcast_to(margin, area.shape)
        far = (margin <= 0) | (np.abs(area) > margin * np.linalg.norm(b - a, axis=1))
        # Products of runaway states overflow, too.
        sure = np.isfinite(area) & (np.abs(area) > _ROUNDING * (np.abs(left) + np.abs(right)))
    sign = np.where(far & sure, np.sign(area), 0).astype(int)
    for i in np.flatnonzero(far & ~sure):
        (ax, ay), (bx, by), (cx, cy) = (map(Fraction, map(float, p[i])) for p in (a, b, c))
        exact = (ax - cx) * (by - cy) - (ay - cy) * (bx - cx)
        sign[i] = (exact > 0) - (exact < 0)
    return sign


@checked
def chord_heights(states: Real[np.ndarray, "n n_points 2"]) -> Float[np.ndarray, "n n_chords"]:
    """How far the smooth curve through the points of a polygon in the plane rises above each of its chords.

        s = kappa L^2 / 8

    the sagitta of a chord of length L, with the curvature of the circle through three successive points, the
    larger at its two ends. Chords of one curve with other points on it pass through each other no deeper than the
    sum of their heights. Where successive chords turn by more than a quarter of a radian the points resolve no
    curve, the step is large, and it has a height of 0: the polygon is taken at its word.

    Args:
      states: `[n, n_points, 2]`.

    Returns:
      `[n, n_points - 1]`, at least 0.
    """
    with np.errstate(all="ignore"):
        move = np.diff(np.asarray(states, float), axis=1)
        before, after = move[:, :-1], move[:, 1:]
        sine = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
        turn = np.abs(np.arctan2(sine, np.sum(before * after, axis=-1)))
        curvature = 2 * np.sin(turn) / np.linalg.norm(before + after, axis=-1)
        # NaN and infinity come from points that coincide or are not finite.
        curvature = np.pad(np.where(np.isfinite(curvature), curvature, 0.0), ((0, 0), (1, 1)))
        resolved = np.pad(turn <= RESOLVED, ((0, 0), (1, 1)), constant_values=True)
        height = np.maximum(curvature[:, :-1], curvature[:, 1:]) * np.sum(move**2, axis=-1) / 8
    return np.where(resolved[:, :-1] & resolved[:, 1:] & np.isfinite(height), height, 0.0)


def cross(a: Points, b: Points) -> Real[np.ndarray, "n"]:
    """The cross products of vectors in the plane, `[n, 2]` to `[n]`."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
