"""A trained network as files that other programs read: jax.export, ONNX and safetensors, each with its digest."""

from __future__ import annotations

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from safetensors.numpy import save

from experiments.images.data import Dataset, normalize
from experiments.records.digests import write_digest
from experiments.records.files import RunError
from ode_nets import remanifest

PyTree = Any
EXPORTED = "model.jaxexport"
ONNX = "model.onnx"
TENSORS = "model.safetensors"
N_CHECKED = 32
"""Images whose logits are compared."""
CHECK = """
import hashlib, sys
sys.modules["ode_nets"] = sys.modules["flax"] = None  # whatever imports them now fails
import numpy as np
from jax import export
with open(sys.argv[1], "rb") as file, open(sys.argv[1] + ".sha256") as digest:
    content = file.read()
    if hashlib.sha256(content).hexdigest() != digest.read().split()[0]:
        sys.exit("it differs from its SHA-256 digest")
function = export.deserialize(bytearray(content))
with np.load(sys.argv[2]) as file:
    print(np.abs(np.asarray(function.call(file["images"])) - file["logits"]).max())
"""


def write_function(out: Path, net: nn.Module, variables: PyTree, dataset: Dataset) -> float:
    """Write model.jaxexport, from uint8 images to logits, and run it in a process that can import no `ode_nets`.

    Args:
      out: the folder.
      net, variables: the network; its variables may be quantized.
      dataset: whose scaling is put before the network, and whose test images are tried.

    Returns:
      The largest difference of its logits from those of the network here.

    Raises:
      RunError: if it does not run there or differs.
    """
    exported = remanifest.export_inference(net, variables, dtype="uint8", **_inputs(dataset))
    path = _write(out / EXPORTED, exported)
    images, logits = _logits(net, variables, dataset)
    sample = out / "sample.npz"
    np.savez(sample, images=images, logits=logits)
    command = [sys.executable, "-c", CHECK, str(path.absolute()), str(sample.absolute())]
    try:
        process = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
    finally:
        sample.unlink()
    if process.returncode != 0:
        raise RunError(f"{path} does not run without ode_nets:\n{process.stderr.strip()}")
    return _checked(path, float(process.stdout), logits)


def write_onnx(out: Path, net: nn.Module, variables: PyTree, dataset: Dataset) -> float:
    """Write model.onnx, from uint8 images to logits, and run it by onnxruntime; arguments and results as above.

    Raises:
      RunError: without the packages of extra `onnx`, for a network that cannot be written, and if it differs.
    """
    require_onnx()
    import onnxruntime

    try:
        written = remanifest.export_onnx(net, variables, dtype="uint8", **_inputs(dataset))
    except ValueError as error:
        raise RunError(f"the network cannot be written as ONNX: {error}") from error
    path = _write(out / ONNX, written)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images, logits = _logits(net, variables, dataset)
    (found,) = session.run(None, {"images": images})
    return _checked(path, float(np.abs(found - logits).max()), logits)


def require_onnx() -> None:
    """See whether ONNX can be written and run here.

    Raises:
      RunError: if not.
    """
    # It warns of every plug-in for other libraries that it cannot load.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise RunError(f"{error}: ONNX needs the extra of that name, python -m pip install -e '.[onnx]'") from error


def write_tensors(out: Path, variables: PyTree) -> Path:
    """Write model.safetensors: the variables by name, such as `params/block1/coefficients/conv1/kernel`.

    What is quantized is two tensors, `.../kernel/values` and `.../kernel/scale`, whose product it is.
    """
    leaves = jax.tree.leaves_with_path(jax.device_get(variables))
    tensors = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    return _write(out / TENSORS, save(tensors))


def _inputs(dataset: Dataset) -> dict[str, Any]:
    preprocess = partial(normalize, mean=dataset.mean, std=dataset.std)
    return {"image_shape": dataset.x_test.shape[1:], "preprocess": preprocess}


def _logits(net: nn.Module, variables: PyTree, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Some test images, and what the network makes of them here."""
    images = dataset.x_test[:N_CHECKED]
    scaled = normalize(images, dataset.mean, dataset.std)
    return images, np.asarray(jax.jit(net.apply)(remanifest.dequantize(variables), scaled))


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    write_digest(path)
    return path


def _checked(path: Path, difference: float, logits: np.ndarray) -> float:
    if not difference <= 1e-3 * np.abs(logits).max():
        raise RunError(f"{path} gives logits that differ by {difference}")
    return difference
