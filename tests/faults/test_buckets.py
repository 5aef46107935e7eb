"""Runs in a bucket of a server on this machine: as those in a folder, or refused before they begin."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experiments
from experiments import evaluate_solvers, figures
from experiments.records import buckets, files
from experiments.records.command import command_line
from experiments.records.files import RunError, check_place, place, read_manifest, read_metrics
from experiments.records.lock import Lock
from experiments.train import Options, train
from experiments.training.checkpoints import read_variables, steps_in
from experiments.training.run import Run, load_run
from tests.bucket import environment, served
from tests.faults.runs import CONFIG, QUIET, same
from tests.faults.test_checkpoints import assert_is, like, resumed, saved_run
from tests.settings import arguments

ROOT = Path(__file__).parents[2]
needs_gcsfs = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="it needs the extra gcs")


@pytest.fixture(scope="module")
def server():
    """One server for all, as TensorStore reads its address once."""
    with served("test") as started, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(started.address).items():
            patch.setenv(name, value)
        yield started


@pytest.fixture
def bucket(server):
    """Empty, and answering."""
    server.objects.clear()
    yield server
    server.refusing = 0


def test_paths_in_buckets_are_made_by_one_function():
    found = place(Path("gs://bucket/runs/a"))
    assert str(found) == "gs://bucket/runs/a" == str(files.absolute(found))
    assert [str(folder) for folder in files.above(found)] == ["gs://bucket/runs"]
    assert files.results_in(found, "swap") == Path("runs/bucket/runs/a/swap")
    assert place("~/a") == Path.home() / "a"
    for wrong in ("gs://bucket", "gs://bucket/", "gs:///a"):
        with pytest.raises(ValueError, match="expected gs://BUCKET/FOLDER"):
            place(wrong)
    for other in ("s3://bucket/a", "hdfs://host/a"):
        with pytest.raises(ValueError, match=rf"address of {other.split(':')[0]}, expected a place on this machine"):
            place(other)
        with pytest.raises(RunError, match="is an address of"):
            train(CONFIG, Options(**QUIET), Path(other))


def test_only_folders_of_runs_may_be_in_buckets(capsys):
    options = command_line(evaluate_solvers.Options, "command", None, ["gs://bucket/a", "--out", "b"])
    assert (str(options.run_dir), options.out) == ("gs://bucket/a", Path("b"))
    assert evaluate_solvers.results_of(dataclasses.replace(options, out=None).run_dir, options) == Path("b")
    both = command_line(figures.Options, "command", None, ["training", "gs://bucket/a", "~/b"])
    assert list(map(str, both.run_dirs)) == ["gs://bucket/a", str(Path.home() / "b")]
    with pytest.raises(SystemExit):
        command_line(evaluate_solvers.Options, "command", None, ["gs://bucket/a", "--out", "gs://bucket/b"])
    assert "address of gs" in capsys.readouterr().err


def test_without_gcsfs_a_bucket_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr(buckets, "_gcs", lambda: importlib.import_module("gcsfs"))
    with pytest.raises(RunError, match=r"^gs://test/a cannot be reached by gcsfs, which is not there: .*pip install"):
        train(CONFIG, Options(**QUIET), Path("gs://test/a"))


@needs_gcsfs
def test_a_bucket_that_may_not_be_used_is_refused_in_one_line_before_training(bucket):
    bucket.objects["run/lock.json"] = (1, b"")
    wrong = {0: ("gs://other/run", "there is no bucket gs://other")}
    denied = "not with these rights.*gcloud auth.*Storage Object User"
    wrong |= dict.fromkeys((401, 403), ("gs://test/run", denied))
    for status, (address, says) in wrong.items():
        bucket.refusing = status
        for start in (lambda place: train(CONFIG, Options(**QUIET), Path(place)), experiments.load):
            with pytest.raises(RunError, match=says) as refused:
                start(address)
            assert str(refused.value).startswith(f"{address} cannot be reached by gcsfs without credentials: ")
            assert "\n" not in str(refused.value)
    bucket.refusing = 0
    # To read is not to write, which is seen before the data is read.
    bucket.read_only = True
    try:
        with pytest.raises(RunError, match=r"by TensorStore.*PERMISSION_DENIED.*Storage Object User"):
            check_place(place("gs://test/run"))
        assert files.reached("gs://test/run") == place("gs://test/run")
    finally:
        bucket.read_only = False
    check_place(place("gs://test/run"))
    assert list(bucket.objects) == ["run/lock.json"]


@needs_gcsfs
def test_a_bucket_that_does_not_answer_is_waited_for_for_seconds(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(RunError, match="no answer within 2 s: see to the network"):
            check_place(place("gs://test/run"))
        assert time.monotonic() - began < 30


@needs_gcsfs
def test_the_process_that_is_named_in_a_bucket_holds_the_run(bucket):
    folder = place("gs://test/run")
    held = Lock(folder)
    name = "run/lock.json"
    mine = json.loads(bucket.objects[name][1])
    assert mine["pid"] == os.getpid()
    for other, free in (({"host": "elsewhere"}, False), ({"pid": os.getppid(), "born": "never"}, True)):
        bucket.objects[name] = (1, json.dumps(mine | other).encode())
        if free:
            Lock(folder).release()
        else:
            with pytest.raises(RunError, match=r"in use by process .* on elsewhere.* delete gs://test/run/lock.json"):
                Lock(folder)
    held.release()
    assert bucket.objects[name][1] == b""


@needs_gcsfs
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside_and_an_older_one_taken(bucket, capfd):
    folder = saved_run(place("gs://test/a/run"))
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]
    assert_is(resumed(folder), 3)
    damaged = [name for name in bucket.objects if re.match(r"a/run/checkpoints/latest/3/state/d/", name)]
    for name in damaged:
        bucket.objects[name] = (1, bytes(reversed(bucket.objects[name][1])))
    before = len(bucket.objects)
    assert_is(resumed(folder), 2)
    said = capfd.readouterr().err
    assert "it is kept in gs://test/a/run/checkpoints/damaged/latest_3" in said
    assert len(bucket.objects) == before
    assert steps_in(folder / "checkpoints" / "latest") == [2]
    assert len(read_metrics(folder)) == 2


@needs_gcsfs
def test_a_checkpoint_that_is_refused_is_not_taken_for_damaged(bucket):
    run = Run(saved_run(place("gs://test/b/run")))
    bucket.refusing = 403
    with pytest.raises(OSError, match=r"gs://test/b/run/checkpoints/latest: the bucket fails .*not with these rights"):
        run.newest(like)
    with pytest.raises(RunError, match="a checkpoint cannot be read, as its bucket fails: Forbidden"):
        read_variables(run.folder / "checkpoints" / "latest" / "3")
    with pytest.raises(OSError, match=r"gs://test/b/run/metrics\.jsonl: the bucket fails"):
        run.log({"step": 4})
    bucket.refusing = 0
    assert not any("damaged" in name for name in bucket.objects)
    run.close()


def newest_in(server: Any) -> int:
    """The last step of which there is a whole checkpoint in a server."""
    found = (re.fullmatch(r"runs/run/checkpoints/latest/(\d+)/commit_success.txt", name) for name in [*server.objects])
    return max((int(match[1]) for match in found if match), default=0)


@needs_gcsfs
@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_comes_to_what_a_local_one_does(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(CONFIG, limit=64, epochs=4)
    train(config, Options(**QUIET), Path("local"))
    folder = place("gs://test/runs/run")
    run = [*arguments(config), "--quiet", "--checkpoint-seconds", "0", "--run-dir", str(folder)]
    command = [sys.executable, "-m", "experiments.train"]
    starts = [(["digits", *run], True), (["--resume", str(folder)], True), (["digits", *run, "--resume"], False)]
    for args, killed in starts:
        before, env = newest_in(bucket), os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*command, *args], env=env, stderr=subprocess.PIPE, text=True)
        while killed and newest_in(bucket) < before + 5 and process.poll() is None:
            time.sleep(0.01)
        if killed:
            process.kill()
        said = process.communicate(timeout=300)[1]
        assert process.returncode == (-signal.SIGKILL if killed else 0), said
        assert "Traceback" not in said

    # What is not time is as it was.
    found = []
    for where in (Path("local"), folder):
        times = dict.fromkeys(("seconds", "images_per_second"))
        lines = [line | times for line in read_metrics(where)]
        found.append((lines, read_manifest(where)["results"] | {"train_seconds": None}))
    assert found[0] == found[1]
    assert len(found[0][0]) == config.epochs
    assert same(load_run(Path("local"))[2], load_run(folder)[2])
    trained = experiments.load("gs://test/runs/run", "best")
    assert trained.predict(np.zeros((2, *trained.image_shape), np.uint8)).shape == (2, 10)

    # Results are written on this machine.
    monkeypatch.setattr(sys, "argv", ["", "gs://test/runs/run", "--schemes", "euler", "--n-steps", "2"])
    objects = dict(bucket.objects)
    evaluate_solvers.main()
    assert "written: runs/test/runs/run/swap/swap.csv" in capsys.readouterr().out
    assert json.loads(Path("runs/test/runs/run/swap/swap.json").read_text())["run"] == "gs://test/runs/run"
    for kind in ("training", "swap"):
        picture = figures.draw(figures.Options(kind, (folder, Path("local")) if kind == "training" else (folder,)))
        assert picture == Path(f"runs/test/runs/run/pictures/{kind}.png")
    assert bucket.objects == objects


@needs_gcsfs
@pytest.mark.slow
def test_a_bucket_that_fails_while_a_run_trains_ends_it_in_one_line(bucket):
    args = ["--quiet", "--checkpoint-seconds", "0", "--run-dir", "gs://test/runs/run"]
    command = [sys.executable, "-m", "experiments.train", "digits", *arguments(dataclasses.replace(CONFIG, epochs=500))]
    process = subprocess.Popen([*command, *args], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while newest_in(bucket) < 5 and process.poll() is None:
        time.sleep(0.01)
    bucket.refusing = 403
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1, said
    # Orbax logs what its threads met before.
    assert re.fullmatch(r"error: .*gs://test/runs/run/.*", said.splitlines()[-1]), said
