"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import ode_nets

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(ode_nets, name) for name in ode_nets.__all__}


def modules() -> list[str]:
    """Names of the modules that have examples."""
    paths = sorted((ROOT / "ode_nets").rglob("*.py"))
    names = [path.relative_to(ROOT).with_suffix("").parts for path in paths if ">>>" in path.read_text()]
    return [".".join(name).removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name):
    """With all public names, `jax` and `jnp` at hand, and what the module itself defines."""
    module = importlib.import_module(name)
    names = {**PUBLIC, "jax": jax, "jnp": jnp, **vars(module)}
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, name) if test.examples]
    assert tests
    for test in tests:
        said: list[str] = []
        test.globs = dict(names)
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append).failed
        assert not failed, "".join(said)


@pytest.mark.parametrize("name", ode_nets.__all__)
def test_every_public_name_has_an_example(name):
    value = PUBLIC[name]
    if isinstance(value, type | types.FunctionType):
        example = (value.__doc__ or "").partition("Example:\n")[2]
        assert re.search(r"^\s*>>> ", example, re.MULTILINE)


def test_reprs_are_short():
    on = ode_nets
    solver = on.FixedStep("rk4", 4)
    assert repr(solver) == "FixedStep(rk4, 4)"
    shown = [
        on.get_tableau("dopri5"),
        on.Adaptive("dopri5"),
        on.Coupled("dopri5"),
        on.Measured("dopri5"),
        on.SCHEMES["tsit5"],
        on.pad(solver, 4),
        on.ContinuousNet(),
        on.NODE18(),
        on.anodev2_net("resnet4", "configuration_2"),
    ]
    assert not [value for value in shown if "Fraction(1, 2" in repr(value) or "b_error" in repr(value)]
    assert max(len(repr(value)) for value in shown[:6]) < 60
