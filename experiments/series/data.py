"""Series from an .npz file: checked, scaled, and split."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.digests import digest
from experiments.records.files import RunError
from experiments.series.config import SeriesConfig

FARTHEST = 1e6
"""Largest scaled value, of which float32 still holds the square of a difference to a few digits."""


@dataclasses.dataclass(frozen=True)
class Series:
    """Series, scaled.

    Attributes:
      times: `[n]`, or `[series, n]` where each has its own; float32, from 0, the longest to the span of the config.
      values: `[series, n, features]`, float32, 0 where nothing was observed. mask: boolean, like `values`.
      low, scale: `[features]`; value = low + scale * scaled.
      t0, unit: time = t0 + unit * scaled; t0 is `[1]`, or `[series, 1]` where each has its own times.
    """

    times: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    low: np.ndarray
    scale: np.ndarray
    t0: np.ndarray
    unit: float

    def split(self, config: SeriesConfig) -> dict[str, np.ndarray]:
        """Indices of the `train`, `validation` and `test` series.

        Raises:
          RunError: for fewer series than the parts need.
        """
        n = len(self.values)
        n_test = max(1, round(config.test_fraction * n))
        n_rest = min(n - n_test, config.limit or n)
        n_validation = max(1, round(config.validation_fraction * n_rest))
        n_train = n_rest - n_validation
        if n_train < config.batch_size:
            left = f"of {n} series {max(n_train, 0)} are left to train on"
            if n_train < 1:
                raise RunError(f"{left}: give more, or cut a long series into windows")
            raise RunError(f"{left}, fewer than batch_size={config.batch_size}: lower it, or give more")
        every = np.arange(n)
        return {"train": every[:n_train], "validation": every[n_train:n_rest], "test": every[n - n_test :]}

    def fingerprint(self) -> dict[str, Any]:
        """Shapes, and SHA-256 of every array."""
        arrays = {"times": self.times, "values": self.values, "mask": self.mask}
        return {name: {"shape": list(array.shape), "sha256": digest(array)} for name, array in arrays.items()}


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
      RunError: if it cannot be read, or lacks `times` or `values`.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise RunError(f"{path} holds a single array: expected an .npz file with times, values and, if any, mask")
        with file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path} cannot be read as an .npz file: {error}") from error
    if missing := [name for name in ("times", "values") if name not in arrays]:
        raise RunError(f"{path} has no {' and no '.join(missing)}: expected times, values and, if any, mask")
    return arrays


def prepare(arrays: dict[str, np.ndarray], config: SeriesConfig) -> Series:
    """Checked and scaled series.

    Args:
      arrays: `times`, `[n]` or `[series, n]`; `values`, `[series, n, features]`, NaN where missing; and maybe `mask`,
        like `values`, true or 1 where observed.
      config: of which scales and the split count. What scales the values are all series that do not test, whatever
        the limit on those that train, so that errors of different limits are of one unit.

    Raises:
      RunError: for data that nothing can be learned from, or that is not what it should be; it says what is wrong.
    """
    for name in ("times", "values"):
        if arrays[name].dtype.kind not in "biuf":
            raise RunError(f"{name} are {arrays[name].dtype}: expected real numbers, times in a unit of your own")
    times, values = (np.asarray(arrays[name], np.float64) for name in ("times", "values"))
    if values.ndim != 3:
        raise RunError(
            f"values have shape {values.shape}: expected [series, times, features]; cut one long series into windows, "
            "and give a single feature an axis of length 1"
        )
    if times.shape not in (values.shape[1:2], values.shape[:2]):
        raise RunError(
            f"times have shape {times.shape} beside values {values.shape}: expected [times], or one row a series"
        )
    given = arrays.get("mask")
    if given is not None and given.shape != values.shape:
        raise RunError(f"the mask has shape {given.shape}: expected that of values, {values.shape}")
    if given is not None and not np.isin(given, (0, 1)).all():
        raise RunError("the mask has other entries than true and false, or 1 and 0")
    mask = ~np.isnan(values) & (True if given is None else given.astype(bool))
    check(times, values, mask)

    parts = Series(times, values, mask, *(np.zeros(1),) * 3, 1.0).split(config)
    trained, rest = parts["train"], slice(parts["test"][0])
    missing = ~mask[trained].any((0, 1))
    if missing.any():
        raise RunError(f"feature {np.flatnonzero(missing).tolist()} is never observed in the training series: drop it")
    extent = lambda part: [f(np.where(mask[part], values[part], np.nan), (0, 1)) for f in (np.nanmin, np.nanmax)]
    if (constant := np.equal(*extent(trained))).any():
        raise RunError(
            f"feature {np.flatnonzero(constant).tolist()} is constant in the training series, and tells "
            "nothing: drop it"
        )
    low, high = extent(rest)
    scale = high - low if config.scale == "range" else high
    if (scale <= 0).any():
        raise RunError(f"feature {np.flatnonzero(scale <= 0).tolist()} has no value above 0: use --scale range")
    # Windows of a long series keep the times of the whole: only what has passed since the first of each counts.
    t0 = times[..., :1]
    unit = float((times - t0).max()) / config.span
    scaled = np.where(mask, (np.where(mask, values, 0) - low) / scale, 0)
    if (far := np.abs(scaled) > FARTHEST).any():
        series, _, feature = np.argwhere(far)[0]
        raise RunError(
            f"feature {feature} of series {series} lies more than {FARTHEST:g} times its range away from "
            "the others: mask what stands for a missing value, or mend it"
        )
    return Series(((times - t0) / unit).astype(np.float32), scaled.astype(np.float32), mask, low, scale, t0, unit)


def check(times: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
    """Refuse what is no set of irregular series.

    Raises:
      RunError: it says what is wrong, and where.
    """
    if times.shape[-1] < 2:
        n = times.shape[-1] or "no"
        raise RunError(f"there is {n} time point: expected at least two, as nothing changes at one")
    if not np.isfinite(times).all():
        raise RunError("times are not all finite: pad short series with their last time, and NaN for the values")
    falls = np.argwhere(np.diff(times, axis=-1) < 0)
    if len(falls):
        at = ", ".join(map(str, falls[0]))
        raise RunError(f"times are not sorted: they fall after [{at}]; sort each series by time")
    if not np.diff(times, axis=-1).any(-1).all():
        raise RunError("all times of a series are the same: expected at least two different ones")
    if not mask.any():
        raise RunError("all values are missing: expected some that are not NaN and not masked")
    empty = np.flatnonzero(~mask.any((1, 2)))
    if len(empty):
        raise RunError(
            f"series {empty[:5].tolist()} of {len(mask)} have no observed value ({len(empty)} such): drop them"
        )
    if np.isinf(np.where(mask, values, 0)).any():
        raise RunError("some observed values are infinite: mask them, or mend them")
