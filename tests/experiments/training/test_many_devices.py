"""Many devices and many processes compute what one does: simulated devices, and processes over loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.records.files import RunError, read_manifest, read_metrics
from experiments.train import Options, train
from experiments.training.config import Config
from experiments.training.devices import Agreement, Devices
from experiments.training.models import Node18Settings
from experiments.training.run import load_run
from experiments.training.task import Task
from settings import arguments

ROOT = Path(__file__).parents[3]
# Steps are few: where processes share cores, they wait for each other a second a step.
CONFIG = Config(
    model=Node18Settings(widths=(2,), scheme="heun_euler", rtol=1e-2, gradient="aca"),
    limit=16, batch_size=8, crop_pad=1, flip=False, epochs=2, decay_epochs=(1,), learning_rate=0.05,
    validation_fraction=0.02,
)  # fmt: skip
LONG = dataclasses.replace(CONFIG, limit=128, epochs=3)
STEPS = """
import json, sys
from pathlib import Path
import jax, numpy as np
from benchmarks.collectives import find_collectives
from experiments.training.config import Config
from experiments.training.run import Run
from experiments.training.steps import train_step
from experiments.train import Options, train
from experiments.training.task import Task

config, folder = Config.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
train(config, Options(quiet=True, n_devices=1), folder / "one")
run, compiled, losses = Run(folder / "one"), train_step._cache_size(), []
for n in (1, 2, 8):
    task = Task(config, n)
    (step, _, state), order, kept = task.start(run), task.order(0), {}
    assert step == 4
    assert all(len(leaf.sharding.device_set) == n for leaf in jax.tree.leaves((state, order)))
    if n != 2:
        losses.append(task.evaluate(0, state, "test"))
    rest = task.images, task.labels, order, task.scaling, np.int32(0)
    how = {"mesh": task.devices.mesh, "feed": task.feed}
    if n == 8:
        # Of the batch of 8 a device computes its one image.
        program = train_step.lower(config, task.nets[0], task.optimizer, state, *rest, **how).compile().as_text()
        assert "f32[1,8,8,2]" in program and "f32[8,8,8,2]" not in program
        # In a trial one error, and two channels' mean and square of two norms in each of two stages; no gradient.
        found = find_collectives(program)
        assert found["ode1_1 forward"] == {"collectives": 5, "bytes": 4 + 4 * 16}, found
        back = found["ode1_1 backward"]
        assert back["collectives"] <= 3 * 4 and back["bytes"] <= 16 * back["collectives"], found
    for step in range(2):
        state, metrics = train_step(config, task.nets[0], task.optimizer, state, *rest, **how)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
            kept[f"{step}{jax.tree_util.keystr(path)}"] = leaf
    np.savez(folder / f"{n}.npz", **kept)
