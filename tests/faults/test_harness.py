"""The quick part of `python -m tests.faults`: nothing is silent and nothing unclear."""

from __future__ import annotations

import inspect

import pytest

import ode_nets
from tests.faults import arguments, damage, killed, runs
from tests.faults.tally import Tally


def assert_clear(trials, at_least):
    tally = Tally()
    for trial in trials:
        tally.add(*trial)
    assert tally.bad() == [], tally.table()
    assert tally.tried >= at_least


def test_wrong_arguments_are_named_and_right_ones_taken():
    # Every ninth, so that each argument meets several values: the others are tried by the slow test.
    assert_clear(arguments.every(9), 1500)


@pytest.mark.slow
def test_every_argument_with_every_value():
    assert_clear(arguments.every(), 15_000)


def test_every_public_name_is_tried_or_said_not_to_be():
    without = {name for names in arguments.WITHOUT.values() for name in names}
    tried = {name.partition(".")[0] for name in arguments.calls()}
    assert set(ode_nets.__all__) == (tried & set(ode_nets.__all__)) | without
    assert not tried & without


def test_the_arguments_that_are_tried_are_those_that_there_are():
    for name, call in arguments.calls().items():
        parameters = inspect.signature(call.function).parameters
        if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            assert set(call.accepts) <= set(parameters), name


def test_damaged_files_of_data_are_named_or_read_as_they_were(tmp_path):
    assert_clear(damage.arrays_of_npz(tmp_path, 150, 0), 150)
    assert_clear(damage.image_files(tmp_path, 150, 0), 150)
    assert_clear(damage.prepared_sets(tmp_path, 60, 0), 60)


@pytest.mark.slow
def test_nan_and_infinity_are_told(tmp_path):
    assert_clear(damage.not_finite(), 1000)


@pytest.mark.slow
def test_states_of_a_run_between_file_operations_are_resumed(tmp_path):
    assert_clear(runs.crash_states(tmp_path, 40), 20)


@pytest.mark.slow
def test_damaged_manifests_are_named_or_do_not_matter(tmp_path):
    assert_clear(runs.flipped_records(tmp_path, "manifest.json", 40, 0), 40)


@pytest.mark.slow
def test_killed_processes_are_resumed(tmp_path):
    assert_clear(killed.kills(tmp_path, 5, 0), 5)
