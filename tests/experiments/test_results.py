"""The table of results is what the JSON gives: no number of ours is typed in, and each JSON names its revision."""

import re

import pytest

from experiments.results.__main__ import PAPERS, ROOT, page
from experiments.results.rows import PLACE, Row, fill, load, made, render

ROWS = [row for rows in PAPERS.values() for row in rows]
RUN = [row for row in ROWS if row.source]
NAMES = re.compile(r"RK4|ResNet-?\d+|resnet\d+|NODE18|ode45|float\d+|Fehlberg2\(1\)|ICC1k?")
"""Words with digits that are no numbers."""


def test_the_page_is_what_the_command_writes():
    text = (ROOT / "results" / "README.md").read_text()
    assert page(text, ROOT) == text, "run python -m experiments.results"


@pytest.mark.parametrize("row", RUN, ids=lambda row: f"{row.of} {row.what}")
def test_numbers_of_a_row_are_read_from_a_json_of_a_named_revision(row):
    for text in (row.ours, row.reduced, row.seeds, row.minutes, row.why):
        assert not re.search(r"\d", NAMES.sub("", PLACE.sub("", text))), text
    record = load(ROOT / row.source)
    device, revision = made(record)
    assert re.fullmatch(r"[0-9a-f]{40}", revision)
    assert record["environment"]["dirty"] is False
    assert device
    assert "{" not in fill(row.ours, record)


def test_rows_that_were_not_run_say_so_and_how_long_they_would_take():
    text = render(PAPERS, ROOT)
    missing = [row for row in ROWS if row.status == "not run"]
    assert text.count("not run: ") == len(missing) > 0
    assert f"{len(ROWS)} figures and tables" in text
    with pytest.raises(ValueError, match="or how long it takes"):
        Row("Fig. 1", "", "", "python")


def test_places_are_paths_and_operations():
    record = {
        "n": 3,
        "rows": [{"k": "a", "v": [1.0, 2.0, 6.0]}, {"k": "b", "w": 4}],
        "by": {"x y": {"z": None}, "u": {"z": 5}},
    }
    for text, expected in (
        ("{n}", "3"),
        ("{rows/[k=a]/v|median:.1f} of {rows|count}", "2.0 of 2"),
        ("{rows/0/v|mean|x 100:.0f} %", "300 %"),
        ("{rows/*/w}", "4"),
        ("{by/x y/z}", "none"),
        ("{by/u/z:+d}", "+5"),
    ):
        assert fill(text, record) == expected
    for text, says in (("{rows/[k=c]/v|max}", "nothing there"), ("{rows/0/v}", "3 values"), ("{m}", "nothing there")):
        with pytest.raises(ValueError, match=says):
            fill(text, record)
