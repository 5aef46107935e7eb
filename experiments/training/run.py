"""The folder of a run: its manifest, its logs and its checkpoints."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from tensorboardX import SummaryWriter

from experiments.records import files
from experiments.records.environment import environment
from experiments.records.files import RunError, check_place, read_manifest, read_metrics, say, write_manifest
from experiments.records.lock import Lock, check_free
from experiments.training import adapt, models, own
from experiments.training.checkpoints import KEPT, Checkpoints, DamagedError, read_variables, steps_in
from experiments.training.config import Config, differences
from experiments.training.devices import is_first, wait_for_all
from experiments.training.snapshots import pick_weights

PyTree = Any

FOLDERS = ("checkpoints", "tensorboard", "snapshots", "swap", "compressed", "is_ode")
"""What training writes into the folder of a run, and what other commands write about its weights."""


class Run:
    """The files of one run. Every process takes part in checkpoints; all else is written by the first alone.

        manifest.json     config, environment, data, status, results, and where a network of one's own was found
        metrics.jsonl     a line an epoch
        tensorboard/      the same as curves; not in a bucket
        checkpoints/      latest/ and best/, by step; damaged/ what could not be read
        snapshots/        some weights at the end of each level of refinement
        lock.json         the process that writes here

    Args:
      folder: where they lie, as of `files.place`.
    """

    def __init__(self, folder: Path):
        self.folder = files.absolute(folder)
        self.checkpoints = Checkpoints(self.folder)
        self._board: SummaryWriter | None = None
        self._lock: Lock | None = None
        self._saved = False

    @classmethod
    def start(
        cls, folder: Path, config: Any, *, resume: bool, overwrite: bool, data: dict[str, Any] | None = None
    ) -> Run:
        """Open the folder of a new run, or of an interrupted one to go on with, and hold it.

        Args:
          folder, config, resume, overwrite: as of `check_start`.
          data: what to keep about the data; `None` for what is there.

        Raises:
          RunError: as `check_start`.
        """
        lock = Lock(folder) if is_first() else None
        try:
            manifest = check_start(folder, config, resume=resume, overwrite=overwrite, locked=True)
            wait_for_all("all have seen the folder as it was")
            if not resume and is_first():
                cls._clear(folder, config, data)
            wait_for_all("the folder is ready")
            run = cls(folder)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        run._lock = lock
        if resume:
            changes: dict[str, Any] = {} if data is None else {"data": data}
            before = stored_config(folder, manifest, type(config))
            if before != config:
                changes["config"] = config.to_json()
            if before.epochs != config.epochs:
                extended = {"epochs": before.epochs, "results": manifest["results"]}
                changes |= {"results": {}, "extended": [*manifest.get("extended", []), extended]}
            run.update(status="running", resumed=[*manifest["resumed"], environment()], **changes)
        return run

    @staticmethod
    def _clear(folder: Path, config: Any, data: dict[str, Any] | None) -> None:
        """An empty folder but for the manifest of a run that has just begun."""
        # The manifest goes first and comes last, so that a kill in between leaves nothing that looks whole, and a
        # manifest without a folder of checkpoints means that these were deleted.
        for name in ("manifest.json", "metrics.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for name in FOLDERS:
            files.remove_tree(folder / name)
        for which in KEPT:
            files.make_folder(folder / "checkpoints" / which)
        started = {"status": "running", "config": config.to_json(), "environment": environment()}
        if (source := own.source_of(config)) is not None:
            started["source"] = source
        write_manifest(folder, started | {"data": data, "results": {}, "resumed": []})

    def update(self, **entries: Any) -> None:
        """Change entries of the manifest.

        Raises:
          RunError: if it is gone or damaged, as one made of these entries alone would describe no run.
        """
        if is_first():
            if (manifest := read_manifest(self.folder)) is None:
                raise RunError(
                    f"{self.folder / 'manifest.json'} is gone: put back a copy, or start anew with --overwrite"
                )
            write_manifest(self.folder, manifest | entries)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line of metrics, in JSON and in TensorBoard."""
        if not is_first():
            return
        files.append(self.folder / "metrics.jsonl", (json.dumps(record) + "\n").encode())
        self._draw([record])

    def forget_after(self, step: int, history: list[dict[str, Any]] | None = None) -> None:
        """Drop metrics of steps that a resumed run will repeat, and draw the curves anew from the others.

        Args:
          step: where it goes on.
          history: the lines up to there as the checkpoint knows them, which replace those of the file; what was lost
            is said.
        """
        if not is_first():
            return
        lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        path = self.folder / "metrics.jsonl"
        if history is not None:
            if lost := sum(line not in lines for line in history):
                say(f"{path}: {lost} of {len(history)} lines are lost or differ, and are written from the checkpoint")
            lines = history
        files.write(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        if files.in_bucket(path):
            say(f"{self.folder} is in a bucket, which TensorBoard's curves are not written to: they are in {path.name}")
            return
        board = self.folder / "tensorboard"
        if board.exists() and not board.is_dir():
            say(f"{board} is not a folder: it is replaced by one, with curves from metrics.jsonl")
            board.unlink()
        files.remove_tree(board)
        self._draw(lines)

    def _draw(self, records: list[dict[str, Any]]) -> None:
        if files.in_bucket(self.folder):
            return
        if self._board is None:
            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        for record in records:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, record["step"])
        self._board.flush()

    def save(self, which: str, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Save a checkpoint with the digests of its arrays, asynchronously and atomically.

        A step saved already is left alone. `best` is on disk before a `latest` that comes after it.

        Raises:
          RunError: where it cannot be written.
        """
        self.checkpoints.save(which, step, state, notes)
        self._note_saved()

    def newest(self, like: Callable[[dict[str, Any]], PyTree]) -> tuple[int, dict[str, Any], PyTree] | None:
        """Step, notes and state of the newest whole checkpoint; `None` of a run that was ended before its first.

        Args:
          like: the state with the shapes, dtypes and placement that it is read into, from the notes.

        Raises:
          RunError: if all that there are are damaged, or there were some and they are gone.
        """
        found = self.checkpoints.newest(like)
        if found is None and (read_manifest(self.folder) or {}).get("saved"):
            raise RunError(_gone(self.folder))
        return found

    def _note_saved(self) -> None:
        # Checkpoints that are deleted later would otherwise look like a run that had none yet.
        if self.checkpoints.committed and not self._saved and read_manifest(self.folder) is not None:
            self.update(saved=True)
            self._saved = True

    def snapshot(self, level: int, params: PyTree) -> None:
        """Keep `pick_weights(params)` as snapshots/level_<level>.npz: the weights that a level ended with."""
        if not is_first():
            return
        path = self.folder / "snapshots" / f"level_{level}.npz"
        files.make_folder(path.parent)
        arrays: dict[str, Any] = dict(pick_weights(params))
        content = io.BytesIO()
        np.savez(content, **arrays)
        files.write(path, content.getvalue())

    def wait(self) -> None:
        """Wait until every checkpoint is on disk."""
        self.checkpoints.wait()
        self._note_saved()

    def close(self) -> None:
        """Wait until everything is on disk, and let go of it."""
        try:
            self.checkpoints.close()
            self._note_saved()
            if self._board is not None:
                self._board.close()
        finally:
            if self._lock is not None:
                self._lock.release()


def _gone(folder: Path) -> str:
    return (
        f"the checkpoints of the run in {folder} are gone: put back {folder / 'checkpoints'}, or start anew with "
        "--overwrite"
    )


def check_start(folder: Path, config: Any, *, resume: bool, overwrite: bool, locked: bool = False) -> dict[str, Any]:
    """See whether a run can start in a folder, or go on there, without touching anything.

    Args:
      folder: of the run.
      config: that is asked for, a `Config` or another dataclass with `epochs`, `to_json` and `from_json`. A run is
        resumed with its own config, or with more epochs: nothing but their number depends on it, so that it then
        becomes the run that was started with so many. Its data, known by digests, may lie in another `data_dir`.
      resume, overwrite: whether to go on with the run that is there, or to delete it.
      locked: whether this process holds the folder already.

    Returns:
      The manifest of the run that lies there; empty if there is none.

    Raises:
      RunError: if the folder holds a run and neither `resume` nor `overwrite` is asked for, if another process is
        at work there, if the run to resume was started with another config, or its checkpoints are gone.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite contradict each other; give one of them")
    if not locked:
        check_place(folder)
        check_free(folder)
    try:
        manifest = read_manifest(folder)
    except RunError:
        if not overwrite:
            raise
        manifest = None
    flags = "--overwrite deletes it and starts anew, --run-dir starts elsewhere"
    if resume:
        if manifest is None:
            raise RunError(f"--resume: there is no run in {folder}; leave --resume out to start one")
        before = stored_config(folder, manifest, type(config))
        # A cosine ends with the run, so that a longer one would have had other rates from the start.
        longer = config.epochs > before.epochs and getattr(before, "schedule", None) != "cosine"
        after = dataclasses.replace(config, epochs=before.epochs) if longer else config
        if hasattr(before, "data_dir"):
            after = dataclasses.replace(after, data_dir=before.data_dir)
        if differences(before, after):
            alone = f"Give `--resume {folder}` alone" if isinstance(config, Config) else "Leave these out"
            raise RunError(
                f"--resume: the run in {folder} has another config: {'; '.join(differences(before, config))}. "
                f"{alone}, and those it was started with are taken (--epochs may be more), or start another run with "
                "--run-dir"
            )
        if not files.is_folder(folder / "checkpoints"):
            raise RunError(_gone(folder))
    elif manifest is not None and not overwrite:
        how = "" if manifest["status"] == "finished" else "--resume goes on with it, "
        raise RunError(f"{folder} holds a run ({manifest['status']}): {how}{flags}")
    elif not overwrite and (found := [name for name in FOLDERS if files.holds_files(folder / name)]):
        raise RunError(f"{folder} holds {', '.join(found)} without a manifest.json: {flags}")
    return manifest or {}


def stored_config(folder: Path, manifest: dict[str, Any], kind: Any = Config) -> Any:
    """The config of a run, of one kind.

    Raises:
      RunError: if it cannot be read, as that of a later version.
    """
    try:
        return kind.from_json(manifest["config"])
    except ValueError as error:
        raise RunError(f"{folder}/manifest.json: {error}") from error


def load_run(folder: str | Path, which: str = "latest") -> tuple[Config, nn.Module, PyTree, dict[str, Any]]:
    """The network that a run trained, with its weights, for evaluation.

    Args:
      folder: of the run.
      which: `latest` or `best` checkpoint.

    Returns:
      Config, network, `{"params", "batch_stats"}`, and the checkpoint's notes with its `step` and `level`, and the
      run's `data`, which `data_of_run` takes.

    Raises:
      RunError: if there is no run or no such checkpoint, or it is damaged.
    """
    folder = files.reached(folder)
    record, checkpoints = read_manifest(folder), files.absolute(folder / "checkpoints" / which)
    if record is None:
        within = next((place for place in files.above(folder) if (place / "manifest.json").is_file()), None)
        hint = f"give the run it lies in, experiments.load({str(within)!r})" if within else "train one first"
        raise RunError(f"there is no run in {folder}: it has no manifest.json; {hint}")
    steps = steps_in(checkpoints)
    if not steps:
        raise RunError(f"the run in {folder} has no {which!r} checkpoint yet (status: {record['status']})")
    path = checkpoints / str(steps[-1])
    try:
        names = ("params", "batch_stats") if not stored_config(folder, record).ema_decay else ("ema",)
        saved, variables = read_variables(path, names)
        variables = variables.get("ema", variables)
    except DamagedError as error:
        resume = "--resume goes back to the newest whole one; --checkpoint takes latest or best"
        how = "compress the run that it came from once more" if "parent" in record else resume
        raise RunError(f"the checkpoint {path} is damaged: {error}. {how}") from error
    config = stored_config(folder, record)
    notes = saved | {"step": steps[-1], "data": record.get("data")}
    data = record.get("data") or {}
    n_classes = data["n_classes"] if "n_classes" in data else variables["params"]["head"]["bias"].shape[0]
    own.find(config, record.get("source"))
    net = models.build(config, n_classes, notes["level"])
    if "adapted" in notes:
        net = adapt.settled(net, notes["adapted"])
    return config, net, variables, notes
