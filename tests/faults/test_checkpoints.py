"""Damaged checkpoints: never other arrays than were saved, and the newest whole one where there is one.

Runs are of a state of two arrays, so that no program is compiled.
"""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.records.digests import differing, digest, digests, sealed, unsealed, write_digest
from experiments.records.files import RunError, read_manifest, read_metrics, write_manifest
from experiments.training.checkpoints import DamagedError, read_variables
from experiments.training.config import Config
from experiments.training.run import Run, load_run

CONFIG = Config(epochs=3)


def state_of(step):
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(4, 5)), "float32")
    return {"params": {"kernel": kernel, "low": kernel.astype("bfloat16")}, "step": jnp.int32(step)}


def like(notes):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state_of(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with the steps 2 and 3 as latest, and 1 as best."""
    return saved_run(tmp_path_factory.mktemp("runs") / "run")


def saved_run(folder):
    """The same in a folder."""
    run = Run.start(folder, CONFIG, resume=False, overwrite=False)
    history = []
    for step in (1, 2, 3):
        history.append({"step": step, "epoch": step, "train_loss": 1 / step})
        notes = {"level": 0, "history": list(history)}
        if step == 1:
            run.save("best", step, state_of(step), notes)
        run.save("latest", step, state_of(step), notes)
        run.log(history[-1])
    run.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def resumed(folder):
    """What a resume finds: step, notes and state."""
    run = Run.start(folder, CONFIG, resume=True, overwrite=False)
    try:
        found = run.newest(like)
        if found is not None:
            run.forget_after(found[0], found[1]["history"])
        return found
    finally:
        run.close()


def assert_is(found, step):
    assert found is not None
    assert found[0] == step
    assert len(found[1]["history"]) == step
    jax.tree.map(np.testing.assert_array_equal, found[2], state_of(step))


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)


def test_a_digest_follows_bytes_shape_and_dtype():
    x = np.arange(6, dtype="float32")
    assert digest(x) == digest(jnp.asarray(x)) == digest(np.repeat(x, 2)[::2])
    assert len({digest(y) for y in (x, x.reshape(2, 3), x.view("int32"), x + 1, jnp.asarray(x, "bfloat16"))}) == 5
    tree = {"a": x, "b": [x]}
    assert differing(digests(tree), tree) == []
    assert differing(digests(tree), {"b": [x + 1]}) == ["b/0"]
    record = {"level": 0, "best": 0.1}
    assert unsealed(json.loads(json.dumps(sealed(record)))) == record
    with pytest.raises(ValueError, match="SHA-256"):
        unsealed(sealed(record) | {"level": 1})


def test_an_exported_file_has_its_digest_beside_it(tmp_path):
    (tmp_path / "model").write_bytes(b"abc")
    assert write_digest(tmp_path / "model").startswith("ba7816bf")
    assert (tmp_path / "model.sha256").read_text().endswith("  model\n")


def test_what_is_saved_is_restored_and_can_be_read_by_itself(folder):
    assert_is(resumed(folder), 3)
    notes, variables = read_variables(folder / "checkpoints" / "latest" / "3", ("params",))
    assert notes["level"] == 0
    jax.tree.map(np.testing.assert_array_equal, variables["params"], state_of(3)["params"])
    assert read_manifest(folder)["saved"] is True


DAMAGES = {
    "no data": lambda step: [shutil.rmtree(path) for path in list((step / "state").rglob("d"))],
    "no notes": lambda step: shutil.rmtree(step / "notes"),
    "notes of another": lambda step: (step / "notes" / "metadata").write_text('{"level": 3, "sha256": "0"}'),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "truncated manifest": lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b"\x0c"),
    "zeroed data": lambda step: [path.write_bytes(bytes(99)) for path in step.rglob("d/*")],
    "empty": lambda step: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in list(step.iterdir())],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_resume_goes_back_to_the_newest_whole_checkpoint_says_so_and_keeps_the_other_aside(damage, folder, capfd):
    step = folder / "checkpoints" / "latest" / "3"
    DAMAGES[damage](step)
    assert_is(resumed(folder), 2)
    said = capfd.readouterr().err
    assert f"{step} is damaged" in said
    assert "step 2" in said
    assert "steps to repeat: 1" in said
    assert (folder / "checkpoints" / "damaged" / "latest_3").is_dir()
    assert not step.exists()
    assert [record["step"] for record in read_metrics(folder)] == [1, 2]


def test_with_nothing_whole_nothing_is_moved_and_nothing_starts_anew(folder):
    for step in ("latest/2", "latest/3", "best/1"):
        shutil.rmtree(folder / "checkpoints" / step / "state")
    before = sorted(folder.rglob("*"))
    with pytest.raises(RunError, match=r"none of the 3 checkpoints .* latest/3,.*--overwrite"):
        resumed(folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/*/*"])
def test_checkpoints_that_were_deleted_are_missed(gone, folder):
    for path in list(folder.glob(gone)):
        shutil.rmtree(path)
    with pytest.raises(RunError, match=r"are gone: .*--overwrite"):
        resumed(folder)


def test_best_is_gone_back_to_where_no_latest_is_left(folder):
    for step in ("2", "3"):
        shutil.rmtree(folder / "checkpoints" / "latest" / step / "notes")
    assert_is(resumed(folder), 1)


def test_lost_and_damaged_lines_of_metrics_are_said_and_written_again(folder, capfd):
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    for damaged in (whole[: len(whole) // 2].encode(), b"\xff\x00\n" + whole.encode()[40:], b"[1]\n", b""):
        path.write_bytes(damaged)
        assert_is(resumed(folder), 3)
        assert path.read_text() == whole
        assert "lines are lost or differ, and are written from the checkpoint" in capfd.readouterr().err
    shutil.rmtree(folder / "tensorboard")
    (folder / "tensorboard").write_text("no folder")
    assert_is(resumed(folder), 3)
    assert "tensorboard is not a folder" in capfd.readouterr().err


def flips(folder, n_trials, seed):
    """Flip one bit of the newest checkpoint, resume, and count what came of it."""
    rng, found = np.random.default_rng(seed), {"right": 0, "went back": 0}
    step = folder / "checkpoints" / "latest" / "3"
    for path in rng.choice(np.array(files_of(step), dtype=object), n_trials):
        again = shutil.copytree(folder, folder.with_name("flipped"))
        flip(again / path.relative_to(folder), int(rng.integers(8 * path.stat().st_size)))
        restored = resumed(again)
        assert_is(restored, restored[0])
        assert restored[0] in (2, 3)
        found["right" if restored[0] == 3 else "went back"] += 1
        shutil.rmtree(again)
    return found


def test_a_flipped_bit_never_restores_other_arrays(folder):
    assert sum(flips(folder, 12, seed=0).values()) == 12


@pytest.mark.slow
def test_many_flipped_bits_never_restore_other_arrays(folder):
    found = flips(folder, 500, seed=1)
    assert found["went back"] > 100


def test_what_to_do_about_a_damaged_checkpoint_follows_from_where_the_run_came_from(folder):
    shutil.rmtree(folder / "checkpoints" / "latest" / "3" / "state")
    with pytest.raises(RunError, match=r"latest/3 is damaged: .*--resume goes back"):
        load_run(folder)
    write_manifest(folder, read_manifest(folder) | {"parent": {"run": "../.."}})
    with pytest.raises(RunError, match=r"latest/3 is damaged: .*compress the run that it came from once more"):
        load_run(folder)


def test_an_array_that_was_changed_by_a_whole_write_is_named(folder):
    notes = folder / "checkpoints" / "latest" / "3" / "notes" / "metadata"
    record = json.loads(notes.read_text())
    del record["sha256"]
    record["digests"]["params/kernel"] = "0" * 64
    notes.write_text(json.dumps(sealed(record)))
    with pytest.raises(DamagedError, match="the array params/kernel differs from its SHA-256 digest"):
        read_variables(notes.parents[1], ("params",))
