"""A new part touches the files that its page in docs/extending names: so say the commits that did it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
EVERYWHERE = {"ode_nets/__init__.py", "tests/faults/arguments.py", "CHANGELOG.md"}
"""What the first page names for all."""


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no history: {done.stderr.strip()}")
    return done.stdout.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_commits_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:ode_nets|experiments|benchmarks|tests|docs|results)/[^`<]*)`", text):
        assert (ROOT / path).exists(), path
    commits = re.findall(r"`([0-9a-f]{7})`", text)
    assert commits
    for commit in commits:
        git("cat-file", "-e", f"{commit}^{{commit}}")


@pytest.mark.parametrize(
    ("page", "commit"),
    [
        ("architecture", "ceed375"),
        ("data", "49956eb"),
        ("data", "4a885c0"),
        ("experiment", "3712c15"),
        ("gradient", "a9c8300"),
        ("scheme", "3a1ef1a"),
    ],
)
def test_a_commit_touched_what_its_page_names_and_no_other_file(page, commit):
    text = (ROOT / "docs" / "extending" / f"{page}.md").read_text()
    assert f"`{commit}`" in text
    named = EVERYWHERE | set(re.findall(r"`([\w/<>.]+\.(?:py|md))`", text))
    patterns = [re.sub(r"<\w+>", r"\\w+", re.escape(path)) for path in named] + [r"docs/api/\w+\.md"]
    touched = git("show", "--name-only", "--format=", commit)
    assert touched
    assert not [path for path in touched if not any(re.fullmatch(pattern, path) for pattern in patterns)]
