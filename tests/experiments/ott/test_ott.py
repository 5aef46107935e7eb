"""Ott's networks have the published sizes, and the grid judges its rows by what they measured."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from rich.console import Console

from experiments.ott import critical_steps as ott
from experiments.ott import figures as ott_figures
from experiments.ott.critical_steps import Options
from experiments.ott.programs import accuracies, begin, check_cost, skips, step_of_check, training, warning
from experiments.ott.tasks import POWERS, TASKS, pooled
from experiments.records.rows import Rows
from ode_nets import FixedStep, n_parameters

TINY = {"iterations": 50, "learning_rate": 5e-3, "seeds": 2, "n_train": 200, "n_test": 60}


@pytest.mark.parametrize(
    ("name", "count"), [("spheres2", 3_207), ("landscape", 2_603), ("mnist", 91_179), ("cifar10", 179_213)]
)
def test_networks_have_the_published_numbers_of_parameters(name, count):
    task = TASKS[name]
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == n_parameters({"params": params}) == count


@pytest.mark.slow
def test_untrained_networks_classify_like_each_other_under_every_solver():
    task = dataclasses.replace(TASKS["spheres3"], test_chunk=30)
    _, (x, y) = task.load(0, 10, 60, None)
    params = jax.vmap(task.init)(jax.random.split(jax.random.key(0), 2))
    still = {"field": jax.tree.map(lambda leaf: 0 * leaf, params["field"]), "head": params["head"]}
    euler, rk4 = (accuracies(task, still, (x, y), FixedStep(scheme, 3)) for scheme in ("euler", "rk4"))
    # Without a field the classifier sees the points themselves; 60 of them are met in chunks of 30.
    logits = x.reshape(60, -1) @ still["head"]["kernel"] + still["head"]["bias"][:, None]
    assert euler == rk4
    np.testing.assert_allclose(euler, np.mean(np.argmax(logits, -1) == y, axis=1), atol=1e-6)


def row(scheme, n, own, other):
    counts = sorted({max(1, round(n / f)) for f in ott.FACTORS})
    schemes = ("euler", "midpoint", "rk4") if scheme == "euler" else ("rk4",)
    test = {f"{s} {k}": [own if (s, k) == (scheme, n) else other, 0.3] for s in schemes for k in counts}
    return {"scheme": scheme, "n_steps": n, "test": test | {f"{scheme} {n}": [own, 0.3]}}


def test_rows_are_judged_over_the_seeds_that_trained():
    rows = [row("euler", 4, 0.9, 0.5), row("euler", 8, 0.9, 0.75), row("euler", 16, 0.88, 0.8), row("rk4", 2, 0.9, 0.9)]
    ott.judge(rows, 0.5, 1000)
    assert all(r["trained"] == [True, False] for r in rows)
    assert [r["passed"] for r in rows] == [False, False, True, True]
    assert rows[2]["accuracy"] == pytest.approx(0.88)
    assert rows[2]["loss"] == rows[2]["gap"] == pytest.approx(0.08)
    assert ott.critical(rows, "euler") == ott.critical(rows, "euler", "passed_gap") == [8, 16]
    assert ott.critical(rows, "rk4") == [None, 8]
    # A row where no seed trained has no verdict, and is no sign that finer models are none either.
    rows[2]["test"]["euler 16"] = [0.4, 0.3]
    ott.judge(rows, 0.5, 1000)
    assert [r["passed"] for r in rows] == [False, False, None, True]
    rows += [row("euler", 32, 0.9, 0.9)]
    ott.judge(rows, 0.5, 1000)
    assert ott.critical(rows, "euler") == [8, 32]
    rows += [row("euler", 64, 0.3, 0.3)]
    ott.judge(rows, 0.5, 1000)
    assert ott.critical(rows, "euler") == ott.critical(rows, "euler", "passed_gap") == [8, 32]
    ott.judge(rows, 0.99, 1000)
    assert [r["passed"] for r in rows] == [None] * 6
    assert ott.critical(rows, "euler") == [None, None]
    # Nor is there a best one among rows that guess.
    guesses = [row("euler", 1, 0.51, 0.51)]
    ott.judge(guesses, 0.5, 200)
    assert guesses[0]["passed"] is None
    assert ott_figures.trained_rows({"rows": {"euler 1": guesses[0]}}, "euler") == []


def few(keys):
    """Three iterations of a landscape's networks, a seed a key: the program, its data and states after them."""
    task = dataclasses.replace(TASKS["landscape"], batch_size=16)
    x, y = jax.random.normal(jax.random.key(0), (40, 2)), np.arange(40) % 3
    step = training(task, "euler", 4, own=False, many=3)
    return step, x, y, step(jax.jit(begin, static_argnums=0)(task, keys), x, y, 4)


