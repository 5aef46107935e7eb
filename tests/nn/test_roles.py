"""What arrays are to the weight functions: by name and by type, and that Flax, Orbax and optax see through them."""

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from ode_nets import (
    RDA,
    BasisExpansion,
    ContinuousNet,
    Evolved,
    FixedStep,
    PiecewiseConstant,
    configuration_1,
    remanifest,
    weight_roles,
)
from small_nets import IMAGES, model

BASIS = PiecewiseConstant(2)
RATES = {"expansion": 0.1, "w0": 0.01, "p": 0.02, "other": 0.3}
PER_ROLE = optax.multi_transform({role: optax.sgd(rate, momentum=0.9) for role, rate in RATES.items()}, weight_roles)
# Labels may be called as the variables are: a step count under such a label is no coefficient all the same.
NAMES = {"expansion": "coefficients", "w0": "evolved", "p": "evolved", "other": "rest"}
NAMED = optax.multi_transform(
    {"coefficients": optax.adam(0.1), "evolved": optax.adam(0.2), "rest": optax.sgd(0.1)},
    lambda params: jax.tree.map(NAMES.get, weight_roles(params)),
)
OPTIMIZERS = {
    "adamw": optax.adamw(1e-2, mask=lambda params: jax.tree.map(lambda role: role != "p", weight_roles(params))),
    "masked": optax.masked(optax.adam(1e-2), lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
    "multi_steps": optax.MultiSteps(optax.adamw(1e-2), 2),
    "muon": optax.contrib.muon(1e-2),
    "multi_transform": PER_ROLE,
    "labels named as variables": NAMED,
}


def drawn(evolution=None):
    """A net with variables, and the same with kernels that evolve."""
    net, variables = model(BASIS, dtype="float32")
    if evolution is None:
        return net, variables
    net = net.clone(evolution=evolution)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(IMAGES, "float32"))
    rng = np.random.default_rng(3)
    return net, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def counted(tree):
    """Roles by the first name of a path, and by the second inside a block."""
    found = {}
    for path, role in jax.tree_util.tree_leaves_with_path(weight_roles(tree)):
        names = [key.key for key in path]
        found.setdefault(".".join(names[:3] if names[0] == "block1" else names[:1]), set()).add(role)
    return found


def test_roles_are_those_of_the_weight_functions():
    _, variables = drawn(configuration_1(RDA(), 4))
    assert counted(variables["params"]) == {
        "stem": {"other"},
        "head": {"other"},
        "block1.evolved.w0": {"w0"},
        "block1.evolved.p": {"p"},
    } | {name: {"expansion"} for name in counted(variables["params"]) if name.startswith("block1.coefficients")}
    assert set(jax.tree.leaves(weight_roles(variables["batch_stats"]["block1"]))) == {"expansion"}


def test_parameters_of_a_q_and_labels_of_an_optimizer_may_have_any_names():
    tree = {"evolved": {"p": {"coefficients": 1.0, "evolved": {"w0": 2.0}}, "w0": {"p": 3.0}}, "coefficients": [4.0]}
    restored = {"inner_states": {"coefficients": {"count": 1, "mu": {"coefficients": 2.0}}}}
    assert jax.tree.leaves(weight_roles(restored)) == ["other", "expansion"]
    assert weight_roles(tree) == {
        "evolved": {"p": {"coefficients": "p", "evolved": {"w0": "p"}}, "w0": {"p": "w0"}},
        "coefficients": ["expansion"],
    }


