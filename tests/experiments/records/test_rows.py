"""Rows of a long experiment: what is said of where they were measured."""

import json

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
