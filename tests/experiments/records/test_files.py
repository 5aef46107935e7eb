"""Where results go, and that JSON is whole; those who write it load no checkpoints, curves or networks for it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.records.files import destination, write_json

ROOT = Path(__file__).parents[3]


def test_results_go_below_runs_unless_they_are_to_be_kept():
    assert destination("pendulum", None, record=False) == Path("runs/pendulum")
    assert destination("pendulum", Path("elsewhere"), record=False) == Path("elsewhere")
    assert destination("pendulum", None, record=True) == Path("results/pendulum")
    with pytest.raises(ValueError, match="beside --record"):
        destination("pendulum", Path("elsewhere"), record=True)


def test_every_script_writes_below_runs_where_it_is_told_nothing():
    """But trajectories that are data, which lie in `data`; `None` is for `destination`, or the folder of a run."""
    defaults = {
        f"{path.parent.name}/{path.stem}.{node.target.id}": ast.unparse(node.value)
        for path in (ROOT / "experiments").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
        if node.target.id in ("out", "run_dir", "folder") and "Path" in ast.unparse(node.annotation)
    }
    assert len(defaults) > 15
    places = {name: place for name, place in defaults.items() if place != "None" and not place.startswith("Path('runs")}
    assert places == {"aca/hopper.out": "DEFAULT"}


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_scripts_that_write_json_import_neither_checkpoints_nor_tensorboard():
    scripts = ("aca.gradient_error", "aca.round_trip", "anodev2.rda", "continuous_net.pendulum", "ott.critical_steps")
    imports = ", ".join(f"experiments.{name}" for name in scripts)
    code = f"import sys, {imports}; print([m for m in ('orbax', 'tensorboardX', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