def test_seeds_do_not_see_each_other_and_updates_that_are_left_out_are_counted():
    one, other = jax.random.split(jax.random.key(1))
    step, x, y, after = few(jnp.stack([one, other, one]))
    for leaf in jax.tree.leaves(after["params"]):
        np.testing.assert_allclose(leaf[0], leaf[2], rtol=1e-6)
        assert not np.allclose(leaf[0], leaf[1])
    assert skips(after) == [0, 0, 0]
    # Where no gradient is finite nothing moves, momentum neither, and every update is counted.
    lost = step(after, jnp.full_like(x, jnp.nan), y, 4)
    for a, b in zip(*(jax.tree.leaves((s["params"], s["opt"])) for s in (after, lost)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert skips(lost) == [3, 3, 3]
    assert "WARNING: [3, 3, 3] updates left out" in warning(skips(lost))
    assert warning([0, 0]) == ""


@pytest.mark.slow
def test_a_row_of_seeds_is_each_seed_by_itself():
    keys = jax.random.split(jax.random.key(1), 3)
    together, alone = (few(some)[-1]["params"] for some in (keys, keys[1:2]))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b[0], rtol=1e-5, atol=1e-7)


def test_grids_are_the_papers_unless_steps_are_given():
    assert Options("grid", "spheres2").reduced().rk4 == POWERS == tuple(2**k for k in range(9))
    for name, euler, rk4 in (("landscape", 256, 256), ("mnist", 64, 32), ("cifar10", 64, 16)):
        task = Options("grid", name).reduced()
        assert (task.euler[-1], task.rk4[-1]) == (euler, rk4)
    task = Options("grid", "mnist", euler=(4,), rk4=()).reduced()
    assert (task.euler, task.rk4) == ((4,), ())
    parsed = tyro.cli(Options, args=["grid", "mnist", "--euler", "4", "8", "--rk4"])
    assert (parsed.euler, parsed.rk4) == ((4, 8), ())


def test_initial_weights_are_those_of_the_code_unless_asked_otherwise():
    biases = lambda name, **given: [
        np.abs(layer["bias"]).max()
        for layer in Options("grid", name, **given).reduced().init(jax.random.key(0))["field"]
    ]
    assert all(biases(name) == [0.0] * 3 for name in TASKS)
    for name in ("spheres2", "landscape", "mnist"):
        assert min(biases(name, initial="uniform")) > 0


def test_images_are_averaged_where_asked():
    images = jnp.arange(2.0 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(pooled(images, 2)[:, 0, 1], images[:, :2, 2:].mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(pooled(images, 4), images)
    assert Options("grid", "cifar10", pool=2).reduced().shape == (16, 16, 3)
    for task, pool in (("spheres2", 2), ("mnist", 3), ("mnist", 0)):
        with pytest.raises(ValueError, match=f"pool={pool}: expected 1"):
            Options("grid", task, pool=pool)


def test_midpoint_checks_at_its_own_step_by_the_code():
    h = jnp.array([1.0, 0.08, 0.02, 0.005])
    np.testing.assert_array_equal(step_of_check(h, "paper"), h)
    np.testing.assert_allclose(step_of_check(h, "code"), [0.02**0.5, 0.04, 0.02, 0.005], rtol=1e-6)
    np.testing.assert_array_equal(check_cost(h, "code"), [1 + 2 * 8, 13 + 2 * 25, 50 + 2 * 50, 200 + 2 * 200])


def test_the_iterations_written_are_those_that_run(tmp_path):
    rows = Options("grid", "spheres2", iterations=120, out=tmp_path).rows()
    assert (rows.head["settings"]["iterations"], rows.head["used"]["iterations"]) == (120, 150)


def test_rows_are_measured_once_and_kept_apart_from_those_of_other_settings(tmp_path):
    path, calls = tmp_path / "some" / "grid.json", []

    def measure():
        calls.append(1)
        return {"said": "well", "seconds": 2.0, "value": 3}, {"a": np.arange(3)}

    for revision in ("a", "b"):
        at = {"revision": revision, "device": "cpu", "load_average": [1.0]}
        rows = Rows.open(path, {"settings": {"seeds": 2, "steps": (1, 2)}, "environment": at})
        assert rows.fill("euler 1", measure, Console(quiet=True))["value"] == 3
    assert len(calls) == 1
    # What a row was measured with stays, whoever goes on with the next.
    rows.fill("euler 2", measure, Console(quiet=True))
    rows.write({})
    kept = json.loads(path.read_text())["rows"]
    assert {key: row["environment"]["revision"] for key, row in kept.items()} == {"euler 1": "a", "euler 2": "b"}
    rows.rows.pop("euler 2")
    np.testing.assert_array_equal(rows.arrays["a"], np.arange(3))
    rows.write({"critical": 7})
    found = json.loads(path.read_text())
    assert (found["critical"], found["seconds"], list(found["rows"])) == (7, 2.0, ["euler 1"])
    with pytest.raises(ValueError, match="other settings"):
        Rows.open(path, {"settings": {"seeds": 3}})
    assert Rows.open(path, {"settings": {"seeds": 3}}, overwrite=True).rows == {}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"task": "spheres7"}, "task='spheres7'"),
        ({"euler": (0,)}, "euler="),
        ({"seeds": 0}, "seeds=0"),
        ({"tolerances": (0.0,)}, "tolerances="),
    ],
)
def test_bad_settings_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        Options(**({"what": "grid", "task": "spheres2"} | changes))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["spheres2", "landscape"])
def test_all_experiments_run_and_are_drawn(task, tmp_path, monkeypatch):
    console, few = Console(quiet=True), TINY | {"out": tmp_path}
    enough = {"iterations": 400, "learning_rate": 1e-2, "batch_size": 32, "n_train": 500, "n_test": 200}
    grids = Options("grid", task, euler=(1, 4), rk4=(1,), **(few | enough))
    rows = grids.rows()
    rows.write(ott.grid(grids, grids.reduced(), rows, console))
    assert set(rows.rows) == {"euler 1", "euler 4", "rk4 1"}
    assert rows.arrays["euler 4"].shape == (2, 48, 5, 2)
    adapts = Options("adapt", task, max_steps=8, **(few | {"iterations": 150}))
    rows = adapts.rows()
    rows.write(ott.adapt(adapts, adapts.reduced(), rows, console))
    assert all(r["compilations"] == 1 and r["checks"] == [2, 2] for r in rows.rows.values())
    tolerances = Options("tolerance", task, tolerances=(0.1,), **few)
    rows = tolerances.rows()
    rows.write(ott.tolerance(tolerances, tolerances.reduced(), rows, console))
    monkeypatch.setattr("sys.argv", ["ott_figures", "--folder", str(tmp_path)])
    ott_figures.main()
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"data", *(f"{what}_{task}" for what in ("grid", "adapt", "tolerance", "trajectories"))}
