"""No table is cut off: those of all commands, from what is recorded, on a terminal of 80 columns."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from experiments import evaluate_solvers, is_ode
from experiments.aca import (
    gradient_error,
    gradient_order,
    gradient_report,
    latent_ode,
    node18_swap,
    round_trip,
    three_bodies,
)
from experiments.anodev2 import kkt, tables
from experiments.continuous_net import adjoint_steps, pendulum
from experiments.ott import figures
from experiments.records import fronts
from experiments.records.swaps import Swapped
from experiments.records.tables import show
from ode_nets.remanifest import Manifestation

RESULTS = Path(__file__).parents[3] / "results"


def read(name):
    return json.loads((RESULTS / name).read_text())


def swapped(name):
    record = read(name)
    trained = Manifestation(record["trained"]["scheme"], record["trained"]["n_steps"])
    return Swapped("a_run_of_a_long_name", trained, record["rows"], record)


def ott(console):
    grids, adapted = figures.read(RESULTS / "ott", "grid"), figures.read(RESULTS / "ott", "adapt")
    figures.print_table(grids, adapted, console)


def bodies(console):
    path = "aca/three_bodies/code_published.json"
    rows = three_bodies.Rows.open(RESULTS / path, read(path))
    three_bodies.print_table(rows, three_bodies.Options().bodies(), console)


def latent(console):
    cell = {"method": "backsolve", "observed": 0.1, "paper": 1.61, "curve": [{}] * 300, "best_epoch": 297}
    latent_ode.print_table([cell | {"n_train": 8000, "test_mse": 0.0161, "train_seconds": 123456.0}], 0.0212, console)


def report(console):
    record = read("gradient_report/gradient_report.json")
    gradient_report.print_tables("mlp", record, record["lecture"], console)


def errors(console):
    gradient_error.print_tables(read("gradient_error/gradient_error.json"), console)


def orders(console):
    gradient_order.print_tables(read("gradient_order/gradient_order.json"), console)


def verdicts(console):
    reports = read("is_ode/is_ode.json")["reports"]
    for report in reports:
        scheme, n_steps, *_ = report["exchange"]["worst"]
        report["exchange"]["worst"] = {"scheme": scheme, "n_steps": n_steps}
    is_ode.print_table(reports, console)


def front(console):
    row = {
        "basis": "piecewise_constant",
        "n_basis": 4,
        "scheme": "heun_euler",
        "n_steps": 16,
        "n_parameters": 1_756_680,
    }
    rows = [row | {"nfe": nfe, "accuracy": 0.9861, "loss": 0.041, "diverged": 0} for nfe in (64, 128, 1024)]
    fronts.print_front(rows, rows[-1], rows[0], console)


def trips(console):
    record = read("round_trip/round_trip.json")
    round_trip.print_tables(record["van_der_pol"], record["photograph"], console)


PRINTED = {
    "evaluate_solvers": lambda console: evaluate_solvers.print_table(swapped("quickstart/digits.json"), console),
    "is_ode": verdicts,
    "gradient_report": report,
    "gradient_error": errors,
    "gradient_order": orders,
    "adjoint_steps": lambda console: adjoint_steps.print_table(read("adjoint_steps/adjoint_steps.json"), console),
    "compress": front,
    "round_trip": trips,
    "node18_swap": lambda console: node18_swap.print_tables(read("node18_small/swap.json"), console),
    "three_bodies": bodies,
    "latent_ode": latent,
    "kkt": lambda console: kkt.print_table(read("anodev2_kkt/anodev2_kkt.json")["rows"], console),
    "anodev2": lambda console: tables.print_table(read("anodev2/resnet4.json"), console),
    "pendulum": lambda console: pendulum.print_tables(read("pendulum/pendulum.json"), console),
    "ott": ott,
}


def printed(name, width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    PRINTED[name](console)
    return console.file.getvalue()


@pytest.mark.parametrize("name", PRINTED)
def test_tables_of_commands_fit_a_terminal_of_80_columns(name):
    narrow, wide = printed(name, 80), printed(name, 400)
    assert "…" not in narrow
    # Sentences beside a table go on where a terminal breaks them.
    lines = [line for line in narrow.splitlines() if "─" in line]
    assert lines
    assert max(map(len, lines)) <= 80
    words = lambda text: set(re.findall(r"[\w.+-]+", text))
    assert words(wide) <= words(narrow)


def test_a_table_too_wide_goes_on_below_with_its_first_column():
    table = Table(title="a title")
    for column in ("scheme", "accuracy [%]", "seconds"):
        table.add_column(column)
    table.add_row("piecewise_constant", "98.6 ± 0.3", "[bold]0.123456789[/]")
    console = Console(file=io.StringIO(), width=36)
    show(table, console)
    text = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert text == [
        "a title",
        "scheme               accuracy [%]",
        "─" * 33,
        "piecewise_constant   98.6 ± 0.3",
        "",
        "scheme               seconds",
        "─" * 32,
        "piecewise_constant   0.123456789",
        "",
    ]


def test_a_word_wider_than_the_console_breaks():
    table = Table("a", "b")
    table.add_row("x", "w" * 50)
    console = Console(file=io.StringIO(), width=20)
    show(table, console)
    assert console.file.getvalue().count("w") == 50
    assert max(map(len, console.file.getvalue().splitlines())) <= 20
