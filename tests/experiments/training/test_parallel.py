"""A batch over devices with local statistics and local steps: what that promises, and what is exchanged."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.training.config import Config
from experiments.training.models import Node18Settings

CONFIG = Config(
    model=Node18Settings(widths=(2,), scheme="heun_euler", rtol=1e-4, gradient="aca"),
    batch_size=8, batch_statistics="local", step_control="local",
)  # fmt: skip
PROGRAM = """
import json, sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.collectives import find_collectives
from experiments.training import models
from experiments.training.config import Config
from experiments.training.devices import Devices
from experiments.training.parallel import slope_of_batch
from experiments.training.optimizers import make_optimizer
from experiments.training.steps import init_state

config, mesh = Config.from_json(json.loads(sys.argv[1])), Devices.take(2).mesh
net = models.build(config, 3)
state = init_state(net, make_optimizer(config, 1), jnp.zeros((1, 8, 8, 1)), 0)
# The second half takes more steps.
x = jax.random.normal(jax.random.key(0), (8, 8, 8, 1)).at[4].multiply(50)
y, key = jnp.arange(8) % 3, jax.random.key(1)
slope = jax.jit(slope_of_batch, static_argnums=(0, 1, 2))
program = slope.lower(config, net, mesh, state, x, y, key).compile()
gradient, (loss, correct, stats, solution) = program(state, x, y, key)
halves = [slope(config, net, None, state, x[half], y[half], key) for half in (slice(0, 4), slice(4, 8))]
mean = lambda *leaves: sum(leaves) / len(leaves)
close = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6)
jax.tree.map(close, gradient, jax.tree.map(mean, halves[0][0], halves[1][0]))
jax.tree.map(close, stats, jax.tree.map(mean, halves[0][1][2], halves[1][1][2]))
close(loss, mean(*(half[1][0] for half in halves)))
assert int(correct) == sum(int(half[1][1]) for half in halves)
counts = [half[1][3]["ode1_1"]["n_accepted"] for half in halves]
assert counts[0] != counts[1], counts
assert solution["ode1_1"]["n_accepted"] == max(counts)
found = find_collectives(program.as_text())
assert set(found) == {"outside loops"}, found
sizes = [leaf.size * 4 for leaf in jax.tree.leaves((gradient, stats))]
assert found["outside loops"]["collectives"] <= 2 and found["outside loops"]["bytes"] <= sum(sizes) + 32, found
print("as promised")
"""


@pytest.mark.slow
def test_local_is_the_mean_of_what_devices_compute_alone_by_one_reduction():
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PROGRAM, json.dumps(CONFIG.to_json())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout.strip() == "as promised", done.stderr[-2000:]


def test_statistics_of_all_and_steps_of_each_are_refused():
    with pytest.raises(ValueError, match=r"step_control='local': expected global beside model\.rtol"):
        dataclasses.replace(CONFIG, batch_statistics="global")
    fixed = dataclasses.replace(CONFIG, model=Node18Settings(rtol=None), batch_statistics="global")
    assert fixed.step_control == "local"
    with pytest.raises(ValueError, match="batch_statistics='mine': expected one of global, local"):
        dataclasses.replace(CONFIG, batch_statistics="mine")
