"""Steps of diffrax's solvers in loops of ours: every gradient method gives one gradient."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import relative
from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, solve
from ode_nets.interop.diffrax import DiffraxScheme

X0 = {"a": np.array([1.0, -0.5])}
W = np.array([[0.5, -1.0], [2.0, 0.3]])


def field(t, x, w):
    dx = {"a": jnp.tanh(w @ x["a"]) + jnp.sin(3 * t)}
    return dx, jnp.sum(w * t * x["a"])


def of(solver, method):
    def loss(x0, w):
        s = solve(field, x0, w, solver=solver, gradient=method, has_aux=True)
        return jnp.sum(s.x["a"] ** 2) + 0.1 * s.aux, (s.result, s.aux, s.x)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(X0, W)


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep(DiffraxScheme(diffrax.Tsit5()), 4),
        Adaptive(DiffraxScheme(diffrax.Kvaerno3()), 1e-2, 1e-4, max_steps=32),
        pytest.param(FixedStep(DiffraxScheme(diffrax.Kvaerno3()), 10), marks=pytest.mark.slow),
        pytest.param(Adaptive(DiffraxScheme(diffrax.Tsit5()), 1e-4, 1e-6, max_steps=32), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_methods_agree(x64, solver):
    (_, (result, _, _)), expected = of(solver, Direct())
    assert result == 0
    for method in (Checkpointed(), ACA(2)):
        assert relative(of(solver, method)[1], expected) < 1e-10


@pytest.mark.slow
def test_implicit_steps_go_back_by_the_continuous_adjoint(x64):
    """The loss leaves reports out: of those it knows nothing."""

    def end(solver, method):
        def loss(x0, w):
            s = solve(lambda t, x, w: field(t, x, w)[0], x0, w, solver=solver, gradient=method)
            return jnp.sum(s.x["a"] ** 2)

        return jax.jit(jax.grad(loss, (0, 1)))(X0, W)

    kvaerno = Adaptive(DiffraxScheme(diffrax.Kvaerno3()), 1e-4, 1e-6, max_steps=64)
    assert relative(end(kvaerno, Backsolve()), end(Adaptive("dopri5", 1e-8, 1e-10), ACA())) < 1e-3


def test_midpoint_is_midpoint(x64):
    ours, theirs = (of(FixedStep(s, 4), Direct()) for s in ("midpoint", DiffraxScheme(diffrax.Midpoint())))
    assert relative(theirs, ours) < 1e-14


@pytest.mark.parametrize("solver", [diffrax.ReversibleHeun(), diffrax.LeapfrogMidpoint(), diffrax.Sil3()], ids=str)
def test_others_are_refused_by_name(solver):
    with pytest.raises(ValueError, match=type(solver).__name__):
        DiffraxScheme(solver)
