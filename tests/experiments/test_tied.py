"""Twins that differ in one setting: what is trained, what is summed up, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from experiments import tied
from experiments.configs import digits, digits_euler


def test_twins_differ_in_one_setting_alone():
    flat = {name: dataclasses.asdict(config) | dataclasses.asdict(config.model) for name, config in tied.ROWS.items()}

    def differ(one: str, other: str) -> set[str]:
        return {key for key, value in flat[one].items() if value != flat[other][key] and key != "model"}

    whole = {"n_basis", "n_steps", "refine_epochs"}
    assert differ("rk4", "euler") == differ("rk4_whole", "euler_whole") == {"scheme"}
    assert differ("rk4", "rk4_whole") == differ("euler", "euler_whole") == whole
    for name in ("rk4", "euler_whole"):
        assert differ(name, f"{name}_half_epsilon") == {"epsilon"}
        assert differ(name, f"{name}_weight_decay") == {"weight_decay"}
    assert {config.model.n_steps * 2 ** config.level(config.epochs - 1) for config in tied.ROWS.values()} == {4}


def test_seeds_that_did_not_train_are_counted_and_left_out():
    run = lambda seed, lost: {"row": "rk4", "seed": seed, "accuracy": 0.9 + seed / 100, "lost": lost}
    rows: dict[str, Any] = {"a": run(0, 0.5), "b": run(1, 2.0), "c": run(2, 1.0)}
    rows["d"] = {"row": "rk4", "seed": 3, "failed": "loss is not finite"}
    rows["e"] = {"row": "euler", "seed": 0, "failed": "loss is not finite"}
    found = tied.summary(rows)
    assert found == {
        "rk4": {"n_seeds": 3, "n_failed": 1, "accuracy": pytest.approx([91, 90, 92]), "lost": [1.0, 0.5, 2.0]},
        "euler": {"n_seeds": 0, "n_failed": 1},
    }
    assert [label.get_text() for label in tied.draw(rows).axes[0].get_yticklabels()] == ["rk4"]


def test_what_is_no_row_is_refused_by_name():
    with pytest.raises(ValueError, match=r"rows=.*'midpoint'.*expected some of rk4, euler"):
        tied.Options(rows=("midpoint",))


@pytest.mark.slow
def test_a_run_is_measured_under_all_solvers_and_not_repeated(tmp_path, monkeypatch, capsys):
    few = {"epochs": 2, "limit": 128, "decay_epochs": ()}
    model = dataclasses.replace(digits.MODEL, widths=(8,), n_basis=2, n_steps=2)
    monkeypatch.setitem(tied.ROWS, "rk4", dataclasses.replace(digits.CONFIG, **few, model=model, refine_epochs=(1,)))
    model = dataclasses.replace(digits_euler.MODEL, widths=(8,))
    euler = dataclasses.replace(digits_euler.CONFIG, **few, model=model, learning_rate=1e9)
    monkeypatch.setitem(tied.ROWS, "euler_whole", euler)
    command = ["tied", "--rows", "rk4", "euler_whole", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    tied.main()
    assert "euler_whole, seed 1: not trained" in capsys.readouterr().out
    before = (tmp_path / "tied.json").read_text()
    rows = json.loads(before)["rows"]
    found = rows["rk4, seed 1"]["grid"]
    own = next(row for row in found if (row["scheme"], row["n_steps"]) == ("rk4", 4))
    assert len(found) == 15
    assert found[0].keys() == {"scheme", "n_steps", "accuracy", "loss", "diverged"}
    assert own["accuracy"] == rows["rk4, seed 1"]["accuracy"]
    assert rows["rk4, seed 1"]["lost"] == 100 * (own["accuracy"] - min(row["accuracy"] for row in found))
    tied.main()
    assert (tmp_path / "tied.json").read_text() == before
    assert (tmp_path / "tied.png").exists()
