"""What a run meets before it trains: another process, other data, damaged records, places that will not do."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import train as loop
from experiments.images import data
from experiments.records import lock
from experiments.records.command import command_line
from experiments.records.files import RunError, check_place, read_manifest
from experiments.records.lock import Lock
from experiments.train import Options, train
from experiments.training.checkpoints import steps_in
from experiments.training.config import Config
from experiments.training.fingerprint import changes, data_of_run, fingerprint
from experiments.training.progress import StopSignals, unfailing_console
from experiments.training.run import Run, check_start

ROOT = Path(__file__).parents[2]
CONFIG = Config(limit=64, batch_size=32, epochs=2)
HOLD = """
import pathlib, sys
from experiments.records.lock import Lock
held = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started(tmp_path):
    """The folder of a run that began and was ended before its first checkpoint."""
    Run.start(tmp_path / "run", CONFIG, resume=False, overwrite=False).close()
    return tmp_path / "run"


def test_a_living_process_holds_its_run_and_a_killed_one_does_not(started):
    command = [sys.executable, "-c", HOLD, str(started)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    try:
        assert process.stdout.readline() == "held\n"
        host = re.escape(os.uname().nodename)
        for flags in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
            with pytest.raises(RunError, match=rf"in use by process {process.pid} on {host}, which started 2"):
                check_start(started, CONFIG, **flags)
        with pytest.raises(RunError, match="in use"):
            Lock(started)
    finally:
        process.kill()
        process.communicate()
    check_start(started, CONFIG, resume=True, overwrite=False)
    Lock(started).release()


def test_without_locks_of_the_file_system_the_process_in_the_file_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    me = {"host": "elsewhere", "pid": 1, "born": "1", "started": "then", "job": None}
    (tmp_path / lock.NAME).write_text(json.dumps(me))
    with pytest.raises(RunError, match="process 1 on elsewhere"):
        Lock(tmp_path)
    # The job that was requeued keeps its number, wherever it runs.
    (tmp_path / lock.NAME).write_text(json.dumps(me | {"job": "7"}))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    Lock(tmp_path).release()
    # A process of this host that has another one's number by now.
    host = os.uname().nodename
    (tmp_path / lock.NAME).write_text(json.dumps(me | {"host": host, "pid": os.getppid(), "born": "never"}))
    Lock(tmp_path).release()
    (tmp_path / lock.NAME).write_bytes(b"\xff{")
    Lock(tmp_path).release()


def test_a_folder_that_is_deleted_meanwhile_is_not_made_anew(started):
    run = Run.start(started, CONFIG, resume=True, overwrite=False)
    shutil.rmtree(started)
    with pytest.raises(RunError, match=r"manifest\.json is gone"):
        run.update(status="finished")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        run.log({"step": 1})
    assert not (started / "manifest.json").exists()
    run.close()


LIMITED = """
import pathlib, resource, signal, sys
import jax.numpy as jnp
from experiments.records.files import RunError
from experiments.training.run import Run
run = Run(pathlib.Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
try:
    run.save("latest", 1, {"x": jnp.arange(9999.0) ** 0.5}, {})
    run.wait()
except RunError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line_and_leaves_no_checkpoint(started):
    command = [sys.executable, "-c", LIMITED, str(started)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "a checkpoint cannot be written into" in done.stderr
    assert "--resume" in done.stderr
    assert steps_in(started / "checkpoints" / "latest") == []


MANIFESTS = {
    b'{"status": "run': "cannot be read",
    b"\xff\xfe\x00": "cannot be read",
    b"[]": "holds a list",
    b"{}": "lacks status and config",
    b'{"status": "running", "config": {"version": 9}}': "version=9",
    b'{"status": "running", "config": {"version": 2, "later": 1}}': "unknown keys.*later",
    b'{"status": "running", "config": {}, "results": 3}': "results=3",
}


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_damaged_manifest_is_named_and_only_overwrite_goes_past_it(content, started):
    (started / "manifest.json").write_bytes(content)
    with pytest.raises(RunError, match=MANIFESTS[content]) as refused:
        check_start(started, CONFIG, resume=True, overwrite=False)
    assert "manifest.json" in str(refused.value)
    check_start(started, CONFIG, resume=False, overwrite=True)


def test_a_manifest_that_was_changed_is_refused_until_its_digest_is_deleted(started, capfd):
    path = started / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record))
    assert read_manifest(started)["config"]["seed"] == 0
    record["config"]["seed"] = 5
    path.write_text(json.dumps(record))
    for refused in (read_manifest, lambda folder: check_start(folder, CONFIG, resume=True, overwrite=False)):
        with pytest.raises(RunError, match=r'manifest\.json is damaged or was edited.*--overwrite; .*"sha256"'):
            refused(started)
    check_start(started, CONFIG, resume=False, overwrite=True)
    del record["sha256"]
    path.write_text(json.dumps(record))
    assert read_manifest(started)["config"]["seed"] == 5
    assert "it is taken as it is, unchecked" in capfd.readouterr().err


def test_a_flipped_bit_of_a_manifest_is_named_or_does_not_matter(started):
    path = started / "manifest.json"
    whole, kept, found = path.read_bytes(), read_manifest(started), {"same": 0, "named": 0}
    for bit in np.random.default_rng(0).choice(8 * len(whole), 400, replace=False):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        try:
            manifest = read_manifest(started)
            # A digest under another name is none, and what it was made of is as it was.
            assert {key: manifest[key] for key in kept} == kept
            found["same"] += 1
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017 - not every flip matters
            found["named"] += 1
    assert found["named"] > 200


def test_a_manifest_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(RunError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("place", "says"),
    [("s3://bucket/run", "address of s3"), ("runs/lr=[0.1]", r"has \[ \] in its name"), ("file/run", "is a file")],
)
def test_places_that_will_not_do_are_refused_before_anything_is_written(place, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=says):
        train(CONFIG, Options(quiet=True), Path(place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_usual_place_will_do(tmp_path):
    check_place(tmp_path / "a b" / "lr=0.1")
    assert Options(run_dir=Path("~/run")).run_dir == Path.home() / "run"


@dataclasses.dataclass(frozen=True)
class Places:
    """Settings of a command."""

    out: Path | None = None
    several: tuple[Path, ...] = ()


def test_paths_of_a_command_are_places_on_this_machine():
    found = command_line(Places, "command", None, ["--out", "~/a", "--several", "~/b", "c"])
    assert found == Places(Path.home() / "a", (Path.home() / "b", Path("c")))
    with pytest.raises(SystemExit, match="error: gs://bucket/b is an address of gs"):
        command_line(Places, "command", None, ["--several", "c", "gs://bucket/b"])


def test_a_seed_that_is_none_of_32_bits_is_refused():
    with pytest.raises(ValueError, match="seed=2147483648"):
        dataclasses.replace(CONFIG, seed=2**31)


def test_other_data_is_named_and_accepted_only_when_asked(tmp_path, capfd):
    rng = np.random.default_rng(0)
    arrays = {f"x_{s}": rng.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8) for s in ("train", "test")}
    arrays |= {f"y_{s}": np.arange(20) % 2 for s in ("train", "test")}
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    config = dataclasses.replace(CONFIG, dataset=str(path), limit=None, batch_size=4)
    kept = json.loads(json.dumps(fingerprint(data.load(path))))
    assert changes(kept, fingerprint(data.load(path))) == []
    same = data_of_run(config, kept)
    np.testing.assert_array_equal(same.mean, data.load(path).mean)
    arrays["x_test"][0, 0, 0] ^= 1
    arrays["x_train"] = arrays["x_train"] // 2
    np.savez(path, **arrays)
    with pytest.raises(RunError, match=r"x_train has other values.*x_test has other values.*--accept-new-data"):
        data_of_run(config, kept)
    taken = data_of_run(config, kept, accept_new_data=True)
    np.testing.assert_array_equal(taken.mean, same.mean)
    assert "x_test has other values" in capfd.readouterr().err
    before = loop.known(kept, fingerprint(taken))
    assert before["before"] == [kept]
    assert before["mean"] == kept["mean"]


def test_signals_that_the_process_was_started_to_ignore_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.noted == []
            signal.raise_signal(signal.SIGTERM)
            assert signals.noted == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("raised", ["raise KeyboardInterrupt", "raise ImportError from KeyboardInterrupt()"])
def test_ctrl_c_while_a_command_imports_is_one_line(raised, tmp_path):
    # As Python does it for `python -m`, with an import that Ctrl-C meets in the place of the rest.
    code = f"import sys; sys.argv = ['-m']; sys.path.insert(0, {str(ROOT)!r}); import experiments; {raised}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr == "\nstopped\n"


PRINTS = """
from experiments.training.progress import unfailing_console
console = unfailing_console()
for _ in range(2000):
    console.print("epoch" * 20)
import sys
print("trained", file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it needs a device that is always full")
def test_output_that_nobody_takes_does_not_end_a_process():
    said = []
    with Path("/dev/full").open("w") as full:
        said.append(subprocess.run([sys.executable, "-c", PRINTS], cwd=ROOT, stdout=full, stderr=subprocess.PIPE))
    process = subprocess.Popen([sys.executable, "-c", PRINTS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0, errors
    assert errors == b"trained\n"
    assert [(done.returncode, done.stderr) for done in said] == [(0, b"trained\n")]


def test_the_console_prints_where_it_can(capsys):
    unfailing_console().print("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"


def test_a_run_that_is_overwritten_leaves_nothing_that_was_said_of_its_weights(started):
    for name in ("compressed", "is_ode"):
        (started / name).mkdir()
        (started / name / "found.json").write_text("{}")
    (started / "manifest.json").rename(started / "away.json")
    with pytest.raises(RunError, match=r"holds .*compressed, is_ode without a manifest\.json"):
        check_start(started, CONFIG, resume=False, overwrite=False)
    Run.start(started, CONFIG, resume=False, overwrite=True).close()
    assert not (started / "compressed").exists()
    assert not (started / "is_ode").exists()
