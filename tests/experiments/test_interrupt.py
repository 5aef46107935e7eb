"""Ctrl-C: the run says how to go on, and goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from experiments import train
from experiments.records.files import read_manifest, read_metrics

TINY = [
    "digits", "--limit", "64", "--model.widths", "2", "--batch-size", "32", "--epochs", "12", "--refine-epochs",
    "--decay-epochs", "--quiet",
]  # fmt: skip


def interrupt_once_saved(folder):
    stop = time.monotonic() + 120
    while time.monotonic() < stop and not any(p.name.isdigit() for p in folder.glob("checkpoints/latest/*")):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_is_resumed(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    arguments = ["train", *TINY, "--run-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--checkpoint-seconds", "0"])
    watcher = threading.Thread(target=interrupt_once_saved, args=(folder,), daemon=True)
    watcher.start()
    with pytest.raises(SystemExit) as stop:
        train.main()
    watcher.join()
    assert stop.value.code == 128 + signal.SIGINT
    assert "stopped by SIGINT at step" in (said := capfd.readouterr().err)
    assert "--resume" in said
    assert read_manifest(folder)["status"] == "interrupted"

    monkeypatch.setattr(sys, "argv", [*arguments, "--resume"])
    train.main()
    manifest = read_manifest(folder)
    assert manifest["status"] == "finished"
    assert len(manifest["resumed"]) == 1
    assert [record["epoch"] for record in read_metrics(folder)] == list(range(1, 13))