assert train_step._cache_size() == compiled + 2, "a step compiles once for a number of devices"
np.testing.assert_allclose(*losses, rtol=1e-5)
"""


def environment(n_devices):
    # Compiling takes most of the time here; what is compared is compiled in the same way.
    flags = f"--xla_force_host_platform_device_count={n_devices} --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the run of one process on one device, and two steps on 1, 2 and 8 devices."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-c", STEPS, json.dumps(CONFIG.to_json()), str(folder)]
    done = subprocess.run(command, env=environment(8), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_one_two_and_eight_devices_take_the_same_steps_and_go_on_from_one_checkpoint(runs):
    one, two, eight = (dict(np.load(runs / f"{n}.npz")) for n in (1, 2, 8))
    # Loss, parameters, statistics, momentum (the gradient, after the first step), counts and result codes.
    assert {"1['metrics']['epoch']['loss']", "0['params']['head']['bias']"} <= set(one)
    counts = [name for name in one if "counts" in name]
    assert len(counts) == 2 * 3
    for name, expected in one.items():
        for other in (two[name], eight[name]):
            if np.issubdtype(expected.dtype, np.integer):
                np.testing.assert_array_equal(other, expected, err_msg=name)
            else:
                np.testing.assert_allclose(other, expected, rtol=2e-4, atol=2e-6, err_msg=name)


def start(config, folder, n_processes=2, n_devices=2, *flags):
    """Processes of one run over loopback, each with its own simulated devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = [sys.executable, "-m", "experiments.train", "digits", *arguments(config), "--run-dir", str(folder)]
    args += ["--quiet", *flags]
    many = [] if n_processes == 1 else [
        "--distributed", "--coordinator", f"127.0.0.1:{port}", "--n-processes", str(n_processes), "--lost-after", "10",
    ]  # fmt: skip
    return [
        subprocess.Popen(
            args + ([*many, "--process-id", str(i)] if many else []),
            env=environment(n_devices), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(n_processes)
    ]  # fmt: skip


def finish(processes, within=180):
    """What they printed; fails if one of them hangs."""
    try:
        return [process.communicate(timeout=within)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def latest_step(folder):
    """Step of the newest whole checkpoint, 0 without one."""
    names = [path.name for path in (folder / "checkpoints" / "latest").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_step(folder, step, processes):
    """Return when a checkpoint of `step` or later is there."""
    for _ in range(2400):
        if latest_step(folder) >= step:
            return
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step}: {finish(processes, 1)}")


def assert_same_run(folder, reference):
    """Two finished runs agree to float32 rounding, and in every count exactly."""
    lines, expected = read_metrics(folder), read_metrics(reference)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, want in zip(lines, expected, strict=True):
        assert line.keys() == want.keys()
        for key in want:
            if key not in ("seconds", "images_per_second"):
                np.testing.assert_allclose(line[key], want[key], rtol=1e-3, err_msg=key)
    (_, _, ours, notes), (_, _, theirs, _) = load_run(folder), load_run(reference)
    assert notes["step"] == expected[-1]["step"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), ours, theirs)
    ours, theirs = (read_manifest(path)["results"] for path in (folder, reference))
    np.testing.assert_allclose(ours["test_loss"], theirs["test_loss"], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_with_two_devices_each_make_the_run_of_one(runs, tmp_path):
    folder = tmp_path / "two"
    processes = start(CONFIG, folder)
    printed = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], printed
    assert read_manifest(folder)["environment"]["n_devices"] == 4
    assert read_manifest(folder)["environment"]["n_processes"] == 2
    assert_same_run(folder, runs / "one")


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_goes_on_on_other_devices(tmp_path):
    folder, reference = tmp_path / "lost", tmp_path / "one"
    train(LONG, Options(quiet=True), reference)
    processes = start(LONG, folder, 2, 2, "--checkpoint-seconds", "0")
    wait_for_step(folder, 11, processes)
    processes[1].kill()
    printed = finish(processes)
    assert processes[0].returncode != 0, printed
    assert read_manifest(folder)["status"] != "finished"
    last = latest_step(folder)
    assert 11 <= last < 48

    # Told to one of them, a signal stops both, after the same step.
    processes = start(LONG, folder, 2, 2, "--checkpoint-seconds", "0", "--resume")
    wait_for_step(folder, last + 1, processes)
    processes[1].send_signal(signal.SIGTERM)
    printed = finish(processes)
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, printed
    assert read_manifest(folder)["status"] == "interrupted"
    assert last < latest_step(folder) < 48
    printed = finish(start(LONG, folder, 1, 8, "--resume"))
    assert read_manifest(folder)["status"] == "finished", printed
    assert_same_run(folder, reference)


def test_one_process_hears_itself_at_once():
    agreement = Agreement(Devices.take())
    assert agreement.hear(True, False) == agreement.hear_now(True, False) == (True, False)


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(Devices, "__len__", lambda self: 3)
    with pytest.raises(RunError, match=r"batch_size=8 on 3 devices.*--n-devices"):
        Task(CONFIG)
