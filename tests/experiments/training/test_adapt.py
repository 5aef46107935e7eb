"""Adaptation inside the training step: where it starts, what it does at a check, and that nothing compiles again."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train as loop
from experiments.ott import programs
from experiments.ott.tasks import TASKS
from experiments.records.files import read_metrics
from experiments.training import adapt, models
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings, ResNetSettings
from experiments.training.run import load_run
from ode_nets import ACA, Adaptive, FixedStep
from ode_nets.tableaus import get_tableau
from settings import changed

CONFIG = Config(
    limit=96,
    batch_size=8,
    crop_pad=1,
    flip=False,
    model=ContinuousNetSettings(widths=(2,), scheme="euler", n_steps=4),
    epochs=5,
    decay_epochs=(),
    adapt="step",
    adapt_max_steps=16,
)
ADAPTIVE = {"scheme": "fehlberg21", "rtol": 1e-2, "gradient": "aca", "adapt": "tolerance"}


@lru_cache
def made():
    net, images = models.build(CONFIG, 3), jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    return net, jax.jit(net.init)(jax.random.key(1), images), images


def test_a_field_that_starts_at_zero_starts_at_the_steps_of_the_config():
    net, variables, images = made()
    begin = jax.jit(lambda variables: adapt.begin(CONFIG, net, variables, images)["value"])
    assert float(begin(variables)) == 0.25
    # Once the field moves it has a scale, and Hairer's step is shorter.
    moving = jax.tree.map(lambda leaf: leaf + 1.0, variables)
    assert 1 / CONFIG.adapt_max_steps <= float(begin(moving)) < 0.25


def test_a_tolerance_starts_at_that_of_the_config():
    config = changed(CONFIG, **ADAPTIVE)
    net = models.build(config, 3)
    assert float(adapt.begin(config, net, {}, jnp.zeros(()))["value"]) == pytest.approx(0.01)
    assert adapt.settled(net, 0.05).solver == Adaptive(get_tableau("fehlberg21"), 0.05, 0.05, max_steps=4096)


def test_every_fifty_steps_and_only_then_the_value_is_judged():
    net, variables, images = made()
    labels, start = jnp.zeros(4, int), adapt.controller(CONFIG).init(0.25)._asdict()
    checked = jax.jit(lambda state, step: adapt.checked(CONFIG, net, state, variables, images, labels, step))
    assert float(checked(start, 49)["value"]) == float(start["value"])
    # Under skip-init all solvers agree, so that a trial succeeds.
    after = checked(start, 50)
    assert float(after["value"]) == pytest.approx(1.1 * 0.25)
    assert (int(after["checks"]), int(after["n_shrunk"]), bool(after["on_trial"])) == (1, 0, False)


def test_a_model_that_fails_is_given_smaller_steps():
    """In the loop of training, and in the one of `experiments.ott`."""
    net, variables, images = made()
    broken, labels = jax.tree.map(lambda leaf: leaf * jnp.nan, variables), jnp.zeros(4, int)
    state = adapt.controller(CONFIG).init(0.25)._asdict()
    after = jax.jit(lambda state: adapt.checked(CONFIG, net, state, broken, images, labels, 50))(state)
    assert (float(after["value"]), int(after["n_shrunk"])) == (0.125, 1)
    task = TASKS["landscape"]
    states = programs.begin(task, jax.random.split(jax.random.key(0), 2))
    states["params"]["field"] = jax.tree.map(lambda leaf: leaf.at[1].mul(1e30), states["params"]["field"])
    x, y = jnp.ones((8, 2)), jnp.zeros(8, int)
    gaps = programs.gap(task)(states, x, y, jnp.array([0.5, 0.5]))
    assert np.isfinite(gaps).tolist() == [True, False]


@pytest.mark.parametrize(
    ("scheme", "finer"), [("euler", ("midpoint", 4)), ("midpoint", ("rk4", 4)), ("rk4", ("rk4", 8))]
)
def test_the_judge_has_smaller_error(scheme, finer):
    solver = adapt._finer(FixedStep(scheme, 1), jnp.array(0.25))
    assert isinstance(solver, FixedStep)
    assert (solver.scheme.name, int(solver.n_steps)) == finer


@pytest.mark.parametrize(("scheme", "part"), [("fehlberg21", 5), ("dopri5", 10)])
def test_adaptive_solvers_are_judged_by_dopri5(scheme, part):
    solver = adapt._finer(Adaptive(scheme, 1.0, 1.0), 0.01)
    assert (solver.scheme.name, solver.rtol, solver.atol) == ("dopri5", 0.01 / part, 0.01 / part)


def test_steps_that_are_there_but_not_taken_are_not_differentiated():
    # The naive method is none of fixed steps.
    methods = {name: method for name, method in models.GRADIENTS.items() if name != "naive"}
    made = {name: models.build(changed(CONFIG, gradient=name), 3) for name in methods}
    used = {name: adapt.solved(net, {"value": jnp.array(0.25)}, 16).gradient for name, net in made.items()}
    whole = dict.fromkeys(("direct", "checkpointed_step", "checkpointed_block"), ACA(None))
    assert used == methods | whole
    adaptive = models.build(changed(CONFIG, **(ADAPTIVE | {"gradient": "direct"})), 3)
    assert adapt.solved(adaptive, {"value": 0.1}).gradient == adaptive.gradient


def test_without_adaptation_a_net_is_itself():
    net = models.build(CONFIG, 3)
    assert adapt.solved(net, None) is net
    assert adapt.settled(net, 0.3).solver == FixedStep("euler", 4)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"adapt": "tolerance"}, "adapt="),
        ({"rtol": 1e-2, "scheme": "dopri5"}, "adapt="),
        ({"adapt_max_steps": 0}, "adapt_max_steps=0"),
        (ADAPTIVE | {"atol": 1e-3}, r"adapt=.*model\.atol"),
        ({"refine_epochs": (1,)}, "refine_epochs="),
        ({"model": ResNetSettings()}, "adapt=.*resnet"),
    ],
)
def test_settings_that_cannot_be_adapted_are_named(changes, key):
    with pytest.raises(ValueError, match=key):
        changed(CONFIG, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"adapt": "settled_step"}, ADAPTIVE])
def test_a_run_adapts_in_one_program_and_is_loaded_with_what_it_came_to(changes, tmp_path):
    config, compiled = changed(CONFIG, **changes), loop.train_step._cache_size()
    loop.train(config, loop.Options(quiet=True), tmp_path / "run")
    assert loop.train_step._cache_size() == compiled + 1
    adapted = [record["adapted"] for record in read_metrics(tmp_path / "run")]
    start = 0.25 if "rtol" not in changes else 0.01
    # 12 steps an epoch: the one check comes in the last, and never moves the value by more than its factors.
    assert adapted[:4] == [pytest.approx(start)] * 4
    assert any(adapted[4] == pytest.approx(factor * start) for factor in (0.5, 1.0, 1.1))
    _, net, _, notes = load_run(tmp_path / "run")
    assert notes["adapted"] == adapted[4]
    if "rtol" in changes:
        assert net.solver.rtol == net.solver.atol == adapted[4]
    else:
        assert net.solver.n_steps == int(np.ceil(1 / adapted[4]))
