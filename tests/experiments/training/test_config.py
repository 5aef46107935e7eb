"""Settings: their ranges, how they are written and read, and the command line in front of them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from experiments import configs
from experiments.train import Options
from experiments.training.config import Config


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("architecture", "transformer", "continuous_net, resnet"),
        ("basis", "wavelet", "piecewise_constant"),
        ("gradient", "adjoint", "direct"),
        ("order", "relu", "bn-relu-conv"),
        ("scheme", "rk5", "rk4, rk4_38"),
        ("compute_dtype", "int8", "bfloat16"),
        ("n_basis", 0, "at least 1"),
        ("n_steps", 0, "at least 1"),
        ("n_blocks", 0, "at least 1"),
        ("max_steps", 0, "at least 1"),
        ("rtol", 0.0, "above 0"),
        ("atol", 1e-3, "None without rtol"),
        ("adapt", "often", "none, step, settled_step, tolerance"),
        ("evolution_steps", 3, "beside an evolution"),
        ("w0_penalty", 1e-3, "beside an evolution"),
        ("p_penalty", math.nan, "beside an evolution"),
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("crop_pad", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("weight_decay", -1e-4, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", math.nan, "above 0"),
        ("learning_rate", math.inf, "finite"),
        ("epsilon", -1.0, "above 0"),
        ("validation_fraction", 1.0, r"in \[0, 1\)"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("decay_factor", 0.0, r"in \(0, 1\]"),
        ("limit", 127, "batch_size=128"),
        ("limit", 0, "batch_size=128"),
        ("widths", (), "one width or more"),
        ("widths", (8, 0), "at least 1"),
        ("decay_epochs", (30, 30), "rising epochs"),
        ("refine_epochs", (0, 1), "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key, value, allowed):
    with pytest.raises(ValueError, match=f"{key}=.*expected .*{allowed}"):
        Config(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("refine_epochs", (2,)), ("compute_dtype", "bfloat16"), ("evolution", "still")]
)
def test_a_resnet_refuses_what_it_would_not_read(key, value):
    with pytest.raises(ValueError, match=f"{key}=.*resnet"):
        Config(architecture="resnet", **{key: value})


def test_an_evolution_that_nothing_would_read_is_refused():
    with pytest.raises(ValueError, match="evolution_steps=None: expected at least 2 for evolution='configuration_1'"):
        Config(evolution="configuration_1")
    assert Config(evolution="configuration_1", evolution_steps=2).n_steps == 1
    assert Config(evolution="configuration_2", n_steps=2).evolution_steps is None
    assert Config(evolution="still").n_steps == 1


def test_level_counts_the_refinements_before_an_epoch():
    config = Config(epochs=9, refine_epochs=(2, 3, 7, 20))
    assert [config.level(epoch) for epoch in range(9)] == [0, 0, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_every_named_config_survives_json_and_can_key_a_cache(name):
    config = configs.CONFIGS[name]
    again = Config.from_json(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_every_named_config_says_how_to_run_it(name):
    text = configs.MODULES[name].__doc__
    assert f"\n    python -m experiments.train {name}" in text


def read(*args):
    return configs.command_line(Options, "train", list(args))


def test_the_command_line_overrides_a_named_config_and_nothing_else():
    name, config, options = read("digits", "--widths", "2", "4", "--limit", "64", "--no-flip", "--resume")
    changed = dataclasses.replace(configs.CONFIGS["digits"], widths=(2, 4), limit=64, flip=False)
    assert (name, config, options) == ("digits", changed, Options(resume=True))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["digits", "--n-steps", "0"], ["n_steps=0", "at least 1"]),
        (["digits", "--scheme", "rk5"], ["scheme='rk5'", "rk4_38"]),
        (["digits", "--basis", "wavelet"], ["--basis", "'legendre'"]),
        (["digits", "--epochs", "many"], ["--epochs", "'many'"]),
        (["digits", "--checkpoint-seconds", "-1"], ["checkpoint_seconds=-1", "at least 0"]),
        (["digits", "--steps-per-dispatch", "-1"], ["steps_per_dispatch=-1", "at least 0"]),
        (["digits", "--foo", "1"], ["--foo", "--widths", "--run-dir"]),
        (["digits", "--nsteps", "3"], ["--nsteps", "did you mean --n-steps?"]),
        (["imagenet"], ["'imagenet'", "digits", "cifar10"]),
    ],
)
def test_what_the_command_line_refuses_it_names_with_what_is_allowed(args, says, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*args)
    assert stop.value.code not in (0, None)
    printed = capsys.readouterr()
    text = f"{printed.out}{printed.err}{stop.value.code}"
    assert all(part in text for part in says), text


def test_help_names_the_configs_and_then_their_keys(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in configs.CONFIGS)
    with pytest.raises(SystemExit) as stop:
        read("digits", "--help")
    assert stop.value.code == 0
    keys = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in keys for field in dataclasses.fields(Config))
