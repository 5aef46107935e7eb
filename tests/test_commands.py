"""Every command that pages and the scripts' docstrings show is one that its parser takes."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from experiments.records import buckets
from experiments.records.files import write_json
from experiments.training.config import Config

ROOT = Path(__file__).parents[1]
COMMAND = r"python -m ((?:experiments|benchmarks)(?:\.\w+)+)([^\n`#&]*)"
SCRIPTS = sorted(path for room in ("experiments", "benchmarks") for path in (ROOT / room).rglob("*.py"))


def documented():
    """Module and arguments of each command, once; what follows two spaces is a remark."""
    pages = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [command for page in pages for command in re.findall(COMMAND, page.read_text())]
    for path in SCRIPTS:
        found += re.findall(rf"^ *{COMMAND}", ast.get_docstring(ast.parse(path.read_text())) or "", re.MULTILINE)
    commands = [(module, *shlex.split(re.split(r"\s{2,}", rest)[0])) for module, rest in found]
    # Called without a config, it lists them.
    return [command for command in dict.fromkeys(commands) if command != ("experiments.train",)]


class Parsed(BaseException):
    """The command line has been read; the rest of the script is not this test's."""


def stopping(parse):
    def read(*args, **kwargs):
        found = parse(*args, **kwargs)
        if kwargs.get("return_unknown_args"):
            assert found[1] == []
        raise Parsed

    return read


def has_parser(module):
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        # A paper's main script has its parser in the module that the package's __main__ runs.
        called = re.search(r"from ([\w.]+) import main", (path / "__main__.py").read_text())
        path = ROOT / called[1].replace(".", "/") if called else path / "__main__"
    source = path.with_suffix(".py").read_text()
    return "tyro" in source or "command_line" in source


def test_commands_are_found():
    commands = documented()
    assert ("experiments.prepare_data", "from-archive", "cifar10", "cifar-10-python.tar.gz") in commands
    assert ("experiments.train", "--resume", "runs/digits") in commands
    assert ("benchmarks.gradients", "--cases", "mlp", "--repeats", "5") in commands
    modules = {module for module, *_ in commands}
    assert {"experiments.quickstart", "experiments.ott", "benchmarks.convolution"} <= modules


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", documented(), ids=" ".join)
def test_a_documented_command_is_taken_by_its_parser(command, monkeypatch, tmp_path):
    module, *arguments = command
    if arguments[:1] == ["--resume"]:
        # It reads its settings from the run.
        monkeypatch.chdir(tmp_path)
        manifest = {"status": "interrupted", "config": Config().to_json()}
        monkeypatch.setattr(buckets, "reach", lambda folder: None)
        monkeypatch.setattr(buckets, "read", lambda path: json.dumps(manifest).encode())
        if not arguments[1].startswith("gs://"):
            write_json(Path(arguments[1]) / "manifest.json", manifest)
    if not has_parser(module):
        assert arguments == [], f"{module} reads no arguments"
        return
    monkeypatch.setattr(tyro, "cli", stopping(tyro.cli))
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", stopping(tyro.extras.subcommand_cli_from_dict))
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
