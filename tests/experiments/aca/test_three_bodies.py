"""Models of three bodies: what they are, that they train, that failed solves are skipped, that rows are resumed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.aca import three_bodies, three_bodies_models
from experiments.aca.three_bodies import Options
from experiments.aca.three_bodies_models import Model, Recipe, make_data, mechanics, recurrent
from ode_nets.problems.three_bodies import GRAVITY, UNEQUAL, acceleration


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"points": 50}, "points=50: expected a multiple of 20"),
        ({"seeds": 0}, "seeds=0"),
        ({"lstm_epochs": 0}, "--lstm-epochs=0"),
        ({"models": ()}, "models="),
    ],
)
def test_bad_settings_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        Options(**changes)


def test_an_lstm_has_one_row_and_odes_one_a_gradient():
    rows = Options(models=("lstm", "ode"), gradients=("naive", "aca")).runs()
    assert rows == [("lstm", "naive"), ("ode", "naive"), ("ode", "aca")]


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        return make_data(UNEQUAL, 40)[0]


def test_the_test_is_shifted_by_half_an_interval_and_reaches_twice_as_far(data):
    np.testing.assert_allclose(data.ts, np.arange(40) / 40)
    np.testing.assert_allclose(data.test_ts, (np.arange(80) + 0.5) / 40)
    assert data.test_r.shape == (80, 3, 3)
    np.testing.assert_array_equal(data.r[0], data.start.r)


@pytest.mark.usefixtures("x64")
def test_the_true_masses_have_no_error_and_the_layer_can_hold_the_law(data):
    model = mechanics("ode", "direct", 1.0)
    r, nfe = model.predict(jnp.asarray(UNEQUAL.masses), data)
    # Errors of 1e-5 a step grow a hundredfold from encounter to encounter.
    assert float(jnp.mean(three_bodies_models.squares(r, data.test_r)[:40])) < 1e-5
    assert nfe > 0
    theta = mechanics("node", "direct", 1.0).init(jax.random.key(0))
    kernel = np.zeros((3, 27, 3, 3))
    for i in range(3):
        for k in range(2):
            rows = slice(12 + 12 * k, 15 + 12 * k)
            kernel[i, rows, i] = -GRAVITY * UNEQUAL.masses[(i + k + 1) % 3] * np.eye(3)
    exact = {"kernel": kernel.reshape(theta["kernel"].shape), "bias": 0 * theta["bias"]}
    expected = acceleration(data.start.r, data.start.masses)
    np.testing.assert_allclose(three_bodies_models.law(exact, data.start.r), expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_an_lstm_reads_ten_points_and_never_the_rest(data):
    model = recurrent(True, 4)
    theta = model.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype("float32")}
    predict = jax.jit(model.predict)
    r, _ = predict(theta, data)
    spoiled = data._replace(test_r=data.test_r.at[10:].set(7.0))
    np.testing.assert_array_equal(predict(theta, spoiled)[0], r)
    assert r.shape == data.test_r.shape
    np.testing.assert_array_equal(r[0], data.test_r[0])
    assert not np.array_equal(predict(theta, data._replace(test_r=data.test_r.at[9].set(7.0)))[0][10:], r[10:])


def test_training_keeps_the_best_and_goes_on_from_it_after_a_failure(data):
    """A parabola with a wall: beyond x = 1.5 the loss is NaN, as after a failed solve."""
    wall = Model(
        init=lambda key: jnp.float32(-1.0),
        loss=lambda x, data: (jnp.where(x > 1.5, jnp.nan, (x - 1.4) ** 2), jnp.int32(0)),
        predict=lambda x, data: (x, x),
        track=lambda x: x,
    )
    found = three_bodies_models.train(wall, Recipe(40, 0.5, 1.0), 40, data, jax.random.split(jax.random.key(0), 2))
    assert found.skipped.min() > 0
    assert found.losses.shape == found.tracked.shape == (2, 40)
    np.testing.assert_array_equal(found.best, np.nanmin(found.losses, axis=1))
    np.testing.assert_allclose((found.theta - 1.4) ** 2, found.best, rtol=1e-6)
    # The epoch after a failure is that of the best weights.
    failed = np.flatnonzero(np.isnan(found.losses[0, :-1]))
    assert all(found.losses[0, i + 1] == np.nanmin(found.losses[0, :i]) for i in failed)


@pytest.mark.slow
def test_rows_are_trained_written_and_resumed(tmp_path, monkeypatch, capsys):
    sizes = ["--points", "40", "--epochs", "3", "--lstm-epochs", "3", "--seeds", "2", "--width", "4"]
    command = ["three_bodies", *sizes, "--gradients", "direct", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*command, "--models", "ode", "lstm"])
    three_bodies.main()
    first = json.loads((tmp_path / "paper_published.json").read_text())
    assert list(first["rows"]) == ["ode direct", "lstm"]
    assert first["rows"]["ode direct"]["backward_vjps"] > 0
    assert first["truth"]["energy_drift"] < 1e-8
    monkeypatch.setattr("sys.argv", [*command, "--models", "ode", "lstm", "lstm_aug"])
    three_bodies.main()
    record = json.loads((tmp_path / "paper_published.json").read_text())
    assert list(record["rows"]) == ["ode direct", "lstm", "lstm_aug"]
    assert {key: record["rows"][key] for key in first["rows"]} == first["rows"]
    row = record["rows"]["ode direct"]
    assert len(row["mse"]) == 2
    assert max(row["train_loss"]) < np.load(tmp_path / "paper_published.npz")["ode direct/losses"][:, 0].max()
    assert all(np.isfinite(value) for row in record["rows"].values() for value in row["mse"])
    assert "0.0007 +- 0.0005" not in capsys.readouterr().out, "the paper has no Direct"
    for what in ("paths", "masses"):
        assert (tmp_path / f"paper_published_{what}.png").read_bytes().startswith(b"\x89PNG")
    assert jax.config.jax_enable_x64 is False


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gradient", three_bodies_models.GRADIENTS)
@pytest.mark.parametrize("name", ["node", "ode"])
def test_every_gradient_trains_every_ode(data, name, gradient):
    recipe = three_bodies_models.recipe(name, "code")
    model = mechanics(name, gradient, recipe.fading)
    found = three_bodies_models.train(model, recipe, 10, data, jax.random.split(jax.random.key(0), 2))
    assert found.skipped.max() == 0
    assert (found.best < found.losses[:, 0]).all()
