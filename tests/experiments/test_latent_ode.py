"""The tool for series: bad data, what an encoder sees, runs that are interrupted, and hopper's file."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from experiments.aca import hopper
from experiments.latent_ode import settings_of
from experiments.records.files import RunError, read_manifest, read_metrics
from experiments.series.config import SeriesConfig
from experiments.series.data import prepare, read
from experiments.series.steps import evaluate_batch, observe
from experiments.series.training import Options, best_of, train
from experiments.training.progress import Interrupted, unfailing_console
from experiments.training.run import Run, check_start

ROOT = Path(__file__).parents[2]
SMALL = SeriesConfig(latent=2, size=2, width=4, depth=1, units=3, epochs=2, batch_size=4, kl_wait=0, sigma=0.1)
QUIET = unfailing_console(quiet=True)


def arrays(n=12, own=False):
    """Waves with a random phase, a quarter of them missing."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(2.0, 7.0, (n, 6) if own else (6,)), axis=-1)
    phase = rng.uniform(0, 6, (n, 1))
    values = np.stack([np.sin(times + phase), 5 + 3 * np.cos(times + phase)], -1)
    values[rng.random(values.shape) < 0.25] = np.nan
    values[:, 0] = 1.0 + rng.random((n, 2))
    return {"times": times, "values": values}


# ---------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------


def change(**changes):
    def changed():
        found = arrays()
        for name, how in changes.items():
            found[name] = how(found[name])
        return found

    return changed


def put(index, value):
    def at(array):
        array = array.copy()
        array[index] = value
        return array

    return at


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (change(times=lambda t: t[::-1]), r"not sorted: they fall after \[0\]"),
        (change(times=put(2, np.nan)), "not all finite: pad short series"),
        (change(times=lambda t: t[:1], values=lambda v: v[:, :1]), "there is 1 time point"),
        (change(times=lambda t: t[:0], values=lambda v: v[:, :0]), "there is no time point"),
        (change(times=np.zeros_like), "all times of a series are the same"),
        (change(times=lambda t: t[:3]), r"times have shape \(3,\) beside values"),
        (change(values=lambda v: np.full_like(v, np.nan)), "all values are missing"),
        (change(values=put(3, np.nan)), r"series \[3\] of 12 have no observed value"),
        (change(values=put((..., 1), np.nan)), r"feature \[1\] is never observed"),
        (change(values=put((..., 1), 4.0)), r"feature \[1\] is constant"),
        (change(values=put((0, 0, 0), np.inf)), "infinite"),
        (change(values=lambda v: v[0]), "cut one long series into windows"),
        (change(values=lambda v: v[:4]), "fewer than batch_size=4"),
        (lambda: arrays() | {"mask": np.ones((12, 6))}, "the mask has shape"),
        (lambda: arrays() | {"mask": np.full((12, 6, 2), 0.5)}, "other entries than true and false"),
        (change(values=put((11, 0, 1), 1e20)), "feature 1 of series 11 lies more than 1e\\+06 times its range"),
        (change(times=lambda t: t.astype("datetime64[s]")), r"times are datetime64\[s\]: expected real numbers"),
        (change(values=lambda v: v + 1j), "values are complex128: expected real numbers"),
        (change(values=lambda v: v[:1]), "of 1 series 0 are left to train on: give more, or cut"),
    ],
)
def test_bad_data_is_named(bad, said):
    with pytest.raises(RunError, match=said):
        prepare(bad(), SMALL)


