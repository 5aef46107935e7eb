"""The OdeBlock: its times, augmented channels, rematerialization, and right-hand sides that are linen modules."""

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agreement import relative
from ode_nets import (
    ACA,
    MLP,
    BasisExpansion,
    Direct,
    FixedStep,
    LinenUnit,
    Measured,
    OdeBlock,
    PiecewiseConstant,
    ResidualUnit,
    kinetic_energy,
    of_steps,
    remanifest,
    solve,
    with_quantities,
)
from ode_nets.interop.diffrax import DiffraxSolver

UNIT = MLP(3, (4,), time_aware=True)


def test_zeros_are_appended_and_taken_away_or_kept(x64):
    block = OdeBlock(UNIT, PiecewiseConstant(2), FixedStep("rk4", 4), augment=1)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    variables = block.init(jax.random.key(1), x)
    wide = jnp.concatenate([x, jnp.zeros((5, 1))], -1)
    expected = block.clone(augment=0).apply(variables, wide)
    np.testing.assert_array_equal(block.apply(variables, x), expected[:, :2])
    np.testing.assert_array_equal(block.clone(keep_augmented=True).apply(variables, x), expected)
    with pytest.raises(ValueError, match="augment=-1: expected an integer of at least 0"):
        block.clone(augment=-1).apply(variables, x)


def test_depth_starts_and_ends_where_it_is_told_to_and_is_looked_at_on_the_way(x64):
    ts = (1.0, 1.75, 3.0)
    block = OdeBlock(UNIT, PiecewiseConstant(2), FixedStep("rk4", 8), t0=1.0, t1=3.0, ts=ts)
    x = jax.random.normal(jax.random.key(0), (5, 3))
    variables = block.init(jax.random.key(1), x)
    weights = BasisExpansion(PiecewiseConstant(2), variables["params"]["coefficients"], (1.0, 3.0))
    expected = solve(UNIT, x, weights, solver=FixedStep("rk4", 8), t0=1.0, t1=3.0, ts=ts).x
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-14)
    # There and back again.
    end = block.clone(ts=None).apply(variables, x)
    back = block.clone(ts=None, t0=3.0, t1=1.0, solver=FixedStep("rk4", 64)).apply(variables, end)
    np.testing.assert_allclose(back, x, atol=1e-4)


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        (lambda x: x, "has no init, no init_stats, no apply: expected a Unit, such as ResidualUnit"),
        (ResidualUnit, "unit=ResidualUnit is a class: expected a Unit"),
        (nn.Dense, "unit=Dense is a class: expected a Unit"),
    ],
)
def test_what_is_no_right_hand_side_is_refused_with_what_it_lacks(unit, says):
    with pytest.raises(ValueError, match=says):
        OdeBlock(unit, PiecewiseConstant(1), FixedStep("euler", 1)).init(jax.random.key(0), jnp.ones((1, 3)))


class Convolutions(nn.Module):
    """The layers of ResidualUnit(channels, order="conv-bn-relu", skip_init=False), as a user would write them."""

    channels: int
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train):
        for i in (1, 2):
            x = nn.Conv(self.channels, (3, 3), name=f"conv{i}")(x)
            norm = nn.BatchNorm(not train, momentum=self.momentum, use_fast_variance=False, name=f"bn{i}")
            x = jax.nn.relu(norm(x))
        return x


HAND = OdeBlock(
    ResidualUnit(2, order="conv-bn-relu", skip_init=False), PiecewiseConstant(2), FixedStep("midpoint", 2), Direct()
)


def start(x):
    """Variables away from their initial values."""
    shapes = jax.eval_shape(HAND.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = 0.4 * rng.normal(size=leaf.shape)
        return jnp.asarray(1 + 0.5 * abs(values) if path[-1].key in ("scale", "var") else values)

    return jax.tree_util.tree_map_with_path(draw, {name: shapes[name] for name in ("params", "batch_stats")})


def train(block, variables, x):
    def loss(params):
        out, changed = block.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(out)), (out, changed)

    return jax.grad(loss, has_aux=True)(variables["params"])


