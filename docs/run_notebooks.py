"""For the site: runs the notebooks, scripts in docs/notebooks; their pages have what they printed and drew.

The pages are Markdown like all others: their links are checked with the rest, and telephones can read them.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

SCRIPTS = Path(__file__).parent / "notebooks"
PICTURE = "![Picture drawn by the code above]"
SOURCE = "*This page is the script `docs/notebooks/{}`; `jupytext --to ipynb` makes a notebook of it.*"


@functools.cache  # `mkdocs serve` builds again at every change
def executed(name: str, script: str) -> tuple[str, dict[str, bytes]]:
    """The page of one notebook, and its pictures by file name; what the notebook raises ends the build."""
    notebook = jupytext.reads(script, "py:percent")
    runner: Any = ExecutePreprocessor(timeout=600)
    runner.preprocess(notebook, {"metadata": {"path": str(SCRIPTS)}})
    CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    exporter: Any = MarkdownExporter()
    text, resources = exporter.from_notebook_node(notebook, {"unique_key": name, "output_files_dir": "pictures"})
    return text.replace("![png]", PICTURE), dict(resources["outputs"])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Called once the files of the site are listed: adds a page a notebook, and its pictures."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a page says the same wherever it is built
    paths = sorted(SCRIPTS.glob("*.py"))
    with ThreadPoolExecutor(2) as pool:  # compilation keeps no more than a core busy
        pages = list(pool.map(executed, [path.stem for path in paths], [path.read_text() for path in paths]))
    for path, (text, pictures) in zip(paths, pages, strict=True):
        text += "\n" + SOURCE.format(path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
