"""The training loop: what stops it, what it keeps, and that it goes on as if nothing had happened.

All runs are of one tiny network, refined after its first epoch, with a checkpoint after each step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from experiments import train as loop
from experiments.records.files import RunError, read_manifest, read_metrics
from experiments.train import Options, train
from experiments.training import optimizers, steps
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings, Node18Settings
from experiments.training.progress import Bar, NonFiniteError, StopSignals, read
from experiments.training.run import load_run
from experiments.training.task import Task
from settings import arguments, changed

ROOT = Path(__file__).parents[2]
PER_EPOCH = 12
CONFIG = Config(
    limit=96,
    batch_size=8,
    crop_pad=1,
    flip=False,
    model=ContinuousNetSettings(widths=(2, 4)),
    epochs=3,
    refine_epochs=(1,),
    decay_epochs=(2,),
)
EACH_STEP = Options(checkpoint_seconds=0.0, quiet=True)
RESUME = dataclasses.replace(EACH_STEP, resume=True)
TIMES = ("seconds", "images_per_second", "train_seconds")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs that this process compiled, for the processes that the tests start."""
    keys = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {key: getattr(jax.config, key) for key in keys}
    for key, value in keys.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()
    yield {key.upper(): str(value) for key, value in keys.items()}
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def reference(cache, tmp_path_factory):
    """An uninterrupted run, and how many programs it compiled."""
    counts = programs()
    folder = tmp_path_factory.mktemp("runs") / "reference"
    train(CONFIG, EACH_STEP, folder)
    return folder, programs() - counts


def programs():
    return np.array([steps.train_step._cache_size(), steps.evaluate_batch._cache_size()])


