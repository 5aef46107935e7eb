"""Optimizers, schedules, clipping, smoothing and averages of the weights, by their closed forms and through a run."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.records.files import RunError, read_manifest
from experiments.train import Options, train
from experiments.training import optimizers, steps
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings
from experiments.training.run import load_run

CONFIG = Config(
    limit=16, batch_size=8, crop_pad=0, flip=False, model=ContinuousNetSettings(widths=(2,)), epochs=4,
    decay_epochs=(), validation_fraction=0.1,
)  # fmt: skip


def test_an_optimizer_is_one_of_optax_and_others_are_refused_by_name():
    for name in ("sgd", "adamw", "lion", "muon", "lamb"):
        assert dataclasses.replace(CONFIG, optimizer=name).optimizer == name
    for name in ("adamv", "lbfgs", "chain", "scale_by_rprop"):
        with pytest.raises(ValueError, match=f"optimizer='{name}': expected one of .*adamw"):
            dataclasses.replace(CONFIG, optimizer=name)
    with pytest.raises(ValueError, match=r"did you mean adam"):
        dataclasses.replace(CONFIG, optimizer="adamv")


def test_the_rate_rises_linearly_and_falls_along_a_cosine_to_0():
    config = dataclasses.replace(CONFIG, schedule="cosine", warmup_epochs=1.0, learning_rate=0.2)
    rate = optimizers.rate_of(config, 4)
    np.testing.assert_allclose([rate(n) for n in range(4)], [0.05, 0.1, 0.15, 0.2], rtol=1e-6)
    expected = [0.1 * (1 + math.cos(math.pi * n / 12)) for n in (0, 6, 12)]
    np.testing.assert_allclose([rate(4 + n) for n in (0, 6, 12)], expected, atol=1e-7)


def test_weight_decay_is_the_optimizers_own_where_it_has_one_and_long_gradients_are_cut():
    weights, gradient = jnp.ones(2), jnp.array([3.0, 4.0])
    config = dataclasses.replace(CONFIG, momentum=0.0, learning_rate=1.0, weight_decay=0.5, clip_norm=1.0)
    optimizer = optimizers.make_optimizer(config, 1)
    update, _ = optimizer.update(gradient, optimizer.init(weights), weights)
    np.testing.assert_allclose(update, [-1.1, -1.3], rtol=1e-6)
    adamw = optimizers.make_optimizer(dataclasses.replace(config, optimizer="adamw"), 1)
    update, _ = adamw.update(gradient, adamw.init(weights), weights)
    np.testing.assert_allclose(update, [-1.5, -1.5], rtol=1e-5)


def test_muon_takes_the_kernels_of_a_basis_one_by_one():
    params = {"coefficients": {"kernel": jnp.ones((4, 3, 3, 2, 5)), "bias": jnp.ones((4, 5))}, "head": jnp.ones((5, 7))}
    found = optimizers.matrices(params)
    assert found["coefficients"]["kernel"] == optimizers.contrib.MuonDimensionNumbers((1, 2, 3), 4)
    assert found["coefficients"]["bias"] is None
    assert found["head"] == optimizers.contrib.MuonDimensionNumbers((0,), 1)


def test_an_average_starts_with_the_weights_and_slows_down():
    now = {"w": jnp.float32(1.0)}
    first = steps.averaged(0.99, {"w": jnp.float32(0.0)}, now, jnp.int32(0))
    np.testing.assert_allclose(first["w"], 0.9, rtol=1e-6)
    late = steps.averaged(0.99, {"w": jnp.float32(0.0)}, now, jnp.int32(10**6))
    np.testing.assert_allclose(late["w"], 0.01, rtol=1e-4)


def test_a_run_by_adamw_is_recorded_and_its_averages_are_refined_loaded_and_resumed(tmp_path):
    changes = {"optimizer": "adamw", "schedule": "cosine", "warmup_epochs": 0.5, "clip_norm": 1.0, "epochs": 2}
    changes |= {"label_smoothing": 0.1, "ema_decay": 0.9, "learning_rate": 0.01, "refine_epochs": (1,)}
    config = dataclasses.replace(CONFIG, **changes)
    train(config, Options(quiet=True), tmp_path / "run")
    assert Config.from_json(read_manifest(tmp_path / "run")["config"]) == config
    _, net, variables, _ = load_run(tmp_path / "run")
    assert net.basis.n_basis == 2
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    with pytest.raises(RunError, match="epochs was 2, is 3"):
        train(dataclasses.replace(config, epochs=3), Options(quiet=True, resume=True), tmp_path / "run")
