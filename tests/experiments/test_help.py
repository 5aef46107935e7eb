"""The help of every command fits the terminal, lists its keys and answers mistakes."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

from experiments import configs
from experiments.configs.keys import GROUPS
from experiments.records.command import folded
from experiments.train import Options
from experiments.training.config import Config

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if re.search(r"[^.]command_line\((Options|Command)", path.read_text())
)
WIDTH = 80


def helped(capsys, monkeypatch, called, *args):
    """What a command prints that is asked for help in a narrow terminal."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr(sys, "argv", ["python -m", *args, "--help"])
    with pytest.raises(SystemExit) as stop:
        called()
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_all_commands_are_found():
    assert {"experiments.quickstart", "experiments.aca.gradient_report", "experiments.results.__main__"} <= {*COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal(name, capsys, monkeypatch):
    module = importlib.import_module(name)
    text = helped(capsys, monkeypatch, module.main)
    # Usage lines are to be copied, and tyro breaks none.
    lines = [line for line in text.splitlines() if not line.startswith("usage:")]
    assert [line for line in lines if len(line) > WIDTH] == []
    assert (module.__doc__ or "").split(maxsplit=1)[0] == text.split(maxsplit=1)[0]
    assert re.search(r"\b(?:[0-9.]+ s|(?:second|minute|hour)s?|min)\b", module.__doc__, re.IGNORECASE)
    described = re.findall(r"--([a-z0-9-]+)", text)
    options = getattr(module, "Options", None) or module.Command
    for field in dataclasses.fields(options):
        if not dataclasses.is_dataclass(field.default_factory) and "Positional" not in str(field.type):
            assert field.name.replace("_", "-") in described


@pytest.mark.parametrize("config", ["", "digits", "node18_small", "anodev2_resnet4_configuration_2"])
def test_help_of_training_fits_and_groups_all_keys(config, capsys, monkeypatch):
    args = [config] if config else []
    text = helped(capsys, monkeypatch, lambda: configs.command_line(Options, "python -m experiments.train"), *args)
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("usage:")]
    assert [line for line in lines if len(line) > WIDTH] == []
    if not config:
        assert all(name in text for name in configs.CONFIGS)
        return
    titles = [line for line in text.splitlines() if line in (*GROUPS, "other")]
    assert titles == [*GROUPS, *["other"] * ("other" in titles)]
    spelled = re.findall(r"^ +(--[a-z0-9.-]+)", text, re.MULTILINE)
    model = type(configs.CONFIGS[config].model)
    for prefix, kind in (("", Config), ("", Options), ("model.", model)):
        for field in dataclasses.fields(kind):
            if field.name != "model":
                assert spelled.count(f"--{prefix}{field.name.replace('_', '-')}") == 1
    assert "Share of the training images held out for" in text
    assert "[0.1]" in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["digits", "--flip", "True"],
            "--flip takes no value, and was given 'True': --flip says yes, --no-flip says no",
        ),
        (["digits", "--quiet=false"], "--quiet says yes, --no-quiet says no"),
        (["digits", "--model.skip_init", "no"], "--model.skip-init says yes, --model.no-skip-init says no"),
        (["digts"], "there is no config 'digts', did you mean digits?"),
    ],
)
def test_mistakes_get_an_answer(args, says):
    with pytest.raises(SystemExit) as stop:
        configs.command_line(Options, "python -m experiments.train", args)
    assert says in str(stop.value.code)


def test_folded_docstrings_keep_commands_apart():
    text = folded(
        """Prints a sentence that is too long for
        a line.

            python -m a.command --with many --options 1 2 3    what it does
            python -m a.command

        - an item of a list, long enough
          for two lines
        - another
        """,
        40,
    )
    assert text.splitlines() == [
        "Prints a sentence that is too long for a",
        "line.",
        "",
        "    python -m a.command --with many",
        "        --options 1 2 3",
        "        what it does",
        "    python -m a.command",
        "",
        "- an item of a list, long enough for two",
        "  lines",
        "- another",
    ]
