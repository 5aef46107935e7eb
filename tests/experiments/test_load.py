"""A run by itself: loaded, resumed and evaluated wherever it, its data and the caller lie."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments
from experiments import train as loop
from experiments.records.files import RunError, read_manifest, read_metrics
from experiments.train import Options, train
from experiments.training.config import Config
from experiments.training.fingerprint import data_of_run
from experiments.training.own import OwnSettings
from experiments.training.run import load_run

ROOT = Path(__file__).parents[2]
MODULE = "from small_nets import make as of_tests\n\n\ndef make(n_classes):\n    return of_tests(n_classes, width=3)\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run that was started there, its data and its network, named from there."""
    place, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8) for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(20) % 2 for split in ("train", "test")}
    np.savez(place / "images.npz", **arrays)
    (place / "net_of_mine.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.chdir(place)
        model = OwnSettings("net_of_mine:make")
        config = Config(dataset="images.npz", batch_size=9, crop_pad=0, flip=False, epochs=1, model=model)
        train(config, Options(quiet=True), place / "run")
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The same, seen from another folder, by a process that has not imported the network."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "net_of_mine", raising=False)
    monkeypatch.chdir(tmp_path)
    return trained


def test_a_run_is_loaded_from_anywhere_and_predicts_from_uint8_images(place):
    data = read_manifest(place / "run")["data"]
    assert (data["path"], data["image_shape"]) == (str(place / "images.npz"), [4, 4, 1])
    assert data["class_names"] is None
    trained = experiments.load(place / "run")
    assert (trained.image_shape, trained.n_classes, trained.class_names, trained.step) == ((4, 4, 1), 2, (), 2)
    with np.load(place / "images.npz") as file:
        images = file["x_test"]
    found = trained.predict(images)
    logits = trained.net.apply(trained.variables, (images / 255 - trained.mean) / trained.std)
    np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-6)
    assert (found.shape, found.dtype) == ((20, 2), np.float32)
    np.testing.assert_array_equal(experiments.load(str(place / "run"), "best").predict(images), found)
    for wrong, says in (
        (images / 255, "images are float64 of shape .*expected uint8 of 0..255, not normalized"),
        (images[0], r"of shape \(4, 4, 1\): expected .* \(n, 4, 4, 1\); of one image give image\[None\]"),
        (images[:, :3], r"of shape \(20, 3, 4, 1\): expected"),
    ):
        with pytest.raises(ValueError, match=says):
            trained.predict(wrong)


def test_the_three_lines_of_the_readme_run(place, tmp_path):
    found = re.findall(r"^```py\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (lines,) = (block for block in found if "experiments.load" in block)
    shutil.copytree(place / "run", tmp_path / "runs" / "digits")
    names = {"images": np.zeros((3, 4, 4, 1), np.uint8)}
    exec(lines, names)
    assert names["probabilities"].shape == (3, 2)
    assert len(lines.splitlines()) == 3


def test_what_is_no_run_or_damaged_is_named(place, tmp_path):
    with pytest.raises(RunError, match=r"no run in .*latest: .*give the run it lies in, experiments.load\('.*/run'\)"):
        experiments.load(place / "run" / "checkpoints" / "latest")
    again = shutil.copytree(place / "run", tmp_path / "again")
    largest = max(again.glob("checkpoints/latest/2/state/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    with pytest.raises(RunError, match="latest/2 is damaged"):
        experiments.load(again)


def test_a_network_that_is_gone_or_another_one_is_named(place, capfd):
    (place / "net_of_mine.py").write_text(MODULE + "# changed\n")
    experiments.load(place / "run")
    assert "net_of_mine.py in" in (said := capfd.readouterr().err)
    assert "is not what it was when the run was started" in said
    del sys.modules["net_of_mine"]
    (place / "net_of_mine.py").unlink()
    with pytest.raises(RunError, match="there is no module net_of_mine; go to the folder that holds it"):
        experiments.load(place / "run")
    (place / "net_of_mine.py").write_text(MODULE)


def test_a_run_is_resumed_by_its_folder_alone_and_its_data_may_have_moved(place, tmp_path, monkeypatch, capfd):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "moved").mkdir()
    (place / "images.npz").rename(tmp_path / "moved" / "images.npz")
    config, _, _, notes = load_run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"images\.npz"):
        data_of_run(config, notes["data"])
    np.testing.assert_array_equal(data_of_run(config, notes["data"], data_dir="moved").mean, notes["data"]["mean"])
    command = ["train", "--resume", "run", "--epochs", "2", "--quiet"]
    monkeypatch.setattr(sys, "argv", [*command, "--data-dir", "moved"])
    loop.main()
    manifest = read_manifest(tmp_path / "run")
    assert manifest["data"]["path"] == str(tmp_path / "moved" / "images.npz")
    assert "before" not in manifest["data"]
    assert manifest["source"]["folder"] == str(place)
    assert [record["epoch"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    # It is known where the data lies by now.
    assert len(data_of_run(Config.from_json(manifest["config"]), manifest["data"]).x_test) == 20
    (tmp_path / "moved" / "images.npz").rename(place / "images.npz")
    for arguments, says in (
        (["--resume", "nowhere"], "there is no run in nowhere"),
        (["--resume"], "expected the folder of a run after it"),
        (["--resume", "run", "--seed", "3"], "seed was 0, is 3. Give `--resume run` alone"),
    ):
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit):
            loop.main()
        assert says in capfd.readouterr().err


def test_importing_experiments_imports_nothing_heavy():
    code = "import experiments, sys, json; print(json.dumps(sorted(sys.modules)))"
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "flax", "orbax", "experiments.training"} & set(json.loads(done.stdout))
