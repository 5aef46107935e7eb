"""The swap of fixed and adaptive solvers, and the linear classifier that a network is set beside."""

from __future__ import annotations

import io
import json

import jax
import pytest
from rich.console import Console

from experiments.aca import linear_classifier as linear
from experiments.aca.node18_swap import TABLE_2, TABLE_6, TABLE_7, Options, print_tables, swap
from experiments.images.data import normalize
from experiments.records.files import RunError
from experiments.training.config import Config
from experiments.training.models import Node18Settings, ResNet18Settings
from experiments.training.run import Run
from experiments.training.task import Task

CONFIG = Config(
    model=Node18Settings(widths=(2,), scheme="heun_euler", rtol=1e-2, gradient="aca"),
    limit=16, batch_size=8, crop_pad=0, flip=False, epochs=1, validation_fraction=0.02,
)  # fmt: skip


def save_untrained(config, folder):
    """A run that was stopped before its first step."""
    task, run = Task(config, 1), Run.start(folder, config, resume=False, overwrite=False)
    step, notes, state = task.start(run)
    run.save("latest", step, state, notes)
    run.close()
    return task, state


@pytest.mark.slow
def test_every_solver_is_compared_with_the_trained_one_and_printed_beside_the_papers(tmp_path):
    task, state = save_untrained(CONFIG, tmp_path)
    record = swap(Options(tmp_path, stepsizes=(1.0, 0.5), tolerances=(1e-1,)))
    assert record == json.loads((tmp_path / "swap" / "node18.json").read_text())
    assert record["trained"] == {"scheme": "heun_euler", "tolerance": 1e-2, "atol": 1e-2}
    found = {(row["scheme"], row.get("n_steps", row.get("tolerance"))): row for row in record["rows"]}
    fixed = {(scheme, n) for scheme in ("euler", "midpoint", "rk4") for n in (1, 2)}
    assert set(found) == fixed | {(s, 1e-1) for s in ("heun_euler", "bosh3", "dopri5")} | {("heun_euler", 1e-2)}
    assert [found[scheme, 2]["nfe"] for scheme in ("euler", "midpoint", "rk4")] == [2, 4, 8]

    own = found["heun_euler", 1e-2]
    assert own["error_increase"] == 0
    variables = {name: state[name] for name in ("params", "batch_stats")}
    x = normalize(task.dataset.x_test, task.dataset.mean, task.dataset.std)
    logits, changed = jax.jit(lambda v, x: task.nets[0].apply(v, x, mutable=["solution"]))(variables, x)
    assert own["accuracy"] == (logits.argmax(-1) == task.dataset.y_test).mean()
    assert own["nfe"] == int(changed["solution"]["ode1_1"]["nfe"])
    for row in record["rows"]:
        assert row["error_increase"] == 100 * (own["accuracy"] - row["accuracy"])

    shown = io.StringIO()
    print_tables(record, Console(file=shown, width=200))
    assert f"error {100 * (1 - own['accuracy']):.2f} %" in shown.getvalue()
    for label, columns in (("Euler", (0, 1)), ("RK4", (0, 1)), ("HeunEuler", (0, 1)), ("RK45", (0,))):
        line = next(line for line in shown.getvalue().splitlines() if f" {label} " in line)
        assert all(f"({TABLE_7[label][column]:+.2f})" in line for column in columns)


def test_the_tables_of_the_paper_have_the_trained_solver_where_the_error_does_not_grow():
    # Errors in percent of Table 2: HeunEuler 1e-2 4.85; one Euler step, ResNet18, 6.98.
    assert TABLE_7["HeunEuler"][1] == TABLE_6["Euler"][0] == 0
    assert min(min(row) for table in (TABLE_6, TABLE_7) for row in table.values()) == 0
    # Table 2 has the columns 0.2 and 1e-2 of Table 7.
    for label in ("Euler", "RK2", "RK4"):
        assert TABLE_2["cifar10"][label] == pytest.approx(4.85 + TABLE_7[label][2])
    assert TABLE_2["cifar10"]["RK23"] == pytest.approx(4.85 + TABLE_7["RK23"][1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stepsizes": (0.3,)}, r"stepsizes=\(0.3,\)"),
        ({"tolerances": ()}, r"tolerances=\(\)"),
        ({"images": 0}, "images=0"),
    ],
)
def test_solvers_out_of_range_are_refused(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        Options(tmp_path, **changes)


def test_a_run_without_an_ode_is_refused(tmp_path):
    save_untrained(Config(limit=16, batch_size=8, model=ResNet18Settings(widths=(2,))), tmp_path)
    with pytest.raises(RunError, match="trained a ResNet18: expected a NODE18"):
        swap(Options(tmp_path))


def test_the_linear_classifier_chooses_its_penalty_by_the_validation_images():
    config = Config(limit=200, batch_size=8, validation_fraction=0.1)
    record = linear.linear_classifier(config, linear.Options(penalties=(1e-2, 1e3)))
    accuracies = [row["validation_accuracy"] for row in record["penalties"]]
    # The digits are nearly linear; a penalty of a thousand leaves nothing of the weights.
    assert record["penalty"] == 1e-2
    assert accuracies[0] > 0.85 > accuracies[1]
    assert record["test_accuracy"] > 0.85
    assert (record["n_train"], record["n_test"]) == (200, 359)
    with pytest.raises(ValueError, match=r"penalties=\(0.0,\)"):
        linear.Options(penalties=(0.0,))
