"""What an installation of the library brings along: packages, megabytes, seconds; beside that of an earlier revision.

    python -m benchmarks.install 849fef5
    python -m benchmarks.install 849fef5 --quickstart 3

Of each revision a wheel is built and installed by pip, with what it depends on, in an environment that is empty but for
pip. From another folder the library and `flax.linen` are imported, in processes of their own, and the README's first
code block is run. Seconds of the installation are those of the index or cache that pip reads, too. `--quickstart` also
runs the first command of the README on fresh clones of this revision. Five minutes, and four a run of the quickstart.
Writes benchmarks/results/install_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import harness
from experiments.records.command import command_line

ROOT = Path(__file__).resolve().parent.parent
OF_PIP = ("pip", "setuptools")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    revision: Annotated[str, tyro.conf.Positional]
    """The earlier revision: anything that git knows."""
    imports: int = 5
    """Processes that import a package; the fastest counts."""
    quickstart: int = 0
    """Fresh clones that the README's first command is run on."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/install_<platform>.json."""


def run(command: list[Any], folder: Path) -> float:
    """The seconds of a command in a folder; ends the process where it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def clone(revision: str, folder: Path) -> Path:
    """A checkout of a revision with a history of its own."""
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "checkout", "-q", "--detach", revision], cwd=folder, check=True)
    return folder


def blocks(language: str, tree: Path) -> list[str]:
    """The code blocks of a checkout's README in one language."""
    text = (tree / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def installed(packages: Path) -> dict[str, float]:
    """How many distributions lie in a folder of packages, and their MB; pip's own are left out."""
    own = [path for path in packages.iterdir() if re.split(r"[-_.]", path.name)[0] not in OF_PIP]
    files = [file for path in own for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    count = sum(path.suffix == ".dist-info" for path in own)
    return {"packages": count, "megabytes": sum(file.stat().st_size for file in files) / 1e6}


def measure(tree: Path, folder: Path, imports: int) -> dict[str, float]:
    """Build, install and use a checkout's wheel in an empty environment."""
    folder.mkdir()
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, tree], folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    found = {"install_seconds": run([python, "-m", "pip", "install", "-q", wheel], folder)}
    found |= installed(next((folder / "venv").glob("lib/*/site-packages")))
    found["wheel_kilobytes"] = wheel.stat().st_size / 1e3
    for name in ("ode_nets", "flax.linen"):
        seconds = [run([python, "-c", f"import {name}"], folder) for _ in range(imports)]
        found[f"import_{name.partition('.')[0]}_seconds"] = min(seconds)
    found["first_example_seconds"] = run([python, "-c", blocks("python", tree)[0]], folder)
    return found


def quickstart(folder: Path) -> float:
    """The seconds of the README's first command, on a fresh clone with an empty environment."""
    tree = clone("HEAD", folder)
    venv.create(tree / ".venv", with_pip=True)
    command = blocks("sh", tree)[0].splitlines()[0]
    return run(["bash", "-c", f"source .venv/bin/activate && {command}"], tree)


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    with tempfile.TemporaryDirectory() as name:
        folder, results = Path(name), {}
        for when, revision in (("then", options.revision), ("now", "HEAD")):
            tree = clone(revision, folder / f"{when}_clone")
            results[when] = measure(tree, folder / when, options.imports)
            print(f"{revision}: {results[when]}", flush=True)
        rows = [[key, results["then"][key], value] for key, value in results["now"].items()]
        harness.show("the wheel in an empty environment", ("", options.revision, "now"), rows)
        record: dict[str, Any] = {"revision": options.revision, **results, "quickstart_seconds": []}
        for number in range(options.quickstart):
            record["quickstart_seconds"].append(quickstart(folder / f"quickstart_{number}"))
            print(f"quickstart {number + 1}: {record['quickstart_seconds'][-1]:.0f} s", flush=True)
    path = options.out or harness.default_path("install")
    print("written to", harness.write(path, "install", record))


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.install", __doc__))
