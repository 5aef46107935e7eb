"""A network of the user's own: built by its function, changed by its settings, and what is said where it cannot be."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from experiments.records.files import RunError
from experiments.training.config import Config
from experiments.training.own import OwnSettings
from experiments.training.parallel import shared
from experiments.training.task import Task
from ode_nets.integrate import FixedStep
from ode_nets.weights import Legendre, PiecewiseConstant
from small_nets import Own, Plain, make


def test_a_function_makes_the_network_and_settings_exchange_its_parts():
    assert OwnSettings("small_nets:make").build(3) == make(3)
    assert OwnSettings("small_nets:make", ("width=6",)).build(3) == make(3, width=6)
    assert OwnSettings("small_nets:Own", ("width=6",)).build(3) == Own(3, 6)
    assert OwnSettings("small_nets:Plain").build(3) == Plain(3)
    refined = OwnSettings("small_nets:make").build(3, level=2)
    assert (refined.basis, refined.solver) == (PiecewiseConstant(8), FixedStep("midpoint", 8))
    other = OwnSettings("small_nets:make", basis="legendre", n_basis=3, scheme="euler", n_steps=1).build(3)
    assert (other.basis, other.solver) == (Legendre(3), FixedStep("euler", 1))


def test_a_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text(
        "from small_nets import Plain\n\ndef make(n_classes): return Plain(n_classes)\n"
    )
    with pytest.raises(RunError, match=r"no module mine_alone; go to the folder that holds it.*or .* PYTHONPATH"):
        OwnSettings("mine_alone:make").build(3)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert OwnSettings("mine_alone:make").build(3) == Plain(3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (OwnSettings("small_nots:make"), "there is no module small_nots"),
        (OwnSettings("small_nets.inner:make"), "there is no module small_nets.inner|importing small_nets.inner fails"),
        (OwnSettings("small_nets:maker"), "there is no function maker, did you mean make"),
        (
            OwnSettings("small_nets:fails"),
            r"fails\(n_classes=3\) fails with KeyError: 'not mine' \(.*, line",
        ),
        (OwnSettings("small_nets:make", ("size=2",)), r"make\(n_classes=3, size=2\) fails with TypeError: .*'size'"),
        (OwnSettings("small_nets:returns_the_class"), "returns the class Own, expected a flax.linen module"),
        (OwnSettings("small_nets:has_a_list"), "width of a Own cannot be hashed, expected tuples"),
        (OwnSettings("small_nets:Plain", n_steps=3), "net is a Plain with no solver: expected .*attributes basis"),
        (OwnSettings("small_nets:Plain", basis="legendre"), "net is a Plain with no basis"),
    ],
)
def test_what_cannot_be_built_is_named_in_one_line(settings, says):
    with pytest.raises(RunError, match=says) as refused:
        settings.build(3)
    assert "\n" not in str(refused.value)
    assert f"model.make={settings.make!r}" in str(refused.value)


def test_a_network_that_does_not_fit_the_data_is_refused_before_a_run_begins():
    with pytest.raises(RunError, match=r"a Own has outputs of shape \(1, 3\).*expected logits \(1, 10\)"):
        Task(Config(model=OwnSettings("small_nets:always_three"), limit=128))


def test_batch_statistics_are_shared_where_the_network_can_be_told_by_what():
    config, net = Config(model=OwnSettings("small_nets:make")), make(3)
    assert shared(config, net, {}) == net
    with pytest.raises(RunError, match=r"a Own has no axis_name.*--batch-statistics local"):
        shared(config, net, {"block": 1})
    assert shared(dataclasses.replace(config, batch_statistics="local"), net, {"block": 1}) == net
