"""The package as a whole: what it imports and exports, what it depends on, and what its README promises."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import types
import venv
from operator import attrgetter
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
TABLE = ROOT / "results" / "README.md"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
PAGES = [ROOT / "README.md", TABLE, *sorted((ROOT / "docs").rglob("*.md"))]  # the table lies in docs by a link
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEST_COMMAND = "python -m pip install -e '.[test]' && python -m pytest"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if not line.startswith("#")]
    assert None not in found
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def test_import_leaves_heavy_packages_alone():
    """Beside those of the interpreter, jax and flax, `import ode_nets` loads no package but its own."""
    code = "import sys, flax.linen; before = {*sys.modules}; import ode_nets; print(*({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    added = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert added <= {"ode_nets", "jax", "jaxlib", "jaxtyping", "numpy", "flax"}
    heavy = "tensorflow torch matplotlib diffrax equinox optax scipy orbax sklearn tyro tensorboardX"
    code = f"import sys, ode_nets; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_depends_on_what_it_imports_and_on_nothing_else():
    imported = set()
    for path in (ROOT / "ode_nets").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    needed = {Requirement(text).name for text in PROJECT["dependencies"]}
    # diffrax brings equinox, whose modules its own are; flatbuffers is what jax.export forgets to ask for. jax2onnx is
    # imported where ONNX is written.
    assert imported - sys.stdlib_module_names - {"ode_nets"} <= needed | {"equinox", "jax2onnx"}
    assert needed == {"jax", "jaxlib", "flatbuffers", "numpy", "flax", "jaxtyping", "optax", "diffrax"}


def empty_environment(folder: Path, *requirements: str) -> Path:
    """The interpreter of a new environment with what pip installs there."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
    return python


def clone(folder: Path) -> Path:
    """A copy of what the package is built from."""
    folder.mkdir()
    shutil.copytree(ROOT / "ode_nets", folder / "ode_nets", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
def test_an_editable_install_is_found_from_the_parent_folder_of_its_clone(tmp_path):
    source = clone(tmp_path / "ode_nets")
    python = empty_environment(tmp_path / "venv", "--no-deps", "-e", str(source))
    code = "import importlib.util as util; print(util.find_spec('ode_nets').origin)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == source / "ode_nets" / "__init__.py"


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_runs_the_first_example_of_the_readme(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, clone(tmp_path / "clone")]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"ode_nets-{ode_nets.__version__}-py3-none-any.whl"
    python = empty_environment(tmp_path / "venv", str(wheel))
    done = subprocess.run([python, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True, check=True)
    value, _, shapes = done.stdout.partition(" ")
    assert float(value) > 0
    assert "'kernel': (4, 2, 16)" in shapes


def test_public_names_are_exactly_those_listed():
    assert len(set(ode_nets.__all__)) == len(ode_nets.__all__)
    public = {
        name
        for name, value in vars(ode_nets).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public | {"problems", "remanifest", "validity"} == set(ode_nets.__all__)


def test_public_names_are_documented():
    for name in ode_nets.__all__:
        value = getattr(ode_nets, name)
        if isinstance(value, type | types.FunctionType | types.ModuleType):
            # A dataclass without a docstring gets its signature for one.
            assert not (value.__doc__ or f"{name}(").startswith(f"{name}("), name


def test_the_readme_is_short():
    assert len(README.split()) < 900
    assert README.count("![") == 1
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 12


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks("python", page.read_text())], ids=lambda page: page.stem
)
def test_examples_of_pages_run(page):
    for index, block in enumerate(blocks("python", page.read_text())):
        names: dict = {}
        exec(compile(block, f"{page.name}, python block {index}", "exec"), names)
        computed = [value for value in names.values() if isinstance(value, jax.Array) and value.dtype == "float32"]
        # What is shown of a solve that fails is not finite.
        assert all(jnp.isfinite(value).all() for value in computed)


def test_commands_of_pages_name_modules_that_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    modules = {name for block in blocks("sh", text) for name in re.findall(r"python -m (\S+)", block)}
    modules |= set(re.findall(r"`python -m ((?:experiments|benchmarks)(?:\.\w+)+)", text))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_and_files_that_pages_name_exist(page):
    from experiments.configs import CONFIGS

    text = page.read_text()
    assert set(re.findall(r"python -m experiments\.train (\w+)", text)) <= set(CONFIGS)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        found = page.parent / target
        assert found.exists() or found.resolve().with_suffix(".py") in NOTEBOOKS, target


def test_every_public_name_is_on_a_page():
    """One each; and every page is in the site's menu."""
    from ode_nets.interop import diffrax

    text = "\n".join(page.read_text() for page in PAGES)
    shown = re.findall(r"^::: ode_nets\.(\S+)$", text, re.MULTILINE)
    # A function called like its module is named with both.
    shown = [re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in shown]
    assert len(shown) == len(set(shown))
    modules = {"problems", "remanifest", "validity"}
    assert set(ode_nets.__all__) - modules <= set(shown)
    found = {id(attrgetter(name)(ode_nets)) for name in shown}
    for room in sorted(modules):
        module = getattr(ode_nets, room)
        assert not [name for name in module.__all__ if id(getattr(module, name)) not in found], room
    assert {f"interop.diffrax.{name}" for name in diffrax.__all__} <= set(shown)
    menu = re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text())
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert set(menu) == pages | {"results/README.md"} | {f"notebooks/{notebook.stem}.md" for notebook in NOTEBOOKS}


def test_ci_runs_the_test_command_of_the_readme():
    assert TEST_COMMAND in blocks("sh")[0].splitlines()
    assert f'"{TEST_COMMAND}"' in (ROOT / ".ci" / "run").read_text()


def test_workflow_and_hooks_run_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["ci"]
    classifiers = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == classifiers
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checked = [hook["name"] for hook in local["hooks"] if "stages" not in hook]
    script = (ROOT / ".ci" / "run").read_text()
    assert checked == re.findall(r"^run (ruff check|mypy|lint-imports)", script, re.MULTILINE)
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text())


def test_pinned_versions_satisfy_every_requirement():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    assert extras["test"][0] == "ode_nets[experiments]"
    for text in [*PROJECT["dependencies"], *extras["experiments"], *extras["test"][1:]]:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version)), text


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    assert ode_nets.__version__ == citation["version"] == changelog[1]
    assert PROJECT["license"] == citation["license"]
