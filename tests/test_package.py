"""The package as a whole: what it imports and exports, what it depends on, and what its README promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ode_nets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEST_COMMAND = "python -m pip install -e '.[test]' && python -m pytest"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if not line.startswith("#")]
    assert None not in found
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def test_import_leaves_heavy_packages_alone():
    heavy = "tensorflow tensorflow_datasets torch matplotlib diffrax orbax sklearn"
    code = f"import sys, ode_nets; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_exactly_those_listed():
    assert len(set(ode_nets.__all__)) == len(ode_nets.__all__)
    public = {
        name
        for name, value in vars(ode_nets).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public | {"manifest", "problems", "validity"} == set(ode_nets.__all__)


def test_public_names_are_documented():
    for name in ode_nets.__all__:
        value = getattr(ode_nets, name)
        if isinstance(value, type | types.FunctionType | types.ModuleType):
            # A dataclass without a docstring gets its signature for one.
            assert not (value.__doc__ or f"{name}(").startswith(f"{name}("), name


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_readme_examples_run(index):
    names: dict = {}
    exec(compile(blocks("python")[index], f"README.md, python block {index}", "exec"), names)
    computed = [value for value in names.values() if isinstance(value, jax.Array) and value.dtype == "float32"]
    assert computed
    assert all(jnp.isfinite(value).all() for value in computed)


def test_readme_commands_name_modules_that_exist():
    modules = {name for block in blocks("sh") for name in re.findall(r"python -m (\S+)", block)}
    modules |= set(re.findall(r"`python -m ((?:experiments|benchmarks)(?:\.\w+)+)", README))
    assert {"experiments.quickstart", "experiments.train", "pytest"} <= modules
    missing = [
        name
        for name in modules
        if not (
            any((ROOT / f"{name.replace('.', '/')}{end}").is_file() for end in (".py", "/__main__.py"))
            if name.startswith(("experiments.", "benchmarks."))
            else importlib.util.find_spec(name)
        )
    ]
    assert not missing


def test_readme_configs_and_files_exist():
    from experiments.configs import CONFIGS

    assert set(re.findall(r"python -m experiments\.train (\w+)", README)) <= set(CONFIGS)
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_test_command_of_the_readme():
    assert TEST_COMMAND in blocks("sh")[0].splitlines()
    assert f'"{TEST_COMMAND}"' in (ROOT / ".ci" / "run").read_text()


def test_pinned_versions_satisfy_every_requirement():
    pinned = pins()
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version)), text


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    assert PROJECT["version"] == citation["version"] == changelog[1]
    assert PROJECT["license"] == citation["license"]
