"""A correction changes nothing before it is fitted, lessens what a scheme leaves, and is counted by its kernels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hypersolver
from ode_nets import FixedStep, Hyper, validity
from ode_nets.weights import PiecewiseConstant
from small_nets import IMAGES, model


def test_a_correction_costs_what_its_kernels_multiply():
    kernels = jax.tree.leaves(hypersolver.init_correction(jax.random.key(0), 16))
    field = 2 * 9 * 16 * 16
    assert hypersolver.evaluations_of_correction(16) == sum(kernel.size for kernel in kernels) / field


@pytest.mark.slow
def test_a_fitted_correction_brings_few_steps_nearer_to_the_solution():
    net, variables = model(PiecewiseConstant(1), widths=(4,), dtype="float32")
    net = net.clone(epsilon=3.0)
    images = jnp.asarray(IMAGES, "float32")
    problems = validity.of_model(net, variables, images).problems(hypersolver.FINE)
    channels = problems[0].x0.shape[-1]
    options = hypersolver.Options(Path("run"), iterations=300, learning_rate=2e-2)
    zero = Hyper("euler", hypersolver.correction, {channels: hypersolver.init_correction(jax.random.key(0), channels)})
    fitted, losses = hypersolver.fit(options, zero, 2, problems)
    run = jax.jit(lambda solver: net.clone(solver=solver).apply(variables, images))
    exact, plain = run(hypersolver.FINE), run(FixedStep("euler", 2))
    np.testing.assert_allclose(run(FixedStep(zero, 2)), plain, rtol=1e-5)
    distance = lambda out: float(jnp.linalg.norm(out - exact))
    assert distance(run(FixedStep(fitted, 2))) < 0.5 * distance(plain)
    assert len(losses) == len(problems) == 1
