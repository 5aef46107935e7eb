"""The estimate of a training step on a pod by hand, and the smallest of its programs, compiled."""

import importlib.util
import math
import os

import pytest

from benchmarks import pods


def test_an_estimate_is_what_published_figures_say():
    chip = pods.CHIPS["v5e"]
    record = {"n_devices": 8, "batch_size": 8, "step": {"collectives": 10, "bytes": 9e6}}
    found = pods.estimate(record, "node18", "v5e:2x4")
    # No axis of 2x4 is a ring: 1 + 3 hops there and back, and one link along each.
    assert math.isclose(found["latency"], 10 * 2 * 4e-6)
    assert math.isclose(found["transfer"], 2 * 9e6 / (2 * chip.link))
    ring = pods.estimate(record, "node18", "v5e:16x16")
    assert math.isclose(ring["latency"], 10 * 2 * 16e-6)
    assert math.isclose(ring["transfer"], found["transfer"] / 2)
    assert found["compute"] > 2 * 5.5e8 * 3 / chip.flops
    assert math.isclose(found["efficiency"], found["compute"] / found["seconds"])
    # Six steps of two stages: each evaluated forward and again, with two derivatives.
    passes = [row[4] for row in pods.convolutions("node18")]
    assert passes.count(48.0) == 8


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the compiler is there")
def test_a_missing_compiler_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"pip install 'jax\[tpu\]'"):
        pods.main(pods.Options(out=tmp_path / "pods.json"))


@pytest.mark.slow
def test_a_narrow_node18_on_eight_tpus_reduces_its_gradient_once(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    devices = pods.Devices(pods.mesh_of("v5e:2x4"))
    found = {variant: pods.inspect("node18", variant, devices, 64, scale=16) for variant in ("global", "local")}
    assert set(found["local"]["static"]) == {"outside loops"}
    assert found["local"]["step"]["collectives"] <= 2
    for record in found.values():
        # Narrow nets have many statistics for few weights.
        assert record["step"]["bytes"] <= 1.5 * record["gradient_bytes"]
    forward = found["global"]["static"]["ode1_1 forward"]
    assert forward["collectives"] <= 1 + 2 * 2