def checkpoint(folder, which="latest"):
    """Step, notes and state of the newest checkpoint."""
    with ocp.CheckpointManager(folder.absolute() / "checkpoints" / which) as manager:
        step = manager.latest_step()
        parts = {"state": ocp.args.StandardRestore(), "notes": ocp.args.JsonRestore()}
        found = manager.restore(step, args=ocp.args.Composite(**parts))
    return step, found["notes"], found["state"]


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def curves(folder):
    """Every (name, step) in the TensorBoard files of a run, in order."""
    points = []
    for path in sorted((folder / "tensorboard").glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            points += [(value.tag, event.step) for value in event.summary.value]
            at += 16 + length
    return points


def assert_same_run(one, other):
    """Two finished runs agree in every bit but their times."""
    for which in ("latest", "best"):
        (step, notes, state), (other_step, other_notes, other_state) = (
            checkpoint(folder, which) for folder in (one, other)
        )
        assert step == other_step
        assert notes.pop("seconds") > 0
        assert other_notes.pop("seconds") > 0
        for found in (notes, other_notes):
            # The digest of the notes follows the times in them.
            del found["sha256"]
            found["history"] = [without_times(record) for record in found["history"]]
        assert notes == other_notes
        jax.tree.map(np.testing.assert_array_equal, state, other_state)
    metrics, other_metrics = ([without_times(r) for r in read_metrics(folder)] for folder in (one, other))
    assert metrics == other_metrics
    results, other_results = (without_times(read_manifest(folder)["results"]) for folder in (one, other))
    assert results == other_results
    assert curves(one) == curves(other)


def when_between(folder, first, last, action):
    """Call `action` once a checkpoint of a step in [first, last] is there; not if none ever is."""

    def watch():
        stop = time.monotonic() + 120
        while time.monotonic() < stop:
            steps = [int(p.name) for p in (folder / "checkpoints" / "latest").glob("*") if p.name.isdigit()]
            if steps and max(steps) >= first:
                if max(steps) <= last:
                    action()
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    return watcher


def command(config, folder, *flags):
    """The arguments that ask for a config on the command line."""
    options = ["--run-dir", str(folder), "--checkpoint-seconds", "0", "--quiet", *flags]
    return ["digits", *arguments(config), *options]


def test_a_finished_run_has_one_line_an_epoch_and_a_manifest_that_says_what_made_it(reference):
    folder, _ = reference
    metrics = read_metrics(folder)
    assert [(r["epoch"], r["step"], r["level"]) for r in metrics] == [(1, 12, 0), (2, 24, 1), (3, 36, 1)]
    found = read_manifest(folder)
    assert found["status"] == "finished"
    assert Config.from_json(found["config"]) == CONFIG
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= set(found["environment"]["versions"])
    assert found["environment"]["revision"]
    results = found["results"]
    assert results["n_test"] == 359
    assert 0 <= results["test_accuracy"] <= 1
    assert results["best_validation_accuracy"] == max(r["validation_accuracy"] for r in metrics)
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == ["level_0.npz", "level_1.npz"]
    drawn = curves(folder)
    assert len(drawn) == len(set(drawn))
    assert {step for _, step in drawn} == {12, 24, 36}


def test_latest_and_best_checkpoints_load_as_networks_of_their_level(reference):
    folder, _ = reference
    metrics = read_metrics(folder)
    best = max(metrics, key=lambda r: r["validation_accuracy"])
    for which, record in (("latest", metrics[-1]), ("best", best)):
        _, net, variables, notes = load_run(folder, which)
        assert (notes["step"], notes["level"]) == (record["step"], record["level"])
        assert net.solver.n_steps == net.basis.n_basis == 2 ** record["level"]
        sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
        assert sum(sizes) == record["n_parameters"]


def test_each_level_compiles_one_step_and_one_evaluation(reference):
    _, compiled = reference
    assert compiled.tolist() == [2, 2]


def test_kill_in_an_epoch_after_a_refinement_and_resume_is_bitwise_one_run(reference, cache, tmp_path):
    folder, environment = tmp_path / "killed", dict(os.environ, PYTHONPATH=str(ROOT), **cache)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *command(CONFIG, folder)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    when_between(folder, PER_EPOCH + 2, 2 * PER_EPOCH - 1, process.kill)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert read_manifest(folder)["status"] == "running"
    stopped, _, _ = checkpoint(folder)
    assert PER_EPOCH < stopped < 2 * PER_EPOCH
    before = programs()
    train(CONFIG, RESUME, folder)
    assert (programs() == before).all(), "a resumed run must not compile what is compiled"
    assert len(read_manifest(folder)["resumed"]) == 1
    assert_same_run(reference[0], folder)


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_resumes_bitwise(reference, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "stopped"
    monkeypatch.setattr(sys, "argv", ["train", *command(CONFIG, folder)])
    watcher = when_between(folder, 2, PER_EPOCH - 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        loop.main()
    watcher.join()
    assert stop.value.code == 128 + signal.SIGTERM
    stopped, _, _ = checkpoint(folder)
    assert f"stopped by SIGTERM at step {stopped}; --resume" in capfd.readouterr().err
    assert 2 <= stopped < PER_EPOCH
    assert read_manifest(folder)["status"] == "interrupted"
    # A checkpoint that a kill left half-written, and a line that it cut off, are passed over.
    (folder / "checkpoints" / "latest" / f"{stopped + 1}.orbax-checkpoint-tmp").mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 12, "epo')
    monkeypatch.setattr(sys, "argv", ["train", *command(CONFIG, folder, "--resume")])
    loop.main()
    assert_same_run(reference[0], folder)


def test_metrics_of_steps_that_are_repeated_are_forgotten(reference, tmp_path):
    folder = tmp_path / "behind"
    shutil.copytree(reference[0], folder)
    for step in (folder / "checkpoints" / "latest").iterdir():
        if int(step.name) > 2 * PER_EPOCH + 11:
            shutil.rmtree(step)
    found = read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(found | {"status": "running", "results": {}}))
    train(CONFIG, RESUME, folder)
    assert_same_run(reference[0], folder)


def test_a_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "diverged"
    config = changed(CONFIG, widths=(2,), learning_rate=1e20, epochs=1)
    for options in (EACH_STEP, RESUME):
        with pytest.raises(NonFiniteError, match="learning-rate") as failure:
            train(config, options, folder)
        bad_step = int(re.search(r"at step (\d+)", str(failure.value)).group(1))
        step, _, state = checkpoint(folder)
        assert step == bad_step - 1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        assert read_manifest(folder)["status"] == "failed: NonFiniteError"


def test_a_solver_that_fails_stops_the_run_and_its_block_is_named(tmp_path):
    model = Node18Settings(widths=(2,), scheme="heun_euler", rtol=1e-2, gradient="aca", max_steps=1)
    config = dataclasses.replace(CONFIG, model=model, refine_epochs=(), epochs=1)
    with pytest.raises(NonFiniteError, match=r"of block ode1_1 ended with MAX_STEPS at step 1;.*--model\.max-steps"):
        train(config, EACH_STEP, tmp_path / "failed")
    assert read_manifest(tmp_path / "failed")["status"] == "failed: NonFiniteError"
    assert not list((tmp_path / "failed" / "checkpoints").glob("*/[0-9]*"))
    # In evaluation no step number is known, but the block is.
    task = Task(config)
    with pytest.raises(NonFiniteError, match="validation images the solver of block ode1_1 ended with MAX_STEPS"):
        task.evaluate(0, jax.jit(lambda: task.init(0))(), "validation")


@pytest.mark.slow
def test_several_steps_a_dispatch_are_the_same_run(reference, tmp_path):
    before = steps.train_steps._cache_size()
    config = dataclasses.replace(CONFIG, epochs=1)
    train(config, Options(steps_per_dispatch=5, quiet=True), tmp_path / "run")
    assert steps.train_steps._cache_size() == before + 1, "5, 5 and 2 steps are one program"
    (line,), expected = read_metrics(tmp_path / "run"), read_metrics(reference[0])[0]
    assert line.keys() == expected.keys()
    for key in expected.keys() - set(TIMES):
        np.testing.assert_allclose(line[key], expected[key], rtol=1e-4, err_msg=key)


def test_a_run_is_never_overwritten_without_being_told(reference, tmp_path):
    folder, _ = reference
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"finished.*--overwrite"):
        train(CONFIG, EACH_STEP, folder)
    with pytest.raises(RunError, match="contradict"):
        train(CONFIG, dataclasses.replace(RESUME, overwrite=True), folder)
    with pytest.raises(RunError, match="epochs was 3, is 4") as refused:
        train(dataclasses.replace(CONFIG, epochs=4, seed=1), RESUME, folder)
    assert "seed was 0, is 1" in str(refused.value)
    assert "widths" not in str(refused.value)
    with pytest.raises(RunError, match="no run in"):
        train(CONFIG, RESUME, tmp_path / "nothing")
    assert train(CONFIG, RESUME, folder) == read_manifest(folder)["results"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_overwrite_starts_anew_and_leftovers_are_never_taken_for_a_run(reference, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(reference[0], folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"checkpoints.*without a manifest.*--overwrite"):
        train(CONFIG, EACH_STEP, folder)
    train(CONFIG, dataclasses.replace(EACH_STEP, overwrite=True), folder)
    assert_same_run(reference[0], folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": "nowhere/images.npz"}, "nowhere/images.npz"),
        ({"batch_size": 2000, "limit": None}, "batch_size=2000 exceeds"),
    ],
)
def test_data_that_cannot_be_trained_on_leaves_no_run_behind(changes, says, tmp_path):
    with pytest.raises(RunError, match=says):
        train(dataclasses.replace(CONFIG, **changes), EACH_STEP, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_signal_waits_the_second_does_not_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.noted == [signal.SIGTERM] * 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.slow
def test_an_adapted_step_is_logged_saved_resumed_bitwise_and_loaded(cache, tmp_path, monkeypatch):
    changes = {"adapt": "settled_step", "scheme": "euler", "n_steps": 2, "refine_epochs": (), "epochs": 9}
    config = changed(CONFIG, widths=(2,), **changes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, EACH_STEP, whole)
    steps = [line["adapted"] for line in read_metrics(whole)]
    # A check every 50 of 108 steps; skip-init starts with a field that is zero and has no step of its own.
    assert steps[:4] == [0.5] * 4
    assert steps[4] != 0.5
    assert len(set(steps)) == 3
    _, net, _, notes = load_run(whole)
    assert net.solver.n_steps == math.ceil(1 / notes["adapted"] - 1e-5)

    assert_resumed_bitwise(config, whole, stopped, (55, 70), monkeypatch)


@pytest.mark.slow
def test_node18_by_aca_resumes_bitwise(cache, tmp_path, monkeypatch):
    model = Node18Settings(widths=(2, 4), scheme="heun_euler", rtol=1e-2, gradient="aca")
    config = dataclasses.replace(CONFIG, model=model, refine_epochs=())
    train(config, EACH_STEP, tmp_path / "whole")
    assert_resumed_bitwise(config, tmp_path / "whole", tmp_path / "stopped", (15, 20), monkeypatch)


def assert_resumed_bitwise(config, whole, stopped, between, monkeypatch):
    """A run that SIGTERM stops between two steps, and that is resumed, is the whole one."""
    monkeypatch.setattr(sys, "argv", ["train", *command(config, stopped)])
    watcher = when_between(stopped, *between, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        loop.main()
    watcher.join()
    train(config, RESUME, stopped)
    assert_same_run(whole, stopped)


def test_the_learning_rate_decays_with_the_first_step_of_its_epoch():
    config = dataclasses.replace(CONFIG, momentum=0.0, weight_decay=0.0, decay_epochs=(1, 2), decay_factor=0.5)
    optimizer = optimizers.make_optimizer(config, 2)
    weights = jnp.float32(0)
    state = optimizer.init(weights)
    moves = []
    for _ in range(6):
        update, state = optimizer.update(jnp.float32(1), state, weights)
        moves.append(float(update))
    np.testing.assert_allclose(moves, [-0.1, -0.1, -0.05, -0.05, -0.025, -0.025], rtol=1e-6)


def test_padding_of_the_last_batch_counts_nowhere(reference):
    _, net, variables, _ = load_run(reference[0])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (260, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 260)
    (full, _), (x, y) = steps.padded_batches(images, labels, 250)
    assert full.shape == x.shape == (250, 8, 8, 1)
    assert y.tolist() == [*labels[250:], *[-1] * 240]
    noise = np.concatenate([x[:10], full[10:]])
    scaling = (np.zeros(1, np.float32), np.ones(1, np.float32))
    (loss, hits), (same_loss, same_hits) = (
        steps.evaluate_batch(net, variables, batch, y.astype(np.int32), scaling) for batch in (x, noise)
    )
    assert hits == same_hits <= 10
    np.testing.assert_allclose(loss, same_loss, rtol=1e-6)


def test_the_bar_reads_ten_steps_late_and_ends_full():
    config = dataclasses.replace(CONFIG, epochs=4, refine_epochs=(1, 3))
    good = {"epoch": {"loss": 8.0, "correct": 4, "images": 8}, "bad_step": 0}
    bad = good | {"bad_step": 1}
    assert read(good) == (1.0, 0.5)
    with Bar(Console(quiet=True), config, PER_EPOCH) as bar:
        bar.start_epoch(0)
        for step in range(1, 11):
            bar.push(step, bad if step == 1 else good)
        with pytest.raises(NonFiniteError, match="at step 1;"):
            bar.push(11, good)
        shares = []
        for step in (12, 24, 36, 48):
            bar.show(step, 1.0, 0.5)
            shares.append(bar.tasks[0].percentage)
    # Epochs weigh as their N_t: 1, 2, 2, 4.
    np.testing.assert_allclose(shares, [100 / 9, 300 / 9, 500 / 9, 100])
