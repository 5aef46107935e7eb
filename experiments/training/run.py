"""The folder of a run: its manifest, its logs and its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter

from experiments.records.environment import environment
from experiments.records.files import RunError, read_manifest, read_metrics, write_json
from experiments.training import adapt, models
from experiments.training.config import Config, differences
from experiments.training.devices import is_first, wait_for_all
from ode_nets.nn import weight_roles

PyTree = Any

FOLDERS = ("checkpoints", "tensorboard", "snapshots", "swap")


class Run:
    """The files of one run. Every process takes part in checkpoints; all else is written by the first alone.

        manifest.json     config, environment, status, results
        metrics.jsonl     a line an epoch
        tensorboard/      the same as curves
        checkpoints/      latest/ and best/, by step
        snapshots/        some weights at the end of each level of refinement

    Args:
      folder: where they lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        options = {"latest": 2, "best": 1}
        self._managers = {
            name: ocp.CheckpointManager(
                self.folder / "checkpoints" / name,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            )
            for name, keep in options.items()
        }
        self._board: SummaryWriter | None = None

    @classmethod
    def start(cls, folder: Path, config: Config, *, resume: bool, overwrite: bool) -> Run:
        """Open the folder of a new run, or of an interrupted one to go on with.

        Raises:
          RunError: as `check_start`.
        """
        manifest = check_start(folder, config, resume=resume, overwrite=overwrite)
        wait_for_all("all have seen the folder as it was")
        if not resume and is_first():
            cls._clear(folder, config)
        wait_for_all("the folder is ready")
        run = cls(folder)
        if resume:
            run.update(status="running", resumed=[*manifest["resumed"], environment()])
        return run

    @staticmethod
    def _clear(folder: Path, config: Config) -> None:
        """An empty folder but for the manifest of a run that has just begun."""
        # The manifest goes first and comes first, so that a kill in between leaves nothing that looks whole.
        for name in ("manifest.json", "metrics.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        started = {"status": "running", "config": config.to_json(), "environment": environment()}
        write_json(folder / "manifest.json", started | {"results": {}, "resumed": []})

    def update(self, **entries: Any) -> None:
        """Change entries of the manifest."""
        if is_first():
            write_json(self.folder / "manifest.json", (read_manifest(self.folder) or {}) | entries)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line of metrics, in JSON and in TensorBoard."""
        if not is_first():
            return
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._draw([record])

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will repeat, and draw the curves anew from the others."""
        if not is_first():
            return
        lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        path = self.folder / "metrics.jsonl"
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(partial, path)
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        self._draw(lines)

    def _draw(self, records: list[dict[str, Any]]) -> None:
        if self._board is None:
            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        for record in records:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, record["step"])
        self._board.flush()

    def save(self, which: str, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Save a checkpoint, asynchronously and atomically; a step saved already is left alone."""
        manager = self._managers[which]
        if step not in manager.all_steps():
            if jax.process_count() > 1:
                # Two saves at once would wait for the other processes under one name, which is an error.
                self.wait()
            parts = {"state": ocp.args.StandardSave(state), "notes": ocp.args.JsonSave(notes)}
            manager.save(step, args=ocp.args.Composite(**parts))

    def restore_notes(self, which: str = "latest") -> tuple[int, dict[str, Any]] | None:
        """Step and notes of the newest whole checkpoint, or `None`."""
        manager = self._managers[which]
        step = manager.latest_step()
        if step is None:
            return None
        return step, manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]

    def restore(self, step: int, like: PyTree, which: str = "latest") -> PyTree:
        """The state saved at `step`, with the shapes, dtypes and placement of `like`."""
        target = ocp.args.StandardRestore(like)
        return self._managers[which].restore(step, args=ocp.args.Composite(state=target))["state"]

    def snapshot(self, level: int, params: PyTree) -> None:
        """Keep `pick_weights(params)` as snapshots/level_<level>.npz: the weights that a level ended with."""
        if not is_first():
            return
        path = self.folder / "snapshots" / f"level_{level}.npz"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        arrays: dict[str, Any] = dict(pick_weights(params))
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)

    def wait(self) -> None:
        """Wait until every checkpoint is on disk."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk, and let go of it."""
        self.wait()
        for manager in self._managers.values():
            manager.close()
        if self._board is not None:
            self._board.close()


def check_start(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """See whether a run can start in a folder, or go on there, without touching anything.

    Returns:
      The manifest of the run that lies there; empty if there is none.

    Raises:
      RunError: if the folder holds a run and neither `resume` nor `overwrite` is asked for, or the run to
        resume was started with another config.
    """
    manifest = read_manifest(folder)
    flags = "--overwrite deletes it and starts anew, --run-dir starts elsewhere"
    if resume and overwrite:
        raise RunError("--resume and --overwrite contradict each other; give one of them")
    if resume:
        if manifest is None:
            raise RunError(f"--resume: there is no run in {folder}; leave --resume out to start one")
        if changed := differences(stored_config(folder, manifest), config):
            raise RunError(
                f"--resume: the run in {folder} has another config: {'; '.join(changed)}. Repeat the "
                "settings it was started with, or start another run with --run-dir"
            )
    elif manifest is not None and not overwrite:
        how = "" if manifest["status"] == "finished" else "--resume goes on with it, "
        raise RunError(f"{folder} holds a run ({manifest['status']}): {how}{flags}")
    elif not overwrite and (found := [name for name in FOLDERS if (folder / name).exists()]):
        raise RunError(f"{folder} holds {', '.join(found)} without a manifest.json: {flags}")
    return manifest or {}


def stored_config(folder: Path, manifest: dict[str, Any]) -> Config:
    """The config of a run.

    Raises:
      RunError: if it cannot be read, as that of a later version.
    """
    try:
        return Config.from_json(manifest["config"])
    except ValueError as error:
        raise RunError(f"{folder}/manifest.json: {error}") from error


def pick_weights(params: PyTree, n_weights: int = 40) -> dict[str, np.ndarray]:
    """The same few kernel entries of each block at any level, `{block: [n_basis, n_weights]}`.

    Blocks whose kernels evolve have none in their coefficients, and are left out.
    """
    picked = {}
    for block, tree in params.items():
        roles = jax.tree.leaves(weight_roles(tree))
        stacked = [leaf for leaf, role in zip(jax.tree.leaves(tree), roles, strict=True) if role == "expansion"]
        leaves = [leaf for leaf in jax.device_get(stacked) if leaf.ndim == 5]
        if not leaves:
            continue
        entries = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
        n_picked = min(n_weights, entries.shape[1])
        picked[block] = entries[:, np.random.default_rng(0).permutation(entries.shape[1])[:n_picked]]
    return picked


def load_run(folder: Path, which: str = "latest") -> tuple[Config, nn.Module, PyTree, dict[str, Any]]:
    """The network that a run trained, with its weights, for evaluation.

    Args:
      folder: of the run.
      which: `latest` or `best` checkpoint.

    Returns:
      Config, network, `{"params", "batch_stats"}`, and the checkpoint's notes with its `step` and `level`.

    Raises:
      RunError: if there is no run or no such checkpoint.
    """
    record, checkpoints = read_manifest(folder), (folder / "checkpoints" / which).absolute()
    if record is None:
        raise RunError(
            f"there is no run in {folder}: it has no manifest.json; train one with experiments.train"
        )
    steps = ocp.utils.checkpoint_steps(checkpoints) if checkpoints.is_dir() else []
    if not steps:
        raise RunError(f"the run in {folder} has no {which!r} checkpoint yet (status: {record['status']})")
    path, device = checkpoints / str(max(steps)), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(), notes=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        # The shapes come from the checkpoint, so that no data need be read to know them.
        saved = checkpointer.metadata(path).item_metadata["state"].tree
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            {name: saved[name] for name in ("params", "batch_stats")},
        )
        into = ocp.checkpoint_utils.construct_restore_args(like)
        parts = {
            "state": ocp.args.PyTreeRestore(like, restore_args=into, partial_restore=True),
            "notes": ocp.args.JsonRestore(),
        }
        restored = checkpointer.restore(path, args=ocp.args.Composite(**parts))
    config = stored_config(folder, record)
    notes = restored.notes | {"step": max(steps)}
    net = models.build(config, like["params"]["head"]["bias"].shape[0], notes["level"])
    if "adapted" in notes:
        net = adapt.settled(net, notes["adapted"])
    return config, net, dict(restored.state), notes