def test_a_linen_module_is_the_right_hand_side_that_it_writes_down(x64):
    x = jax.random.normal(jax.random.key(1), (3, 5, 5, 2))
    variables = start(x)
    # Whatever momentum the module has, the block's own is what counts.
    linen = HAND.clone(unit=Convolutions(2, momentum=0.73))
    assert jax.tree.map(jnp.shape, linen.init(jax.random.key(0), x)["params"]) == jax.tree.map(
        jnp.shape, variables["params"]
    )

    @jax.jit
    def run(variables):
        return [
            (train(block.clone(gradient=method), variables, x), block.apply(variables, x))
            for block, method in ((HAND, Direct()), (linen, Direct()), (linen, ACA(1)))
        ]

    expected, *others = run(variables)
    for other in others:
        assert relative(other, expected) < 1e-12


@pytest.mark.slow
def test_a_linen_module_can_be_trained_refined_projected_swapped_and_exported():
    x = jax.random.normal(jax.random.key(1), (4, 4, 4, 2))
    block = OdeBlock(Convolutions(2), PiecewiseConstant(2), FixedStep("midpoint", 2))
    optimizer = optax.sgd(0.05)

    @jax.jit
    def step(variables, state):
        def loss(params):
            both = variables | {"params": params}
            out, changed = block.apply(both, x, train=True, mutable=["batch_stats"])
            return jnp.mean((out - 1.5 * x) ** 2), changed

        (value, changed), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(slope, state)
        return variables | {"params": optax.apply_updates(variables["params"], updates)} | changed, state, value

    variables = block.init(jax.random.key(0), x)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    state, values = optimizer.init(variables["params"]), []
    for _ in range(20):
        variables, state, value = step(variables, state)
        values.append(float(value))
    assert values[-1] < 0.9 * values[0]
    finer, refined = remanifest.refine(block, variables)
    assert jax.tree.leaves(refined["params"])[0].shape[0] == 4
    coarser, projected = remanifest.project(finer, refined, PiecewiseConstant(2))
    pairs = [
        (block, variables),
        (finer.clone(solver=block.solver), refined),
        (coarser.clone(solver=block.solver), projected),
    ]
    before, *others = jax.jit(lambda: [net.apply(v, x) for net, v in pairs])()
    for other in others:
        np.testing.assert_allclose(other, before, rtol=1e-5, atol=1e-5)
    score = lambda out, batch: jnp.sum(out)
    scores, _ = remanifest.swap_solvers(block, variables, [block.solver], lambda: [(x, ())], score)
    np.testing.assert_allclose(scores[0], jnp.sum(before), rtol=1e-5)
    exported = jax.export.deserialize(bytearray(remanifest.export_inference(block, variables, x.shape[1:])))
    np.testing.assert_allclose(exported.call(x), before, rtol=1e-5, atol=1e-5)


