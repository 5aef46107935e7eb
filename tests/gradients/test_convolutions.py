"""A convolution of jax.lax in a field on a CPU is warned about, with what was measured, and ours is not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ode_nets import FixedStep, OdeBlock, PiecewiseConstant, ResidualUnit, convolution, solve
from ode_nets.gradients.convolutions import SLOWER, convolves

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "convolution_cpu.json"
EULER = FixedStep("euler", 2)
IMAGES = jnp.ones((1, 4, 4, 2))

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere convolutions are fast")


def native(t, x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def heard(run, action="always"):
    """What is warned about."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter(action)
        run()
    return [str(one.message) for one in found]


def test_a_convolution_of_jax_in_a_field_is_warned_about_with_the_factors():
    kernel = jnp.ones((3, 3, 2, 2))
    block = OdeBlock(nn.Conv(2, (3, 3)), PiecewiseConstant(1), EULER)
    for run in (
        lambda: solve(native, IMAGES, kernel, solver=EULER),
        lambda: jax.eval_shape(block.init, jax.random.key(0), IMAGES),
    ):
        said = heard(run)
        assert len(said) == 1
        assert f"take {SLOWER[0]} to {SLOWER[1]} times" in said[0]
        assert "flax.linen.Conv" in said[0]
        assert "ode_nets.convolution" in said[0]


def test_it_is_said_once_in_a_process():
    field = lambda t, x, kernel: native(t, x, kernel)
    run = lambda: jax.eval_shape(lambda: solve(field, IMAGES, jnp.ones((3, 3, 2, 2)), solver=EULER).x)
    assert len(heard(lambda: [run() for _ in range(3)], "once")) == 1


def test_nothing_is_said_of_ours_of_units_and_of_other_fields():
    def ours(groups):
        field = lambda t, x, kernel: convolution(x, kernel, groups=groups)
        return jax.eval_shape(lambda: solve(field, IMAGES, jnp.ones((3, 3, 2 // groups, 2)), solver=EULER).x)

    block = OdeBlock(ResidualUnit(2), PiecewiseConstant(1), EULER)
    assert heard(lambda: ours(1)) == []
    assert heard(lambda: ours(2)) == []
    assert heard(lambda: jax.eval_shape(block.init, jax.random.key(0), IMAGES)) == []
    assert heard(lambda: jax.eval_shape(lambda: solve(lambda t, x, k: -k * x, IMAGES, 1.0, solver=EULER).x)) == []


def test_what_counts_is_what_a_cpu_computes():
    def of(cpu, default):
        choose = lambda x: lax.platform_dependent(x, cpu=cpu, default=default)
        return convolves(jax.make_jaxpr(jax.checkpoint(choose))(IMAGES).jaxpr)

    slow, quick = lambda x: native(0, x, jnp.ones((3, 3, 2, 2))), lambda x: x
    assert of(slow, quick)
    assert not of(quick, slow)
    scanned = jax.make_jaxpr(lambda x: lax.fori_loop(0, 3, lambda _, x: slow(x), x))(IMAGES)
    assert convolves(scanned.jaxpr)


def test_the_factors_are_those_of_the_benchmark():
    shapes = json.loads(RESULTS.read_text())["results"]["seconds_per_program"].values()
    took = lambda of, how: of[f"gradients, plain, {how}"]["minimum"]
    factors = [took(of, "scan") / took(of, "unrolled") for of in shapes]
    assert (round(min(factors)), round(max(factors))) == SLOWER
