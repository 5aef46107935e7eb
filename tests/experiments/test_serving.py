"""A compressed run served as the guide shows: by a process without the library, and by onnxruntime without jax."""

import io
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from benchmarks import serving
from experiments import compress
from experiments.records.files import read_manifest
from experiments.train import Options, train
from experiments.training.config import Config
from experiments.training.exported import EXPORTED, TENSORS
from experiments.training.models import ContinuousNetSettings
from experiments.training.run import load_run
from experiments.training.steps import dataset_of
from ode_nets import ContinuousNet, FixedStep, PiecewiseConstant, remanifest

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "serving.md").read_text()
SERVER, RUNTIME, TENSORS_BLOCK = re.findall(r"^```py\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
CONFIG = Config(
    dataset="digits", limit=256, batch_size=32, epochs=2, decay_epochs=(), refine_epochs=(), crop_pad=0, flip=False,
    learning_rate=0.05, model=ContinuousNetSettings(widths=(4, 8), n_basis=2, n_steps=2, gradient="direct"),
)  # fmt: skip
ONE = {"basis": ("piecewise_constant",), "n_basis": (1,), "scheme": ("midpoint",), "n_steps": (2,)}


def process(folder, code, without):
    """Run code in a folder, in a process in which some packages cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
    subprocess.run([sys.executable, "-c", blocked + code], cwd=folder, check=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A trained run, and the folder that its compressed network is served from."""
    pytest.importorskip("jax2onnx", reason="ONNX is written with the extra onnx")
    run = tmp_path_factory.mktemp("served") / "run"
    train(CONFIG, Options(quiet=True), run)
    console = Console(file=io.StringIO(), width=200)
    folder = compress.compress(compress.Options(run, **ONE, int8=True, onnx=True), console)
    np.save(folder / "images.npy", dataset_of(CONFIG).x_test[:11])
    return folder


@pytest.mark.slow
def test_a_process_without_the_library_serves_the_run(served):
    process(served, SERVER + "np.save('logits', predict(np.load('images.npy')))", ("ode_nets", "flax", "experiments"))
    _, net, variables, _ = load_run(served)
    dataset = dataset_of(CONFIG)
    images = (np.load(served / "images.npy") / np.float32(255) - dataset.mean) / dataset.std
    expected = np.asarray(jax.jit(net.apply)(variables, images))
    np.testing.assert_allclose(np.load(served / "logits.npy"), expected, rtol=1e-4, atol=1e-4)
    assert any((served / "cache").iterdir())  # where the next process finds its programs

    process(
        served, RUNTIME + "np.save('onnx', session.run(None, {'images': np.load('images.npy')})[0])", ("jax", "flax")
    )
    np.testing.assert_allclose(np.load(served / "onnx.npy"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_a_compressed_run_says_of_its_files_is_so(served):
    results = read_manifest(served)["results"]
    assert results["export_difference"] < 1e-4
    assert results["onnx_difference"] < 1e-4
    assert results["bytes"] == {name: (served / name).stat().st_size for name in (EXPORTED, TENSORS, "model.onnx")}
    _, _, variables, _ = load_run(served)
    tensors = load_file(served / TENSORS)
    for path, leaf in jax.tree.leaves_with_path(variables):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = tensors[name] if name in tensors else tensors[f"{name}/values"] * tensors[f"{name}/scale"]
        np.testing.assert_array_equal(found, leaf)
    process(served, TENSORS_BLOCK + "assert len(variables) > 10", ("jax", "flax", "ode_nets"))


@pytest.mark.slow
def test_the_table_of_serving_has_every_variant_through_one_call(served):
    run = served.parents[1]
    measured = serving.measure(serving.Options(run, batch_sizes=(1, 4), repeats=1))
    found = measured["variants"]
    assert list(found) == ["as trained", "N_t = 1", "M = 1", "int8", "ONNX"]
    for name in ("as trained", "ONNX"):
        assert found[name]["accuracy"] == pytest.approx(read_manifest(run)["results"]["test_accuracy"], abs=1e-9)
    assert found["M = 1"]["bytes"] < found["as trained"]["bytes"]
    assert all(set(row["latency"]) == {"1", "4"} for row in found.values())
    assert all(row["first_call_seconds"]["new"].keys() == {"1", "4"} for name, row in found.items() if name != "ONNX")


@pytest.mark.slow
def test_onnxruntime_computes_the_network_of_cifar_at_any_batch_size():
    pytest.importorskip("jax2onnx", reason="ONNX is written with the extra onnx")
    import onnxruntime

    net = ContinuousNet(widths=(16, 32, 64), basis=PiecewiseConstant(2), solver=FixedStep("rk4", 2))
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # Residual units start at zero, and would be left out of the comparison.
    variables = jax.tree.map(lambda leaf: leaf + 0.3 if leaf.ndim < 3 else 1.1 * leaf, variables)
    preprocess = lambda images: images.astype("float32") / 255
    data = remanifest.export_onnx(net, variables, (32, 32, 3), preprocess=preprocess, dtype="uint8")
    assert len(data) < 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(variables))  # each theta once
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        images = np.random.default_rng(n).integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8)
        (logits,) = session.run(None, {"images": images})
        expected = jax.jit(net.apply)(variables, images / np.float32(255))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