def test_a_file_that_is_no_npz_is_named(tmp_path):
    path = tmp_path / "data.npz"
    path.write_text("no archive")
    with pytest.raises(RunError, match="cannot be read"):
        read(path)
    np.savez(path, values=np.zeros(3))
    with pytest.raises(RunError, match="has no times"):
        read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RunError, match="cannot be read"):
        read(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(RunError, match="holds a single array"):
        read(path.with_suffix(".npy"))


@pytest.mark.parametrize("scale", ["range", "max"])
def test_scaled_values_and_times_come_back(scale):
    """And the scale is of all series but those that test, which may leave it, whatever the limit."""
    found = arrays()
    series = prepare(found, dataclasses.replace(SMALL, scale=scale, span=0.5))
    mask = ~np.isnan(found["values"])
    np.testing.assert_array_equal(series.mask, mask)
    back = series.low + series.scale * series.values
    np.testing.assert_allclose(back[mask], found["values"][mask], rtol=1e-5)
    np.testing.assert_allclose(series.t0 + series.unit * series.times, found["times"], rtol=1e-5)
    assert (float(series.times[0]), float(series.times[-1])) == (0.0, 0.5)
    seen = np.where(mask, found["values"], np.nan)[: series.split(SMALL)["test"][0]]
    low, high = np.nanmin(seen, (0, 1)), np.nanmax(seen, (0, 1))
    np.testing.assert_allclose(series.scale, high - low if scale == "range" else high)
    limited = prepare(found, dataclasses.replace(SMALL, scale=scale, span=0.5, limit=6))
    assert len(limited.split(dataclasses.replace(SMALL, limit=6))["train"]) < len(series.split(SMALL)["train"])
    np.testing.assert_array_equal(limited.values, series.values)


def test_windows_of_a_long_series_each_begin_at_zero():
    """They are the same series whether their times are those of the whole, or their own."""
    found = arrays(20, True)
    later = found | {"times": found["times"] + 100.0 * np.arange(20)[:, None]}
    one, two = prepare(found, SMALL), prepare(later, SMALL)
    np.testing.assert_allclose(one.times, two.times, atol=1e-6)
    assert two.times[:, 0].tolist() == [0.0] * 20
    assert float(two.times.max()) == SMALL.span
    np.testing.assert_allclose(two.t0 + two.unit * two.times, later["times"], rtol=1e-5)


def test_a_mask_and_nan_say_the_same():
    found = arrays()
    mask = ~np.isnan(found["values"])
    other = found | {"values": np.where(mask, found["values"], 1e6), "mask": mask}
    one, two = prepare(found, SMALL), prepare(other, SMALL)
    np.testing.assert_array_equal(one.values, two.values)
    assert one.fingerprint() == two.fingerprint()


def test_parts_are_disjoint_and_the_last_test():
    parts = prepare(arrays(20), SMALL).split(SMALL)
    assert {name: len(part) for name, part in parts.items()} == {"train": 14, "validation": 2, "test": 4}
    np.testing.assert_array_equal(np.concatenate(list(parts.values())), np.arange(20))


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


def test_an_encoder_sees_its_share_of_the_observed_times():
    mask = jnp.asarray(np.random.default_rng(0).random((40, 20, 3)) < 0.4)
    seen = observe(jax.random.key(0), mask, 0.25)
    assert not (seen & ~mask).any()
    there = mask.any(-1)
    np.testing.assert_array_equal(seen.any(-1).sum(-1), np.maximum(1, np.round(0.25 * there.sum(-1))))
    # A time is seen as a whole or not at all, and other draws see other times.
    np.testing.assert_array_equal(seen.any(-1)[..., None] & mask, seen)
    assert (observe(jax.random.key(1), mask, 0.25) != seen).any()
    np.testing.assert_array_equal(observe(jax.random.key(0), mask, 1.0), mask)


@pytest.mark.parametrize(
    ("own", "net"),
    [
        pytest.param(False, "latent_ode", marks=pytest.mark.slow),
        pytest.param(True, "latent_ode", marks=pytest.mark.slow),
        pytest.param(True, "gru", marks=pytest.mark.slow),
        (False, "rnn"),
    ],
)
def test_an_interrupted_run_goes_on_bitwise(tmp_path, monkeypatch, own, net):
    """Stopped inside an epoch, it ends as the one that never was; times of their own and shared ones, and baselines."""
    from experiments.series import training

    config, series = dataclasses.replace(SMALL, net=net), prepare(arrays(20, own), SMALL)
    whole = train(config, series, Options(), tmp_path / "whole", QUIET)

    class Told(training.StopSignals):
        def __enter__(self):
            told = super().__enter__()
            told.noted.append(15)
            return told

    with monkeypatch.context() as patch:
        patch.setattr(training, "StopSignals", Told)
        with pytest.raises(Interrupted, match="SIGTERM at step 1"):
            train(config, series, Options(), tmp_path / "cut", QUIET)
    assert read_manifest(tmp_path / "cut")["status"] == "interrupted"
    resumed = train(config, series, Options(resume=True), tmp_path / "cut", QUIET)
    assert_agree(best_of(tmp_path / "cut"), best_of(tmp_path / "whole"), 0)
    drop = lambda record: {key: value for key, value in record.items() if "seconds" not in key}
    assert drop(resumed) == drop(whole)
    first, second = (list(map(drop, read_metrics(tmp_path / name))) for name in ("whole", "cut"))
    assert first == second
    assert np.isfinite(whole["test_mse"])
    with pytest.raises(RunError, match="the data is not that of the run"):
        train(config, prepare(arrays(24, own), SMALL), Options(resume=True), tmp_path / "cut", QUIET)


def test_a_filled_up_batch_counts_each_series_once():
    series = prepare(arrays(20), SMALL)
    data = tuple(map(jnp.asarray, (series.times, series.values, series.mask)))
    from experiments.series.steps import init_state

    params = init_state(SMALL, data)["params"]
    index, counts = np.array([0, 1, 0, 1]), np.array([True, True, False, False])
    error, n, failed = evaluate_batch(SMALL, params, data, index, counts, jax.random.key(0))
    assert (int(n), int(failed)) == (SMALL.n_samples * series.mask[:2].sum(), 0)
    assert np.isfinite(error)


def test_a_series_whose_solve_fails_is_left_out_and_counted():
    """Of series with times of their own: those that share them share a solve."""
    from experiments.series.steps import init_state

    series, config = prepare(arrays(20, True), SMALL), dataclasses.replace(SMALL, observed=1.0)
    data = tuple(map(jnp.asarray, (series.times, series.values, series.mask)))
    params = init_state(config, data)["params"]
    broken = (data[0], data[1].at[1, *np.argwhere(series.mask[1])[0]].set(jnp.nan), data[2])
    error, n, failed = evaluate_batch(config, params, broken, np.arange(2), np.ones(2, bool), jax.random.key(0))
    assert (int(n), int(failed)) == (SMALL.n_samples * series.mask[0].sum(), 1)
    assert np.isfinite(error)


def test_a_run_goes_on_with_the_settings_that_it_was_started_with(tmp_path):
    Run.start(tmp_path, SMALL, resume=False, overwrite=False).close()
    assert settings_of(tmp_path, SeriesConfig()) == SMALL
    assert settings_of(tmp_path, SeriesConfig(epochs=9)) == dataclasses.replace(SMALL, epochs=9)
    assert settings_of(tmp_path / "none", SeriesConfig(width=7)) == SeriesConfig(width=7)
    with pytest.raises(RunError, match=r"has another config: width was 4, is 7\. Leave these out"):
        check_start(tmp_path, settings_of(tmp_path, SeriesConfig(width=7)), resume=True, overwrite=False)


@pytest.mark.slow
def test_the_tool_fits_and_draws(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays(20))
    sizes = {"latent": 2, "size": 2, "width": 4, "depth": 1, "units": 3, "epochs": 1, "batch-size": 4, "sigma": 0.1}
    small = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "experiments.latent_ode", str(tmp_path / "data.npz"), *small]
    done = subprocess.run([*command, "--run-dir", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test MSE" in done.stdout
    assert (tmp_path / "run" / "series.png").stat().st_size > 10_000
    again = subprocess.run([*command, "--run-dir", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1
    assert "holds a run (finished)" in again.stderr


# ---------------------------------------------------------------------------------------------------------
# Hopper
# ---------------------------------------------------------------------------------------------------------


def test_hopper_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(RunError, match=r"pip install -e '\.\[mujoco\]'"):
        hopper.generate(1, 0)


def test_a_damaged_file_of_hopper_is_refused(tmp_path):
    path = tmp_path / "hopper.npz"
    with pytest.raises(RunError, match="generates it, with the extra mujoco"):
        hopper.verified(path)
    digest = hopper.write(path, np.zeros((2, hopper.WINDOW, 14)))
    assert hopper.verified(path) == digest
    assert read(path)["times"].shape == (hopper.WINDOW,)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match="generate it again"):
        hopper.verified(path)


@pytest.mark.slow
def test_trajectories_are_those_of_their_seed():
    pytest.importorskip("dm_control")
    one = hopper.generate(2, 5)
    np.testing.assert_array_equal(one, hopper.generate(2, 5))
    assert one.shape == (2, hopper.WINDOW, 14)
    assert (one != hopper.generate(2, 6)).any()
