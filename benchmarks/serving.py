"""A trained run as a server calls it: size, accuracy and latency as trained, made cheaper, in int8 and in onnxruntime.

    python -m benchmarks.serving runs/digits
    python -m benchmarks.serving runs/digits --batch-sizes 1 8 --repeats 2 --no-onnx --out /tmp/serving.json

Every variant takes a NumPy array of uint8 images and gives a NumPy array of logits: as trained, with fewer steps, with
fewer coefficients, and with kernels in eight bits by a deserialized jax.export function under jax.jit; as trained by
onnxruntime, which needs the extra `onnx`. Accuracies are of all test images of the run; latencies are warm, of all
variants in turn. The first call of a batch size, which compiles, is timed in a process of its own, and once more in
another that finds the programs in jax's persistent cache; onnxruntime makes one session for every size.
A few minutes for runs/digits. Writes benchmarks/results/serving_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from experiments.images.data import normalize
from experiments.records.command import command_line
from experiments.records.files import RunError, expand
from experiments.records.tables import show
from experiments.training import exported
from experiments.training.fingerprint import data_of_run
from experiments.training.manifestations import Restat, loaded, restat_of
from ode_nets import remanifest
from ode_nets.integrate import FixedStep

PyTree = Any
FIRST_CALLS = """
import json, sys, time
import jax, numpy as np
sizes, shape = map(json.loads, sys.argv[1:])
with open("model", "rb") as file:
    serve = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
seconds = {}
for size in sizes:
    images = np.zeros((size, *shape), np.uint8)
    start = time.perf_counter()
    np.asarray(serve(images))
    seconds[size] = time.perf_counter() - start
print(json.dumps(seconds))
"""
Call = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which of its checkpoints."""
    data_dir: Path | None = None
    """Folder that the data lies in now; default where the run found it."""
    n_steps: int | None = None
    """Steps of the variant with fewer; default half of them."""
    n_basis: int | None = None
    """Coefficients of the variant with fewer; default half of them."""
    batch_sizes: tuple[int, ...] = (1, 64, 256)
    """Images a call."""
    onnx: bool = True
    """Measure onnxruntime as well."""
    repeats: int = 20
    """Samples of each latency."""
    out: Path | None = None
    """Where the JSON goes."""

    def __post_init__(self) -> None:
        expand(self, "run_dir", "data_dir", "out")


def variants(
    net: nn.Module, variables: PyTree, options: Options, restat: Restat | None
) -> dict[str, tuple[nn.Module, PyTree]]:
    """Networks by what was done to them."""
    n_steps = options.n_steps or max(1, net.solver.n_steps // 2)
    n_basis = options.n_basis or max(1, net.basis.n_basis // 2)
    fewer_steps = net.clone(solver=FixedStep(net.solver.scheme, n_steps))
    changed = {
        "as trained": (net, variables),
        f"N_t = {n_steps}": (fewer_steps, variables),
        f"M = {n_basis}": remanifest.project(net, variables, type(net.basis)(n_basis)),
    }
    if restat is not None:
        changed = {name: (other, restat(other, w)) for name, (other, w) in changed.items()}
    return changed | {"int8": (net, remanifest.quantize(variables))}


def first_calls(data: bytes, sizes: tuple[int, ...], image_shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Seconds of the first call at each size, in a process that finds no program in the cache, and in one that does."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").write_bytes(data)
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-c", FIRST_CALLS, json.dumps([*sizes]), json.dumps([*image_shape])]
        for when in ("new", "cached"):
            environment = os.environ | cache
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            found[when] = json.loads(done.stdout)
    return found


def jitted(data: bytes) -> Call:
    """A function of `export_inference`, as a process without the library calls it."""
    serve = jax.jit(jax.export.deserialize(bytearray(data)).call)
    return lambda images: np.asarray(serve(images))


def session(data: bytes) -> Call:
    """A file of `export_onnx`, as a process without jax calls it."""
    import onnxruntime

    run = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run
    return lambda images: np.asarray(run(None, {"images": images})[0])


def measure(options: Options) -> dict[str, Any]:
    """Bytes, accuracy, seconds of compilation and latencies of every variant.

    Raises:
      RunError: for a run whose network has no steps or coefficients to change, or without `onnxruntime`.
    """
    if options.onnx:
        exported.require_onnx()
    config, net, variables, notes = loaded(options.run_dir, options.checkpoint, "basis")
    dataset = data_of_run(config, notes["data"], data_dir=options.data_dir)
    restat = restat_of(net, variables, dataset)
    preprocess = partial(normalize, mean=dataset.mean, std=dataset.std)
    inputs: dict[str, Any] = {
        "image_shape": dataset.x_test.shape[1:], "preprocess": preprocess, "dtype": "uint8"
    }  # fmt: skip
    # A test set smaller than a batch is served again and again.
    batches = {n: np.resize(dataset.x_test, (n, *dataset.x_test.shape[1:])) for n in options.batch_sizes}
    found, calls = {}, {}
    for name, (changed, weights) in variants(net, variables, options, restat).items():
        data = remanifest.export_inference(changed, weights, platforms=(jax.default_backend(),), **inputs)
        seconds = first_calls(data, options.batch_sizes, dataset.x_test.shape[1:])
        found[name], calls[name] = {"bytes": len(data), "first_call_seconds": seconds}, jitted(data)
    if options.onnx:
        data = remanifest.export_onnx(net, variables, **inputs)
        start = time.perf_counter()
        calls["ONNX"] = session(data)
        found["ONNX"] = {"bytes": len(data), "session_seconds": time.perf_counter() - start}
    for name, call in calls.items():
        logits = remanifest.padded(call, (max(options.batch_sizes),))(dataset.x_test)
        found[name]["accuracy"] = float((logits.argmax(-1) == dataset.y_test).mean())
        found[name]["latency"] = {}
    for n, images in batches.items():
        for name, timed in harness.compare(calls, images, repeats=options.repeats, compiled=False).items():
            record = timed.record()
            found[name]["latency"][str(n)] = {key: value for key, value in record.items() if value is not None}
    trained = {"scheme": net.solver.scheme.name, "n_steps": net.solver.n_steps, "n_basis": net.basis.n_basis}
    return {"run": options.run_dir.name, "trained": trained, "n_test": len(dataset.x_test), "variants": found}


def main() -> None:
    """The command line."""
    options = command_line(Options, "python -m benchmarks.serving", __doc__)
    try:
        results = measure(options)
    except RunError as error:
        sys.exit(f"error: {error}")
    places = ("run_dir", "data_dir", "out")
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key not in places}
    path = harness.write(options.out or harness.default_path("serving"), "serving", {"settings": settings} | results)
    size, trained = str(max(options.batch_sizes)), results["trained"]
    table = Table(title="Latency in ms by batch size, seconds of the first call", title_justify="left")
    for column in ("", "KiB", "test %", *map(str, options.batch_sizes), "first call", "cached"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results["variants"].items():
        first = row.get("first_call_seconds")
        seconds = [f"{row['session_seconds']:.2f}", ""] if first is None else [f"{s[size]:.2f}" for s in first.values()]
        latencies = [f"{1e3 * row['latency'][str(n)]['median']:.3g}" for n in options.batch_sizes]
        table.add_row(name, f"{row['bytes'] / 1024:.0f}", f"{100 * row['accuracy']:.2f}", *latencies, *seconds)
    console = Console(highlight=False)
    show(table, console)
    console.print(
        f"as trained: {trained['scheme']}, {trained['n_steps']} steps a block, M = {trained['n_basis']}; first calls "
        f"are of a batch of {size}, of ONNX the session\nwritten to {path}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
