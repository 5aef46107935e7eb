"""Training images on every device, in parts, or streamed from the host: the same batches, whatever interrupts them."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.train import Options, train
from experiments.training.config import Config
from experiments.training.devices import Devices
from experiments.training.feed import UNKNOWN, chosen, stream
from experiments.training.models import ContinuousNetSettings
from experiments.training.progress import Interrupted
from experiments.training.run import load_run

CONFIG = Config(
    model=ContinuousNetSettings(widths=(2,)), limit=96, batch_size=8, crop_pad=1, flip=False, epochs=1,
    decay_epochs=(),
)  # fmt: skip
PROGRAM = """
import jax, numpy as np
from benchmarks.collectives import find_collectives
from experiments.training.devices import Devices
from experiments.training.feed import in_parts, pick

devices = Devices.take(4)
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (10, 3, 3, 1)).astype(np.uint8), np.arange(10, dtype=np.int32)
parts = devices.put([in_parts(array, 4) for array in (images, labels)], devices.spread())
assert [shard.data.shape[0] for shard in parts[0].addressable_shards] == [3] * 4
index = devices.put(np.array([9, 0, 3, 3, 7, 1, 8, 2], np.int32), devices.spread())
program = jax.jit(pick, static_argnums=(3, 4)).lower(*parts, index, "spread", devices.mesh).compile()
for got, all_ in zip(program(*parts, index), (images, labels)):
    assert got.sharding.is_equivalent_to(devices.spread(), got.ndim)
    np.testing.assert_array_equal(got, all_[np.asarray(index)])
# Numbers, images and labels of the batch, and not the set.
assert find_collectives(program.as_text())["outside loops"]["bytes"] <= 2 * 8 * (4 + 9 + 4)
print("the same")
"""


def test_parts_of_a_set_give_the_batches_of_the_whole():
    root = str(Path(__file__).parents[3])
    flags = "--xla_force_host_platform_device_count=4"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]


def test_a_stream_has_the_order_of_its_epoch_from_any_step_on():
    devices, rng = Devices.take(1), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 2, 2, 3)).astype(np.uint8), np.arange(20, dtype=np.int32)
    order = rng.permutation(20)[:18].reshape(6, 3)
    for start in (0, 4):
        batches = list(stream(images, labels, order, devices, start=start, ahead=2))
        np.testing.assert_array_equal([y for _, y in batches], order[start:])
        np.testing.assert_array_equal([x for x, _ in batches], images[order[start:]])


def test_the_first_feed_that_fits_is_taken():
    devices = Devices.take(1)
    sized = lambda n: jax.ShapeDtypeStruct((n, 1), "uint8")
    assert chosen("auto", sized(UNKNOWN), devices) == "whole"
    assert chosen("auto", sized(UNKNOWN + 1), devices) == "stream"
    assert chosen("spread", sized(1), devices) == "spread"
    with pytest.raises(ValueError, match="steps_per_dispatch=0: expected 1 beside --feed stream"):
        Options(feed="stream", steps_per_dispatch=0)


@pytest.mark.slow
def test_a_streamed_run_stopped_in_an_epoch_goes_on_as_the_run_of_the_whole_set(tmp_path):
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    options = Options(checkpoint_seconds=0.0, quiet=True)
    train(CONFIG, Options(quiet=True), whole)

    def stop():
        latest = streamed / "checkpoints" / "latest"
        for _ in range(60_000):
            if steps := [int(path.name) for path in latest.glob("*") if path.name.isdigit()]:
                # Later it might be over, and nobody would hear it.
                return os.kill(os.getpid(), signal.SIGTERM) if max(steps) < 9 else None
            time.sleep(0.01)

    watcher = threading.Thread(target=stop, daemon=True)
    watcher.start()
    with pytest.raises(Interrupted):
        train(CONFIG, dataclasses.replace(options, feed="stream"), streamed)
    watcher.join()
    train(CONFIG, dataclasses.replace(options, feed="stream", resume=True), streamed)
    (_, _, ours, notes), (_, _, theirs, _) = load_run(streamed), load_run(whole)
    assert notes["step"] == 12
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
