"""Ott's networks have the published sizes, and the grid judges its rows by what they measured."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import ott, ott_figures
from experiments.ott import Options
from experiments.ott_tasks import TASKS, accuracies
from experiments.rows import Rows
from ode_nets import FixedStep, n_parameters

TINY = {"iterations": 50, "learning_rate": 5e-3, "seeds": 2, "n_train": 200, "n_test": 60}


@pytest.mark.parametrize(
    ("name", "count"), [("spheres2", 3_207), ("landscape", 2_603), ("mnist", 91_179), ("cifar10", 179_213)]
)
def test_networks_have_the_published_numbers_of_parameters(name, count):
    task = TASKS[name]
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == n_parameters({"params": params}) == count


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
    ott.judge(rows, chance=0.5)
    assert all(r["trained"] == [True, False] for r in rows)
    assert [r["passed"] for r in rows] == [False, False, True, True]
    assert rows[2]["accuracy"] == pytest.approx(0.88)
    assert rows[2]["loss"] == rows[2]["gap"] == pytest.approx(0.08)
    assert ott.critical(rows, "euler") == ott.critical(rows, "euler", "passed_gap") == [8, 16]
    assert ott.critical(rows, "rk4") == [None, 8]
    ott.judge(rows, chance=0.99)
    assert [r["passed"] for r in rows] == [None] * 4


def test_rows_are_measured_once_and_kept_apart_from_those_of_other_settings(tmp_path):
    path, calls = tmp_path / "some" / "grid.json", []

    def measure():
        calls.append(1)
        return {"said": "well", "seconds": 2.0, "value": 3}, {"a": np.arange(3)}

    for _ in range(2):
        rows = Rows.open(path, {"settings": {"seeds": 2, "steps": (1, 2)}})
        assert rows.fill("euler 1", measure, Console(quiet=True))["value"] == 3
    assert len(calls) == 1
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
    grids = Options("grid", task, euler=(1, 4), rk4=(1,), **few)
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
