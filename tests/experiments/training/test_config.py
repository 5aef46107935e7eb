"""Settings: their ranges, how they are written and read, and the command line in front of them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re

import pytest

from experiments import configs
from experiments.train import Options
from experiments.training.config import Config, differences, flat
from experiments.training.models import (
    ARCHITECTURES,
    Anodev2Settings,
    ContinuousNetSettings,
    Node18Settings,
    OwnSettings,
    ResNetSettings,
)
from settings import arguments, changed


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("adapt", "often", "none, step, settled_step, tolerance"),
        ("w0_penalty", 1e-3, "beside model.evolution"),
        ("p_penalty", math.nan, "beside model.evolution"),
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("crop_pad", -1, "at least 0"),
        ("seed", -1, "from 0 to 2147483647"),
        ("weight_decay", -1e-4, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", math.nan, "above 0"),
        ("learning_rate", math.inf, "finite"),
        ("validation_fraction", 1.0, r"in \[0, 1\)"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("decay_factor", 0.0, r"in \(0, 1\]"),
        ("limit", 127, "batch_size=128"),
        ("limit", 0, "batch_size=128"),
        ("decay_epochs", (30, 30), "rising epochs"),
        ("refine_epochs", (0, 1), "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key, value, allowed):
    with pytest.raises(ValueError, match=f"{key}=.*expected .*{allowed}"):
        Config(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("basis", "wavelet", "piecewise_constant"),
        ("gradient", "adjoint", "direct"),
        ("order", "relu", "bn-relu-conv"),
        ("scheme", "rk5", "rk4, rk4_38"),
        ("compute_dtype", "int8", "bfloat16"),
        ("n_basis", 0, "at least 1"),
        ("n_steps", 0, "at least 1"),
        ("max_steps", 0, "at least 1"),
        ("rtol", 0.0, "above 0"),
        ("atol", 1e-3, "None without rtol"),
        ("evolution_steps", 3, "beside an evolution"),
        ("epsilon", -1.0, "above 0"),
        ("widths", (), "one width or more"),
        ("widths", (8, 0), "at least 1"),
    ],
)
def test_a_value_of_an_architecture_out_of_range_is_refused_by_name(key, value, allowed):
    with pytest.raises(ValueError, match=rf"model\.{key}=.*expected .*{allowed}"):
        ContinuousNetSettings(**{key: value})


def some(kind):
    """Settings of an architecture, that of the user's own as small_nets has it."""
    return kind("small_nets:make") if kind is OwnSettings else kind()


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_an_architecture_has_the_settings_that_it_reads_and_a_builder(kind):
    """No setting without a text, which is its help, and a network of so many classes from the defaults."""
    source = "".join(inspect.getsource(part) for part in kind.__mro__ if dataclasses.is_dataclass(part))
    for field in dataclasses.fields(kind):
        assert re.search(rf'^    {field.name}: [^\n]+\n    """', source, re.MULTILINE), field.name
    assert some(kind).build(7).n_classes == 7
    assert "n_blocks" not in {field.name for field in dataclasses.fields(ContinuousNetSettings)}


def test_training_asks_an_architecture_for_no_more_than_it_can():
    with pytest.raises(ValueError, match=r"refine_epochs=\(2,\): expected none for a resnet"):
        Config(model=ResNetSettings(), refine_epochs=(2,))
    with pytest.raises(ValueError, match=r"refine_epochs=.*model\.rtol"):
        Config(model=ContinuousNetSettings(scheme="dopri5", rtol=1e-3), refine_epochs=(2,))
    with pytest.raises(ValueError, match=r"w0_penalty=.*beside model\.evolution"):
        Config(model=ResNetSettings(), w0_penalty=1e-3)


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_an_architecture_is_regularized_where_its_blocks_integrate_quantities(kind):
    assert hasattr(some(kind).build(7), "quantities") == kind.INTEGRATES
    if not kind.INTEGRATES:
        with pytest.raises(ValueError, match=r"regularize=\('kinetic=1',\): expected none for a "):
            Config(model=some(kind), regularize=["kinetic=1"])
        return
    config = Config(model=kind(), regularize=["kinetic=1"])
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_evolution_that_nothing_would_read_is_refused():
    with pytest.raises(ValueError, match="evolution_steps=None: expected at least 2 for evolution='configuration_1'"):
        ContinuousNetSettings(evolution="configuration_1")
    assert ContinuousNetSettings(evolution="configuration_1", evolution_steps=2).n_steps == 1
    assert ContinuousNetSettings(evolution="configuration_2", n_steps=2).evolution_steps is None
    assert ContinuousNetSettings(evolution="still").n_steps == 1


