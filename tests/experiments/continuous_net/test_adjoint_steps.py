"""Steps that the continuous adjoint needs where weights jump: what is counted, and the orders that it rests on."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest

from experiments.continuous_net import adjoint_steps
from experiments.continuous_net.adjoint_steps import Options, coefficients, fewest


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_basis": ()}, "--n-basis"),
        ({"per_interval": (2, 1)}, "rising, from 1 on"),
        ({"strengths": (0.0,)}, "numbers above 0"),
        ({"gain": -1.0}, "a number above 0"),
        ({"n_basis": (64,)}, "2048 steps, at most 1024"),
    ],
)
def test_bad_settings_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        Options(**changes)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [((0.5, 0.05, 0.01), 2), ((0.05, 0.5, 0.01), 3), ((0.05, 0.02, 0.01), 1), ((0.5, 0.4, 0.3), None)],
)
def test_the_fewest_steps_are_those_from_which_on_the_error_stays_small(errors, expected):
    rows = [{"per_interval": n, "error": error} for n, error in enumerate(errors, 1)]
    assert fewest(rows, 0.1) == expected
    assert fewest([{"per_interval": 1, "error": float("nan")}], 0.1) is None


def test_smooth_coefficients_change_little_from_interval_to_interval_and_are_as_large():
    with jax.enable_x64(True):
        draw = lambda kind: np.asarray(coefficients(jax.random.key(0), kind, 16, 1.0)[0]["kernel"])
        kinds = {kind: draw(kind) for kind in adjoint_steps.KINDS}
    sizes = {kind: np.std(kernel) for kind, kernel in kinds.items()}
    changes = {kind: np.std(np.diff(kernel, axis=0)) for kind, kernel in kinds.items()}
    assert sizes["smooth"] == pytest.approx(sizes["rough"], rel=0.2)
    assert changes["smooth"] < 0.2 * changes["rough"]


@pytest.mark.slow
def test_the_adjoint_approaches_the_steps_by_their_order_where_a_step_reads_its_own_interval(
    tmp_path, monkeypatch, capsys
):
    steps = ["--n-basis", "2", "--per-interval", "8", "16", "--strengths", "0.5", "--seeds", "3", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["adjoint_steps", *steps, "--out", str(tmp_path)])
    adjoint_steps.main()
    record = json.loads((tmp_path / "adjoint_steps.json").read_text())
    for (scheme, reading), order in zip(adjoint_steps.READINGS, (4, 2, 1), strict=True):
        of = [
            row for row in record["rows"] if (row["scheme"], row["reading"], row["kind"]) == (scheme, reading, "rough")
        ]
        coarse, fine = (row["error"] for row in sorted(of, key=lambda row: row["per_interval"]))
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35), (scheme, reading)
    assert (tmp_path / "adjoint_steps.png").read_bytes().startswith(b"\x89PNG")
    assert "N_t / M that Backsolve needs" in capsys.readouterr().out