def test_weight_functions_in_a_tree_are_known_by_their_type():
    evolution = configuration_1(RDA(), 4)
    tree = (
        BasisExpansion(BASIS, {"k": jnp.ones((2, 3))}),
        [Evolved({"k": jnp.ones(3)}, {"tau": jnp.ones(1)}, evolution)],
        {"head": jnp.ones(5)},
    )
    roles = weight_roles(tree)
    assert jax.tree.structure(roles) == jax.tree.structure(tree)
    assert jax.tree.leaves(roles) == ["expansion", "w0", "p", "other"]
    sgd = optax.multi_transform({role: optax.sgd(rate) for role, rate in RATES.items()}, weight_roles)
    updates, _ = sgd.update(tree, sgd.init(tree), tree)
    for role, leaf in zip(jax.tree.leaves(roles), jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(leaf, -RATES[role], rtol=1e-6)


def test_only_coefficients_are_mapped_wherever_they_are():
    tree = {"a": {"coefficients": {"k": 1.0}}, "b": ({"coefficients": 2.0}, {"other": 3.0}), "c": 4.0}
    doubled = remanifest.map_coefficients(tree, lambda value: 2 * value)
    assert doubled == {"a": {"coefficients": {"k": 2.0}}, "b": ({"coefficients": 4.0}, {"other": 3.0}), "c": 4.0}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_optimizers_are_refined_and_projected_with_the_parameters(name):
    """On parameters of every role; a net is needed for its description alone."""
    net = ContinuousNet(basis=BASIS, solver=FixedStep("rk4", 2))
    values = iter(np.random.default_rng(4).normal(size=(5, 12)))
    draw = lambda *shape: jnp.asarray(next(values)[: np.prod(shape)].reshape(shape), jnp.float32)
    evolved = {"w0": {"conv1.kernel": draw(3, 2)}, "p": {"tau": draw(2)}}
    block = {"coefficients": {"conv1": {"kernel": draw(2, 3, 2)}, "bn1": {"scale": draw(2, 2)}}, "evolved": evolved}
    params, optimizer = {"block1": block, "head": {"kernel": draw(2, 3)}}, OPTIMIZERS[name]
    refined, _ = remanifest.refine(net, {})

    @jax.jit
    def run(params):
        state = optimizer.update(params, optimizer.init(params), params)[1]
        finer = remanifest.refine(net, {"params": params, "opt_state": state})[1]
        back = remanifest.project(refined, finer, BASIS)[1]["opt_state"]
        updates, _ = optimizer.update(finer["params"], finer["opt_state"], finer["params"])
        return state, finer, back, updates

    state, finer, back, updates = run(params)
    shapes = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
    assert shapes(finer["opt_state"]) == shapes(jax.eval_shape(optimizer.init, finer["params"]))
    assert shapes(updates) == shapes(finer["params"])
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(finer["opt_state"]), strict=True):
        np.testing.assert_array_equal(new, old if old.shape == new.shape else np.repeat(old, 2, axis=0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), back, state)


@pytest.mark.parametrize("evolution", [None, configuration_1(RDA(), 4)], ids=["expanded", "evolved"])
def test_a_checkpoint_restored_without_a_template_is_refined_like_what_was_saved(tmp_path, evolution):
    net, variables = drawn(evolution)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "variables")
    assert jax.tree.structure(restored) == jax.tree.structure(variables)
    saved, read = (remanifest.refine(net, tree)[1] for tree in (variables, restored))
    jax.tree.map(np.testing.assert_array_equal, read, saved)


def test_flax_sees_kernels_inside_blocks():
    """By path, as masks of weight decay do, and in its own serialization."""
    _, variables = drawn()
    kernels = flax.traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", variables["params"])
    assert kernels["block1"]["coefficients"]["conv1"]["kernel"]
    assert not kernels["block1"]["coefficients"]["bn1"]["scale"]
    restored = flax.serialization.from_bytes(variables, flax.serialization.to_bytes(variables))
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize("evolution", [None, configuration_1(RDA(), 4)], ids=["expanded", "evolved"])
def test_nnx_carries_the_same_roles(evolution):
    net, variables = drawn(evolution)
    images = jnp.asarray(IMAGES, "float32")
    bridged = nnx.eval_shape(lambda: nnx.bridge.lazy_init(nnx.bridge.ToNNX(net, rngs=nnx.Rngs(0)), images))
    pure = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
    assert weight_roles(pure) == weight_roles(variables["params"])
    # The state itself holds boxes around the arrays, whose roles are the same.
    roles = jax.tree.leaves(weight_roles(nnx.state(bridged, nnx.Param)))
    assert sorted(roles) == sorted(jax.tree.leaves(weight_roles(variables["params"])))


def test_variables_have_the_names_of_version_0_1_0():
    """What that version wrote loads as it is, as long as these are the names."""
    for evolution, kernels in ((None, ["coefficients"]), (configuration_1(RDA(), 4), ["coefficients", "evolved"])):
        _, variables = drawn(evolution)
        assert sorted(variables["params"]["block1"]) == kernels
        assert list(variables["batch_stats"]["block1"]) == ["coefficients"]
    assert sorted(variables["params"]["block1"]["evolved"]) == ["p", "w0"]
    assert sorted(variables["params"]["block1"]["evolved"]["w0"]) == ["conv1.kernel", "conv2.kernel"]
