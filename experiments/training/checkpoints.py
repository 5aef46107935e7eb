"""The checkpoints of a run: saved whole with the digests of their arrays, and read only where these still fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.records.buckets import is_lost
from experiments.records.digests import differing, digests, sealed, unsealed
from experiments.records.files import RunError, answering, is_folder, move, say
from experiments.training.devices import is_first, wait_for_all

PyTree = Any
KEPT = {"latest": 2, "best": 1}
"""How many checkpoints of each kind stay."""


class DamagedError(Exception):
    """A checkpoint that cannot be read, or holds something else than was saved; the message says what."""


class _Notes(ocp.JsonCheckpointHandler):
    """Notes that are sealed with the digests of the arrays while Orbax writes these."""

    async def async_save(self, directory: Any, item: Any = None, args: Any = None) -> list[ocp.future.Future]:
        """What waits for the digests and writes the notes, in a thread of its own."""

        async def write() -> None:
            if is_first():
                notes = sealed(args.notes | {"digests": digests(args.arrays)})
                (directory / "metadata").write_text(json.dumps(notes))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="notes")]


@ocp.args.register_with_handler(_Notes, for_save=True)
@dataclasses.dataclass
class _SaveNotes(ocp.args.CheckpointArgs):
    notes: dict[str, Any]
    arrays: PyTree
    """On the host, where a step that is given the state to reuse leaves them alone."""


@ocp.args.register_with_handler(_Notes, for_restore=True)
@dataclasses.dataclass
class _RestoreNotes(ocp.args.JsonRestore):
    item: Any = None


class Checkpoints:
    """checkpoints/latest and checkpoints/best of a run's folder, by step. Every process takes part.

    Args:
      folder: of the run, absolute.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "checkpoints"
        options = {name: ocp.CheckpointManagerOptions(max_to_keep=n, create=True) for name, n in KEPT.items()}
        self._managers = {name: ocp.CheckpointManager(self.folder / name, options=o) for name, o in options.items()}
        # Whether some checkpoint was committed by this process, so far as it has waited for it.
        self.committed = False

    def save(self, which: str, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Save a checkpoint, asynchronously and atomically; a step saved already is left alone.

        Raises:
          RunError: where it, or the one before, cannot be written.
        """
        manager = self._managers[which]
        if step in manager.all_steps():
            return
        with _writing(self.folder):
            # Two saves at once would wait for the other processes under one name, which is an error; and `best` is
            # on disk before `latest` says that it is there.
            if jax.process_count() > 1 or which == "latest":
                self._managers["best"].wait_until_finished()
            if jax.process_count() > 1 or steps_in(self.folder / which):
                manager.wait_until_finished()
                self.committed = True
            arrays = jax.device_get(state) if is_first() else None
            parts = {"state": ocp.args.StandardSave(state), "notes": _SaveNotes(notes, arrays)}
            manager.save(step, args=ocp.args.Composite(**parts))

    def newest(self, like: Callable[[dict[str, Any]], PyTree]) -> tuple[int, dict[str, Any], PyTree] | None:
        """Step, notes and state of the newest whole checkpoint, of either kind; `None` if none was ever written.

        Damaged ones that are newer are kept aside, in checkpoints/damaged, and named.

        Args:
          like: the state with the shapes, dtypes and placement that it is read into, from the notes.

        Raises:
          RunError: if there are checkpoints and all are damaged.
        """
        found = sorted(((step, which) for which in KEPT for step in steps_in(self.folder / which)), reverse=True)
        damaged: dict[tuple[int, str], str] = {}
        for step, which in found:
            try:
                notes, state = self._restore(which, step, like)
            except DamagedError as error:
                damaged[step, which] = str(error)
                continue
            if damaged:
                self._set_aside(damaged)
                lost = max(damaged)[0] - step
                say(f"going back to the checkpoint of step {step} in {self.folder / which}; steps to repeat: {lost}")
            return step, notes, state
        if not damaged:
            return None
        (step, which), reason = next(iter(damaged.items()))
        raise RunError(
            f"none of the {len(damaged)} checkpoints in {self.folder} is whole, of the newest, {which}/{step}, "
            f"{reason}: put back a copy, or start anew with --overwrite"
        )

    def has(self, which: str, step: int) -> bool:
        """Whether there is a checkpoint of a step."""
        return step in steps_in(self.folder / which)

    def _restore(
        self, which: str, step: int, like: Callable[[dict[str, Any]], PyTree]
    ) -> tuple[dict[str, Any], PyTree]:
        manager = self._managers[which]
        with _reading():
            found = manager.restore(step, args=ocp.args.Composite(notes=_RestoreNotes()))["notes"]
        notes, expected = open_notes(found)
        with _reading():
            target = ocp.args.StandardRestore(like(notes))
            state = manager.restore(step, args=ocp.args.Composite(state=target))["state"]
        check(state, expected, self.folder / which / str(step))
        return notes, state

    def _set_aside(self, damaged: dict[tuple[int, str], str]) -> None:
        wait_for_all("all have seen which checkpoints are damaged")
        for (step, which), reason in damaged.items():
            source, n = self.folder / which / str(step), 0
            while (aside := self.folder / "damaged" / f"{which}_{step}{f'_{n}' if n else ''}").exists():
                n += 1
            if is_first():
                move(source, aside)
            say(f"the checkpoint {source} is damaged ({reason}): it is kept in {aside}")
        wait_for_all("damaged checkpoints are set aside")
        for manager in self._managers.values():
            manager.reload()

    def wait(self) -> None:
        """Wait until every checkpoint is on disk.

        Raises:
          RunError: where one cannot be written.
        """
        with _writing(self.folder):
            for manager in self._managers.values():
                manager.wait_until_finished()
        self.committed = self.committed or any(steps_in(self.folder / which) for which in KEPT)

    def close(self) -> None:
        """Wait until everything is on disk, and let go of it."""
        try:
            self.wait()
        finally:
            for manager in self._managers.values():
                manager.close()


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order; without those that a kill left half-written."""
    with answering(folder):
        return sorted(ocp.utils.checkpoint_steps(folder)) if is_folder(folder) else []


def open_notes(found: Any) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Notes of a checkpoint and the digests of its arrays; `None` of one that was saved before there were any.

    Raises:
      DamagedError: if they are not what was saved.
    """
    if isinstance(found, dict) and not {"sha256", "digests"} & found.keys():
        return found, None
    try:
        notes = unsealed(found)
        return notes, notes.pop("digests")
    except (ValueError, KeyError) as error:
        raise DamagedError(f"its notes: {error}") from error


def check(tree: PyTree, expected: dict[str, str] | None, where: Path) -> None:
    """See that arrays are those that were saved.

    Raises:
      DamagedError: if some are not; it names them.
    """
    if expected is None:
        say(f"{where} was saved by a version that kept no digests: its arrays are not checked")
    elif wrong := differing(expected, tree):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedError(f"the array {wrong[0]}{more} differs from its SHA-256 digest")


def read_variables(
    path: Path, names: tuple[str, ...] = ("params", "batch_stats")
) -> tuple[dict[str, Any], dict[str, PyTree]]:
    """Notes and some parts of the state of one checkpoint, on one device; their shapes come from the checkpoint.

    Raises:
      DamagedError: if it cannot be read or is not what was saved.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(), notes=ocp.JsonCheckpointHandler())
    with _reading(), ocp.Checkpointer(handler) as checkpointer:
        # The shapes come from the checkpoint, so that no data need be read to know them.
        saved = checkpointer.metadata(path).item_metadata["state"].tree
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            {name: saved[name] for name in names},
        )
        into = ocp.checkpoint_utils.construct_restore_args(like)
        parts = {
            "state": ocp.args.PyTreeRestore(like, restore_args=into, partial_restore=True),
            "notes": ocp.args.JsonRestore(),
        }
        restored = checkpointer.restore(path, args=ocp.args.Composite(**parts))
    notes, expected = open_notes(restored.notes)
    state = dict(restored.state)
    check(state, expected, path)
    return notes, state


@contextmanager
def _reading() -> Iterator[None]:
    # Orbax and TensorStore raise whatever a damaged file makes them trip over.
    try:
        yield
    except Exception as error:
        if "RESOURCE_EXHAUSTED: Out of memory" in str(error):
            raise
        if is_lost(error):
            raise RunError(f"a checkpoint cannot be read, as its bucket fails: {first_line(error)}") from error
        raise DamagedError(f"{type(error).__name__}: {first_line(error)}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RunError(
            f"a checkpoint cannot be written into {folder}: {first_line(error)}. Once it can, --resume goes on from "
            "the newest that is there"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says first, in at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
