"""What the quickstart is there to show, at full size."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments import quickstart
from experiments.configs import CONFIGS


@pytest.mark.slow
def test_rk4_trained_weights_keep_their_accuracy_under_other_solvers_and_those_of_the_twin_do_not(tmp_path):
    chosen = {name: CONFIGS[name] for name in quickstart.NAMES}
    console = Console(file=io.StringIO(), width=200)
    refined, twin = quickstart.quickstart(chosen, tmp_path, False, console)
    assert (refined.trained.scheme, twin.trained.scheme) == ("rk4", "euler")
    assert refined.own["accuracy"] >= 0.97
    lost, where = quickstart.largest_loss(refined, least_steps=4)
    assert lost < 1, where
    assert {row["n_steps"] for row in refined.rows if row["n_steps"] >= 4} == {4, 5, 6, 8, 11}
    assert quickstart.largest_loss(twin, least_steps=4)[0] > lost + 2
    for name in ("swap.png", "weights.png", "training.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
