"""The scripts on gradients and on round trips, at tiny sizes: they run, and what they report is so."""

from __future__ import annotations

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.aca import gradient_error, gradient_report, round_trip
from experiments.aca.gradient_costs import METHODS, distance, report
from ode_nets import ACA, Adaptive, Direct


def run(script, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    script.main()


@pytest.mark.slow
def test_gradient_error_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    arguments = ["--k", "-1", "--times", "0.5", "1", "--tolerance", "1e-4", "--max-steps", "32", "--out", str(tmp_path)]
    run(gradient_error, [*arguments, "--cases", "loose", "--starts", "3"], monkeypatch)
    record = json.loads((tmp_path / "gradient_error.json").read_text())
    rows = record["rows"]
    assert len(rows) == 2 * 2 * 5
    assert {row["method"] for row in rows} == {*gradient_error.METHODS}
    assert all(row["relative_error"] < 1e-2 for row in rows)
    # On the same accepted steps these are one number but for rounding.
    doubles = [row for row in rows if row["dtype"] == "float64"]
    for t1 in (0.5, 1.0):
        errors = {row["method"]: row["absolute_error"] for row in doubles if row["T"] == t1}
        assert errors["ACA"] == pytest.approx(errors["Direct"], abs=1e-12)
        assert errors["Checkpointed"] == pytest.approx(errors["Direct"], abs=1e-12)
    assert {row["n_rejected"] for row in rows} == {0}
    assert min(row["n_rejected"] for row in record["cases"]) > 0
    assert max(row["truth_error"] for row in record["cases"]) < 1e-8
    by_method = {row["method"]: row for row in record["costs"]}
    steps, rejected = (by_method["ACA"][key] for key in ("n_accepted", "n_rejected"))
    # HeunEuler has two stages; the naive method's graph holds the rejected trials too.
    assert by_method["ACA"]["backward_vjps"] == by_method["Direct"]["backward_vjps"] == 2 * steps
    assert by_method["Naive"]["backward_vjps"] >= 2 * (steps + rejected)
    assert by_method["Naive"]["temporary_bytes"] > by_method["ACA"]["temporary_bytes"]
    for name in ("gradient_error.png", "rejecting.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "k = -1, float64" in text
    assert "loose tolerance" in text


def field(t, x, theta):
    return -theta["rate"] * x


PROBLEM = (field, jnp.ones((3, 2)), {"rate": jnp.float32(1.3)}, lambda x: jnp.sum(x**2))


def test_counts_are_those_of_aca_table_1():
    solver = Adaptive("dopri5", 1e-3, 1e-3, first_step=1.0)
    methods = {"Direct": Direct(), "ACA": ACA(None)}
    costs = report(*PROBLEM, solver, methods, t1=4.0, repeats=1, truth_tolerance=1e-6)
    sizes, rows = costs["sizes"], {row["method"]: row for row in costs["rows"]}
    steps, tries = sizes["n_accepted"], sizes["n_accepted"] + sizes["n_rejected"]
    assert sizes["n_rejected"] > 0, "without a search the methods would cost the same"
    assert sizes["state_bytes"] == 3 * 2 * 4
    # ACA takes the accepted steps once more on the way back, Direct before it.
    for name, again in (("ACA", (0, 6 * steps)), ("Direct", (6 * steps, 0))):
        row = rows[name]
        assert row["result"] == "SUCCESS"
        assert row["error"] < 1e-2
        # The last stage of an accepted step of dopri5 is the first of the next, which a formula of stages leaves out.
        assert row["formula_forward"] + 1 == 6 * tries + 1 == row["forward_evaluations"] - again[0]
        assert (row["backward_evaluations"], row["backward_vjps"]) == (again[1], 6 * steps)
    assert rows["ACA"]["formula_vjps"] == 6 * steps
    assert rows["Direct"]["formula_vjps"] == 6 * tries
    assert rows["ACA"]["difference_from_direct"] < 1e-5


def test_distance_is_relative_to_the_truth():
    assert distance(np.array([3.0, 4.0]), np.array([0.0, 4.0])) == 0.75


@pytest.mark.slow
def test_gradient_report_reads_a_module_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    (tmp_path / "of_mine.py").write_text(
        "import jax.numpy as jnp\n"
        "def make():\n"
        "    return (lambda t, x, k: -k * x), jnp.ones(2), jnp.float32(1.0), (lambda x: jnp.sum(x**2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--module", "of_mine:make", "--scheme", "euler", "--n-steps", "2", "--repeats", "1"]
    arguments += ["--truth-tolerance", "None", "--lecture-steps", "--out", str(tmp_path)]
    run(gradient_report, arguments, monkeypatch)
    record = json.loads((tmp_path / "gradient_report.json").read_text())
    assert [row["method"] for row in record["rows"]] == list(METHODS)
    assert all(row["forward_evaluations"] == 2 for row in record["rows"])
    assert record["sizes"]["n_accepted"] == 2
    assert record["lecture"] == []
    assert (tmp_path / "gradient_report.png").read_bytes().startswith(b"\x89PNG")
    assert "of_mine:make, euler, 2 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_lectures_example_grows_with_its_steps_only_where_it_must(tmp_path):
    rows = {(row["method"], row["n_steps"]): row["temporary_bytes"] for row in gradient_report.lecture((4, 32))}
    grown = {method: rows[method, 32] / rows[method, 4] for method in METHODS}
    # A start of two steps, and then one a step.
    assert grown["Direct"] > 5
    assert max(grown["Backsolve"], grown["ACA, 4 states"]) < 1.5
    figure = gradient_report.draw_memory(gradient_report.lecture((4,)))
    figure.savefig(tmp_path / "memory.png")


@pytest.mark.slow
def test_round_trip_returns_less_far_from_the_start_at_a_tighter_tolerance(tmp_path, monkeypatch, capsys):
    arguments = ["--times", "2", "--tighter", "1", "1e-3", "--shrink", "64", "--image-times", "0.5"]
    run(round_trip, [*arguments, "--out", str(tmp_path)], monkeypatch)
    record = json.loads((tmp_path / "round_trip.json").read_text())
    loose, tight = record["van_der_pol"]
    assert loose["result_there"] == tight["result_back"] == "SUCCESS"
    assert tight["euclidean"] < loose["euclidean"] / 20
    assert tight["n_accepted_there"] > loose["n_accepted_there"]
    assert [row["dtype"] for row in record["photograph"]] == ["float64", "float32"]
    for row in record["photograph"]:
        assert row["size"] == [1, 6, 10, 3]
        # The exact flow comes back, so that what does not is the solver's.
        assert row["root_mean_square_exact_flow"] < 1e-10
        assert row["relative_error_there"] < 1e-2
    for name in ("van_der_pol.png", "photograph.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "photograph under a random convolution" in capsys.readouterr().out