def test_level_counts_the_refinements_before_an_epoch():
    config = Config(epochs=9, refine_epochs=(2, 3, 7, 20))
    assert [config.level(epoch) for epoch in range(9)] == [0, 0, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_every_named_config_survives_json_and_can_key_a_cache(name):
    config = configs.CONFIGS[name]
    again = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert hash(again) == hash(config)


# The config of manifest.json as 0.1.0 wrote it: every key of every architecture, and no version.
STORED = """{"dataset": "cifar10", "data_dir": null, "limit": 5000, "validation_fraction": 0.02, "crop_pad": 4,
"flip": true, "architecture": "node18", "widths": [8, 16, 32, 64], "n_blocks": 1, "basis": "piecewise_constant",
"n_basis": 1, "scheme": "heun_euler", "n_steps": 1, "evolution": "none", "evolution_steps": null, "rtol": 0.01,
"atol": null, "max_steps": 4096, "adapt": "none", "adapt_max_steps": 64, "w0_penalty": 0.0, "p_penalty": 0.0,
"epsilon": 1.0, "order": "bn-relu-conv", "skip_init": true, "gradient": "aca", "compute_dtype": null, "epochs": 12,
"batch_size": 50, "learning_rate": 0.05, "decay_epochs": [7, 10], "decay_factor": 0.1, "momentum": 0.9,
"weight_decay": 0.0005, "refine_epochs": [], "seed": 0}"""


def test_a_config_stored_by_0_1_0_is_read():
    record = json.loads(STORED)
    assert Config.from_json(record) == configs.CONFIGS["node18_small"]
    twin = {"architecture": "continuous_net", "scheme": "euler", "rtol": None, "n_steps": 4, "refine_epochs": [3]}
    model = ContinuousNetSettings(widths=(8, 16, 32, 64), scheme="euler", n_steps=4, gradient="aca")
    assert Config.from_json(record | twin).model == model
    evolving = {"architecture": "resnet4", "rtol": None, "evolution": "configuration_1", "n_steps": 5}
    assert Config.from_json(record | evolving).model == Anodev2Settings(
        network="resnet4", scheme="heun_euler", n_steps=5, gradient="aca", evolution="configuration_1"
    )
    # The first runs had fewer keys.
    assert Config.from_json({"dataset": "digits", "widths": [2]}) == Config(model=ContinuousNetSettings(widths=(2,)))


def test_stored_configs_have_a_version_missing_keys_are_defaults_and_unknown_ones_are_named():
    record = Config().to_json()
    assert record["version"] == 2
    assert record["model"]["architecture"] == "continuous_net"
    assert Config.from_json({"version": 2, "epochs": 3, "model": {"architecture": "resnet"}}) == Config(
        epochs=3, model=ResNetSettings()
    )
    for wrong, says in (
        (record | {"epoch": 3}, "unknown keys.*: epoch$"),
        (record | {"model": record["model"] | {"n_blocks": 3}}, r"unknown keys.*: model\.n_blocks$"),
        (record | {"model": {"architecture": "transformer"}}, "'transformer'.*one of continuous_net, resnet"),
        (json.loads(STORED) | {"width": 3, "network": "alexnet"}, "unknown keys.*: network, width$"),
        (record | {"version": 3}, "version=3.*at most 2"),
    ):
        with pytest.raises(ValueError, match=says):
            Config.from_json(wrong)


def test_differences_have_the_names_of_the_command_line():
    changes = {"epochs": 3, "model": ContinuousNetSettings(widths=(2,))}
    assert differences(Config(), Config(**changes)) == [
        "epochs was 100, is 3",
        "model.widths was [16, 32, 64], is [2]",
    ]
    assert "model was 'continuous_net', is 'resnet'" in differences(Config(), Config(model=ResNetSettings()))


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_every_named_config_says_how_to_run_it(name):
    text = configs.MODULES[name].__doc__
    assert f"\n    python -m experiments.train {name}" in text


def read(*args):
    return configs.command_line(Options, "train", list(args))


def test_the_command_line_overrides_a_named_config_and_nothing_else():
    name, config, options = read("digits", "--model.widths", "2", "4", "--limit", "64", "--no-flip", "--resume")
    assert config == changed(configs.CONFIGS["digits"], widths=(2, 4), limit=64, flip=False)
    assert (name, options) == ("digits", Options(resume=True))


def test_the_command_line_takes_another_architecture_with_its_own_defaults():
    _, config, _ = read("digits", "--model", "node18", "--model.n-blocks", "2", "--epochs", "3")
    digits = configs.CONFIGS["digits"]
    assert config == dataclasses.replace(digits, model=Node18Settings(n_blocks=2), epochs=3, refine_epochs=())


def test_a_network_of_the_users_own_is_asked_for_by_its_function():
    _, config, _ = read("digits", "--model", "small_nets:make", "--model.args", "width=3", "--optimizer", "adamw")
    digits, own = configs.CONFIGS["digits"], OwnSettings("small_nets:make", ("width=3",))
    assert config == dataclasses.replace(digits, model=own, refine_epochs=(), optimizer="adamw")
    record = json.loads(json.dumps(config.to_json()))
    assert record["model"]["make"] == "small_nets:make"
    assert Config.from_json(record) == config
    assert hash(Config.from_json(record)) == hash(config)


@pytest.mark.parametrize("name", ["digits", "node18_small", "resnet18_cifar10", "anodev2_alexnet_configuration_1"])
def test_any_config_can_be_asked_for_on_the_command_line(name):
    assert read("digits", *arguments(configs.CONFIGS[name]))[1] == configs.CONFIGS[name]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["digits", "--model.n-steps", "0"], ["model.n_steps=0", "at least 1"]),
        (["digits", "--model.scheme", "rk5"], ["model.scheme='rk5'", "rk4_38"]),
        (["digits", "--model.basis", "wavelet"], ["--model.basis", "'legendre'"]),
        (["digits", "--epochs", "many"], ["--epochs", "'many'"]),
        (["digits", "--checkpoint-seconds", "-1"], ["checkpoint_seconds=-1", "at least 0"]),
        (["digits", "--steps-per-dispatch", "-1"], ["steps_per_dispatch=-1", "at least 0"]),
        (["digits", "--foo", "1"], ["--foo", "--model.widths", "--run-dir"]),
        (["digits", "--nsteps", "3"], ["--nsteps", "did you mean --model.n-steps?"]),
        (["digits", "--widths", "3"], ["--widths", "did you mean --model.widths?"]),
        (["digits", "--model", "resnt"], ["'resnt'", "resnet18", "PACKAGE.MODULE:FUNCTION"]),
        (["digits", "--model", "own"], ["'own'", "PACKAGE.MODULE:FUNCTION"]),
        (["digits", "--model", "a/b.py:make"], ["model.make='a/b.py:make'", "my_package.my_module:make"]),
        (["digits", "--model", "a:b", "--model.args", "width"], ["model.args=('width',)", "NAME=VALUE"]),
        (["digits", "--epochs", "3", "--model", "resnet"], ["--model", "directly after the name of a config"]),
        (["imagenet"], ["'imagenet'", "digits", "cifar10"]),
        (["digit_euler"], ["'digit_euler'", "did you mean digits_euler?"]),
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
    assert all(f"{name} " in listed for name in configs.CONFIGS)
    with pytest.raises(SystemExit) as stop:
        read("digits", "--help")
    assert stop.value.code == 0
    keys = capsys.readouterr().out
    names = flat(configs.CONFIGS["digits"]).keys() - {"version", "model"}
    assert all(f"--{name.replace('_', '-')}" in keys for name in names)
