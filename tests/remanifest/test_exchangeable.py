"""What a network of one's own offers: with it every function takes it, without it each gives the same error."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import MLP, FixedStep, OdeBlock, PiecewiseConstant, remanifest, validity
from ode_nets.gradients import Direct, GradientMethod
from ode_nets.nn import ContinuousNet, ResNet
from ode_nets.weights import Basis

X = jnp.ones((3, 2))


class Own(nn.Module):
    solver: FixedStep = FixedStep("midpoint", 2)
    basis: Basis = PiecewiseConstant(2)
    gradient: GradientMethod = Direct()

    @nn.compact
    def __call__(self, x):
        return OdeBlock(MLP(2, (3,)), self.basis, self.solver, self.gradient)(x)


class Hidden(nn.Module):
    """The same block, but nobody can exchange its parts."""

    solver: str = "midpoint"

    @nn.compact
    def __call__(self, x):
        return OdeBlock(MLP(2, (3,)), PiecewiseConstant(2), FixedStep(self.solver, 2))(x)


def test_a_net_of_ones_own_is_refined_and_swapped():
    net = Own()
    assert isinstance(net, remanifest.Exchangeable)
    variables = jax.jit(net.init)(jax.random.key(0), X)
    deeper, finer = remanifest.refine(net, variables)
    same = jax.jit(lambda v: net.clone(solver=FixedStep("midpoint", 4)).apply(v, X))(variables)
    np.testing.assert_allclose(jax.jit(deeper.apply)(finer, X), same, rtol=1e-6)
    solvers = [FixedStep("midpoint", 4), FixedStep("euler", 2)]
    scores, _ = remanifest.swap_solvers(net, variables, solvers, lambda: [(X, ())], lambda y, _: y.sum())
    np.testing.assert_allclose(scores[0], same.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        (lambda net: remanifest.refine(net, {}), "no basis, solver='midpoint'"),
        (lambda net: remanifest.project(net, {}, PiecewiseConstant(1)), "no basis"),
        (lambda net: remanifest.interpolate(net, {}, PiecewiseConstant(1)), "no basis"),
        (lambda net: remanifest.make_swap(net, lambda *_: 0), "solver='midpoint', no gradient"),
        (lambda net: validity.of_model(net, {}, X), "solver='midpoint', no gradient"),
    ],
)
def test_what_is_missing_is_named_in_the_one_error(call, missing):
    with pytest.raises(ValueError, match=f"net is a Hidden with {missing}: expected .*attributes basis.*Exchangeable"):
        call(Hidden())


def test_networks_of_the_library_are_such_where_their_weights_have_a_basis():
    assert isinstance(ContinuousNet(), remanifest.Exchangeable)
    assert not isinstance(ResNet(), remanifest.Exchangeable)
