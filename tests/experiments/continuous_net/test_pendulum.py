"""The pendulum's one-step models: what is measured and at which steps, and what the full experiment claims."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.continuous_net import pendulum
from experiments.continuous_net.pendulum import Options
from experiments.continuous_net.pendulum_figures import draw_convergence


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dt": 0.03}, "dt=0.03 with t1=1.0: expected a whole number of steps, a multiple of 5"),
        ({"dt": 0.25}, "a multiple of 5"),
        ({"shown": 0.005}, "dt=0.01 with shown=0.005"),
        ({"seeds": 0}, "seeds=0"),
        ({"t1": 0.0}, "t1="),
    ],
)
def test_bad_settings_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        Options(**changes)


@pytest.mark.parametrize("dt", [0.01, 0.02, 0.1, 0.2])
def test_every_step_that_is_drawn_is_the_one_that_was_taken(dt):
    options = Options(dt=dt)
    counts = options.counts()
    assert counts == sorted(set(counts))
    assert {options.trained, 2 * options.trained, options.trained // 5} <= set(counts)
    ratios = [options.trained / n for n in counts]
    values = np.ones((2, len(counts)))
    errors = {f"{a}>{b}": values for a in pendulum.SCHEMES for b in pendulum.SCHEMES}
    figure = draw_convergence(ratios, errors, dict.fromkeys(pendulum.SCHEMES, values[0]))
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_xdata(), ratios)
    # At n steps in five training steps' place the errors of the table are those of n steps.
    rising = {key: np.tile(np.array(counts, float), (2, 1)) for key in errors}
    row = pendulum.summary(rising, counts, options.trained)[0]
    assert row["at_half"] == [2.0, 2.0]
    assert row["error"] == [options.trained] * 2


@pytest.mark.slow
def test_euler_networks_are_tied_and_the_others_odes(tmp_path, monkeypatch):
    out = tmp_path / "pendulum"
    command = ["pendulum", "--seeds", "2", "--iterations", "4000", "--shown", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    pendulum.main()
    assert jax.config.jax_enable_x64 is False
    record = json.loads((out / "pendulum.json").read_text())
    orders = [record["slopes"][scheme]["order"] for scheme in pendulum.SCHEMES]
    np.testing.assert_allclose(orders, [1, 2, 4], atol=0.1)
    by_scheme = {row["trained"]: row for row in record["summary"]}
    assert np.median(by_scheme["euler"]["at_half"]) >= 30
    for scheme in ("midpoint", "rk4"):
        assert np.median(by_scheme[scheme]["at_half"]) <= 2
    assert np.median(by_scheme["euler"]["swapped_at_own_step"]["rk4"]) >= 30
    assert np.median(by_scheme["midpoint"]["swapped_at_own_step"]["rk4"]) <= 2
    assert np.median(by_scheme["rk4"]["swapped_at_own_step"]["midpoint"]) <= 3
    for row in record["verdicts"]:
        assert row["verdict"] == ("tied" if row["trained"] == "euler" else "ode"), row["sentence"]
        assert row["crossings"] == 0
    assert {path.name for path in out.iterdir()} == {"pendulum.json", "trajectories.png", "convergence.png"}
    assert record["settings"] == dataclasses.asdict(Options(seeds=2, iterations=4000, shown=1.0)) | {"out": str(out)}


@pytest.mark.slow
def test_the_way_from_the_readme_to_a_picture(tmp_path):
    """The README's link, the page's command, from an empty folder; the picture lies where the page says."""
    root = Path(__file__).parents[3]
    link = re.search(r"repeat a figure on a laptop \| \[[^]]*\]\(([^)]*)\)", (root / "README.md").read_text())
    page = (root / link[1]).read_text()
    module, *arguments = shlex.split(re.search(r"^python -m (experiments\..*)$", page, re.MULTILINE)[1])
    # As on the page, but for one network a scheme, not trained to its end.
    command = [sys.executable, "-m", module, *arguments, "--seeds", "1", "--iterations", "500"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert "writes `convergence.png` below `runs/`" in page
    with Image.open(tmp_path / "runs" / "pendulum" / "convergence.png") as picture:
        assert min(picture.size) > 300
