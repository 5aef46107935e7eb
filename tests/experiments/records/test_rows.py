"""Rows of a long experiment: what is said of where they were measured."""

import json

import numpy as np
import pytest
from rich.console import Console

from experiments.records.rows import Rows


def test_the_environment_told_is_that_of_what_was_measured(tmp_path):
    """A call that measures nothing, to draw once more, leaves it; one that measures a row tells its own."""
    path, console = tmp_path / "rows.json", Console(quiet=True)
    measure = lambda: ({"seconds": 1.0, "said": ""}, {})

    def told(revision, *keys):
        rows = Rows.open(path, {"settings": {}, "environment": {"revision": revision}})
        for key in keys:
            rows.fill(key, measure, console)
        rows.write({})
        record = json.loads(path.read_text())
        each = {key: row["environment"]["revision"] for key, row in record["rows"].items()}
        return record["environment"]["revision"], each

    assert told("one", "a") == ("one", {"a": "one"})
    assert told("two", "a") == ("one", {"a": "one"})
    assert told("three", "a", "b") == ("three", {"a": "one", "b": "three"})


def test_arrays_are_written_whole_and_damaged_ones_are_named(tmp_path):
    path, head = tmp_path / "rows.json", {"settings": {}}
    rows = Rows.open(path, head)
    rows.fill("a", lambda: ({"seconds": 1.0, "said": ""}, {"x": np.ones(1000)}), Console(quiet=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.json", "rows.npz"]
    np.testing.assert_array_equal(Rows.open(path, head).arrays["x"], 1)
    arrays = path.with_suffix(".npz")
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"rows\.npz cannot be read .*put back a copy, or .*--overwrite"):
        Rows.open(path, head)
    assert not Rows.open(path, head, overwrite=True).rows
