"""NaN and infinity in solves, and damaged files of data: never a plausible number, never other data."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ode_nets as on
from experiments import prepare_data
from experiments.images.data import load
from experiments.images.decoding import decode_images
from image_arrays import make_arrays, save
from tests.faults.tally import Trials, outcome_of

SCHEMES = (
    "euler",
    "midpoint",
    "heun",
    "rk4",
    "rk4_38",
    "ralston",
    "heun_euler",
    "bosh3",
    "fehlberg21",
    "dopri5",
    "tsit5",
)
GRADIENTS = (
    *(on.Direct(), on.Checkpointed(), on.Checkpointed("block"), on.ACA(), on.ACA(2)),
    *(on.Backsolve(), on.Naive(), on.Reversible()),
)
PLACES = {"state": 1.0, "weights": 1.0, "one coefficient": 1.0, "field": -1.0, "late field": 0.5}
"""Where the fault is, and the time after which the field is faulty."""
VALUES = (np.nan, np.inf, -np.inf)


def _field(t: Any, x: Any, theta: Any) -> Any:
    k, bad, since = theta
    return jnp.where(t > since, bad, 0) - k * x


def _grid(grid: str, scheme: str) -> Any:
    if grid == "adaptive":
        return on.Adaptive(scheme, max_steps=64)
    return on.FixedStep(scheme, 4 if grid == "fixed" else jnp.int32(4), max_steps=8)


def not_finite(schemes: tuple[str, ...] = SCHEMES) -> Trials:
    """Schemes x gradients x grids x place x value: the result code tells, and derivatives are NaN."""
    for scheme, gradient, grid in itertools.product(schemes, GRADIENTS, ("fixed", "traced", "adaptive")):
        if grid == "adaptive" and on.get_tableau(scheme).embedded_order is None:
            continue

        def end(
            *varied: Any, scheme: str = scheme, gradient: Any = gradient, grid: Any = grid
        ) -> tuple[jax.Array, jax.Array]:
            x0, k, bad, since = varied
            weights = on.BasisExpansion(on.PiecewiseConstant(2), (k, jnp.stack([bad, bad]), jnp.stack([since, since])))
            found = on.solve(_field, x0, weights, solver=_grid(grid, scheme), gradient=gradient)
            return jnp.sum(found.x), found.result

        try:
            run = jax.jit(jax.value_and_grad(end, argnums=(0, 1), has_aux=True))
            for place, value in itertools.product(PLACES, VALUES):
                at = lambda *places, place=place, value=value: value if place in places else 1.0
                x0 = jnp.array([1.0, at("state")])
                k = jnp.array([at("weights"), at("weights", "one coefficient")])
                bad, since = (value, PLACES[place]) if PLACES[place] < 1 else (0.0, 1.0)
                (total, result), slopes = run(x0, k, jnp.float32(bad), jnp.float32(since))
                told = int(result) != on.Result.SUCCESS and not np.isfinite(total)
                derived = any(np.isnan(leaf).any() for leaf in jax.tree.leaves(slopes))
                what = f"{scheme} {gradient} {grid} {place} {value}: {float(total)}, {on.Result(int(result)).name}"
                yield "not finite", "clear error" if told and derived else "silent", what
        except ValueError as error:
            clear = type(gradient).__name__ in str(error)
            yield "not finite", "clear error" if clear else "unclear", f"{scheme} {gradient} {grid}: {error}"


def arrays_of_npz(place: Path, n: int, seed: int) -> Trials:
    """Flipped bits of an .npz: the arrays that were written, or an error with the name of the file."""
    good, rng = make_arrays(), np.random.default_rng(seed)
    path = save(place / "bits.npz")
    whole = path.read_bytes()
    headers = [i for i in range(len(whole) - 3) if whole[i : i + 2] == b"PK"]
    for _ in range(n):
        # Half of them in headers, which are a small part of the file.
        at = int(rng.choice(headers)) + int(rng.integers(60)) if rng.random() < 0.5 else int(rng.integers(len(whole)))
        at, bit = min(at, len(whole) - 1), int(rng.integers(8))
        content = bytearray(whole)
        content[at] ^= 1 << bit
        path.write_bytes(bytes(content))

        def is_good(found: Any) -> bool:
            return all(np.array_equal(getattr(found, key), value) for key, value in good.items())

        outcome, what = outcome_of(lambda: load(path, validation_fraction=0), ("bits.npz",), is_good, (ValueError,))
        yield "npz bits", outcome, f"byte {at} bit {bit}: {what}"


def image_files(place: Path, n: int, seed: int) -> Trials:
    """Flipped bytes and cut ends of a PNG: the pixels that were written, or an error with the name of the file."""
    from PIL import Image

    rng, path = np.random.default_rng(seed), place / "bits.png"
    pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for _ in range(n):
        at = int(rng.integers(len(whole)))
        cut = rng.random() < 0.3
        content = bytearray(whole[:at] if cut else whole)
        if not cut:
            content[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(content))
        run = lambda: decode_images([path], [str(path)], 3)[0]
        outcome, what = outcome_of(run, ("bits.png",), lambda found: np.array_equal(found, pixels), (ValueError,))
        yield "image files", outcome, f"{'cut at' if cut else 'byte'} {at}: {what}"


def prepared_sets(place: Path, n: int, seed: int) -> Trials:
    """Flipped bits and cut ends of the files of a prepared set: its images and labels, or an error with its folder."""
    good, rng = make_arrays(), np.random.default_rng(seed)
    folder = prepare_data.from_arrays("set", save(place / "set.npz"), place / "tfds")
    for path in rng.choice(np.array(sorted(p for p in folder.iterdir() if p.stat().st_size), dtype=object), n):
        whole = path.read_bytes()
        at, bit, cut = int(rng.integers(len(whole))), int(rng.integers(8)), rng.random() < 0.3
        at = len(whole) // 2 if cut and rng.random() < 0.5 else at
        content = bytearray(whole[:at] if cut else whole)
        if not cut:
            content[at] ^= 1 << bit
        path.write_bytes(bytes(content))

        def is_good(found: Any) -> bool:
            return all(np.array_equal(getattr(found, key), value) for key, value in good.items())

        run = lambda: load("set", data_dir=place / "tfds", validation_fraction=0)
        outcome, what = outcome_of(run, (str(folder), "set"), is_good, (ValueError, FileNotFoundError))
        yield "prepared sets", outcome, f"{path.name} {'cut at' if cut else f'bit {bit} of'} {at}: {what}"
        path.write_bytes(whole)