def test_linen_modules_without_statistics_are_evaluated_as_such_and_states_of_others_refused():
    class Flip(nn.Module):
        @nn.compact
        def __call__(self, x, t, train):
            return nn.Dense(3)(x) * t * (1 if train else -1)

    x = jnp.ones((2, 3))
    unit = LinenUnit(Flip(), (1, 3))
    params = unit.init(jax.random.key(0))
    np.testing.assert_array_equal(unit.apply(params, x, 2.0)[0], -unit.apply(params, x, 2.0, {})[0])
    block = OdeBlock(Flip(), PiecewiseConstant(1), FixedStep("euler", 1))
    variables = block.init(jax.random.key(0), x)
    assert not jax.tree.leaves(variables["batch_stats"])
    np.testing.assert_array_equal(block.apply(variables, x), x)

    class Keeping(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("cache", "last", jnp.zeros, ())
            return x

    with pytest.raises(ValueError, match="unit=Keeping has variables in cache"):
        OdeBlock(Keeping(), PiecewiseConstant(1), FixedStep("euler", 1)).init(jax.random.key(0), x)


def test_blocks_can_be_rematerialized_in_training(x64):
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    variables = start(x)
    block = HAND.clone(solver=FixedStep("euler", 1))
    again = nn.remat(OdeBlock, static_argnums=(2,))(block.unit, block.basis, block.solver, block.gradient)
    expected, got = jax.jit(lambda v: [train(b, v, x) for b in (block, again)])(variables)
    assert relative(got, expected) < 1e-12


def test_quantities_along_a_block_are_those_of_its_solve(x64):
    names = ("kinetic_energy", "stiffness")
    block = OdeBlock(UNIT, PiecewiseConstant(2), FixedStep("rk4", 4), quantities=names)
    x = jax.random.normal(jax.random.key(0), (5, 3))
    variables = block.init(jax.random.key(1), x)

    @jax.jit
    def run(variables):
        weights = BasisExpansion(PiecewiseConstant(2), variables["params"]["coefficients"])
        system = with_quantities(UNIT, kinetic_energy=kinetic_energy, stiffness=of_steps)
        expected = solve(system, system.start(x), weights, solver=FixedStep(Measured("rk4"), 4)).x
        return expected, block.apply(variables, x, True, mutable=["batch_stats", "quantities"])

    expected, (out, changed) = run(variables)
    np.testing.assert_allclose(out, expected.x, rtol=1e-13)
    np.testing.assert_allclose(changed["quantities"]["kinetic_energy"], expected.q["kinetic_energy"] / 15, rtol=1e-13)
    np.testing.assert_allclose(changed["quantities"]["stiffness"], expected.q["stiffness"], rtol=1e-13)
    with pytest.raises(ValueError, match=r"\['speed'\] expected out of kinetic_energy, jacobian"):
        block.clone(quantities=("speed",)).apply(variables, x, True, mutable=["batch_stats"])


def test_quantities_of_steps_that_a_solver_of_diffrax_cannot_give_are_refused_by_name():
    solver = DiffraxSolver(diffrax.Tsit5(), dt0=0.5)
    block = OdeBlock(UNIT, PiecewiseConstant(1), solver, quantities=("local_error",))
    variables = {"params": {"coefficients": jax.tree.map(lambda a: a[None], UNIT.init(jax.random.key(0)))}}
    with pytest.raises(ValueError, match=r"DiffraxSolver.*local_error and stiffness are of steps of a Runge-Kutta"):
        block.apply(variables, jnp.ones((5, 3)), True, mutable=["batch_stats"])


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(x.shape[-1])(x))


def test_a_module_that_draws_random_numbers_is_refused_in_training_whatever_it_is_given():
    block, x = OdeBlock(Dropping(), PiecewiseConstant(1), FixedStep("euler", 2)), jnp.ones((5, 3))
    keys = jax.random.key(0)
    variables = block.init(keys, x)
    assert block.apply(variables, x).shape == x.shape
    with pytest.raises(ValueError, match="unit=Dropping draws random numbers in training"):
        block.apply(variables, x, True, mutable=["batch_stats"], rngs={"dropout": keys})


def test_statistics_that_training_leaves_as_they_are_are_refused():
    """They would be taken for those of the batch."""

    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x)

    block, x = OdeBlock(Frozen(), PiecewiseConstant(1), FixedStep("euler", 1)), jnp.array([[1.0], [2.0]])
    variables = block.init(jax.random.key(0), x)
    np.testing.assert_allclose(block.apply(variables, x), 2 * x, rtol=1e-4)
    with pytest.raises(ValueError, match="Frozen keeps its running statistics in training"):
        block.apply(variables, x, train=True, mutable=["batch_stats"])
