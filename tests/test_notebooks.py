"""The notebooks of the site run as the scripts that they are, and are notebooks to jupytext."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_finds_what_it_asserts(path):
    """`aca_in_diffrax` is the journey of an equinox model that diffrax solves under our adjoint."""
    settings = {"MPLBACKEND": "agg", "PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run([sys.executable, path], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_a_title_cells_facts_and_links_that_lead_somewhere(path):
    script = path.read_text()
    cells = re.split(r"^# %%", script, flags=re.MULTILINE)[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert "format_name: percent" in script
    assert re.search(r"^assert ", script, re.MULTILINE)
    assert re.search(r"^plt\.show\(\)", script, re.MULTILINE)
    for target in re.findall(r"\]\(([^):#]+)[^):]*\)", script):
        page = (path.parent / target).resolve()
        assert page.exists() or page.with_suffix(".py") in NOTEBOOKS, target
