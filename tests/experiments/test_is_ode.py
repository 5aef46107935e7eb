"""Reports on runs: what is printed, drawn and written of any of them."""

import io
import json

import pytest
from rich.console import Console

from experiments import is_ode, train
from experiments.configs import digits, digits_euler
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings, Node18Settings
from settings import changed

SMALL = {"limit": 96, "batch_size": 8, "crop_pad": 1, "flip": False, "epochs": 1, "decay_epochs": ()}
EULER = ContinuousNetSettings(widths=(2,), scheme="euler", n_steps=2, n_basis=2, epsilon=2.0, skip_init=False)
RUNS = {
    "euler": Config(model=EULER, **SMALL),
    "node": Config(model=Node18Settings(widths=(2,), scheme="heun_euler", rtol=1e-2, gradient="aca"), **SMALL),
}


def made(verdict, rtol=None):
    """A report as plain data; `verdict` "not finite" leaves the measures out."""
    record = {
        "run": f"runs/{verdict}",
        "trained": {"scheme": "heun_euler", "n_steps": 4},
        "rtol": rtol,
        "verdict": verdict,
        "sentence": f"{verdict}, it seems",
        "rows": [],
        "exchange": None,
    }
    if verdict == "not finite":
        return record
    row = {"scheme": "rk4", "accuracy": 0.9, "relative_error": 0.0}
    rows = [row | {"n_steps": 4}, row | {"n_steps": 8}, row | {"scheme": "heun_euler", "n_steps": 5, "rtol": 0.1}]
    worst = {"scheme": "rk4", "n_steps": 8, "rtol": None}
    exchange = {"own": 0.95, "loss": 0.25, "worst": worst, "critical_step": float("nan")}
    exchange["entropy_ratio"] = 12.0
    crossings = [{"test": "jacobian", "count": 2, "examined": 8}]
    return record | {"rows": rows, "exchange": exchange, "crossings": crossings}


def test_a_line_a_network_and_its_sentence():
    console = Console(record=True, width=160, file=io.StringIO())
    is_ode.print_table([made("tied", 0.01), made("not finite")], console)
    text = console.export_text()
    for part in ("heun_euler 4 at 0.01", "95.0", "70.0", "rk4 8", "x 12", "2/8", "tied, it seems", "not finite"):
        assert part in text


def test_a_column_of_panels_a_network():
    figure = is_ode.draw([made("tied"), made("ode")])
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["tied: tied", "ode: ode"]
    assert len(figure.axes[0].get_lines()) == 3


@pytest.mark.parametrize("changes", [{"runs": ()}, {"images": 0}, {"samples": -1}])
def test_bad_settings_are_named(changes, tmp_path):
    with pytest.raises(ValueError, match=next(iter(changes))):
        is_ode.Options(**({"runs": (tmp_path,)} | changes))


@pytest.mark.slow
def test_runs_are_examined_by_what_they_do(tmp_path, monkeypatch):
    for name, config in RUNS.items():
        train.train(config, train.Options(quiet=True), tmp_path / name)
    out = tmp_path / "out"
    command = ["is_ode", *(str(tmp_path / name) for name in RUNS), "--images", "60", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--factors", "1", "2", "4"])
    is_ode.main()
    euler, node = json.loads((out / "is_ode.json").read_text())["reports"]
    assert euler["trained"] == {"scheme": "euler", "n_steps": 2}
    assert {(row["scheme"], row["n_steps"]) for row in euler["rows"]} == {
        (scheme, n) for scheme in ("euler", "midpoint", "rk4") for n in (2, 4, 8)
    }
    for report in (euler, node):
        assert (report["verdict"] == "undecided") or (report["verdict"] == "ode") == report["exchange"]["passed"]
        assert report["exchange"]["entropy_tolerance"] == 3
    assert [row["rtol"] for row in node["rows"] if "rtol" in row] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert [c["test"] for c in node["crossings"]] == ["jacobian"]
    assert (out / "is_ode.png").exists()
    monkeypatch.setattr("sys.argv", ["is_ode", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="there is no run"):
        is_ode.main()


@pytest.mark.slow
def test_a_network_trained_with_euler_is_tied_and_one_trained_with_rk4_is_an_ode(tmp_path):
    few, verdicts, ratios = {"widths": (8,), "epochs": 8, "decay_epochs": (6,)}, {}, {}
    euler = changed(digits_euler.CONFIG, **few)
    rk4 = changed(digits.CONFIG, **few, refine_epochs=(3, 5))
    for name, config in {"euler": euler, "rk4": rk4}.items():
        train.train(config, train.Options(quiet=True), tmp_path / name)
        record = is_ode.examine(is_ode.Options(runs=(tmp_path,), samples=0), tmp_path / name)
        assert record["trained"] == {"scheme": name, "n_steps": 4}
        assert record["exchange"]["own"] > 0.9
        verdicts[name], ratios[name] = record["verdict"], record["exchange"]["entropy_ratio"]
    assert verdicts == {"euler": "tied", "rk4": "ode"}
    assert ratios["euler"] > 3 > ratios["rk4"]
