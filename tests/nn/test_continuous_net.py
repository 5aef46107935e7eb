"""Parameter counts, the ResNet that an Euler ContinuousNet is, and batch statistics under every method."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agreement import relative
from ode_nets import ACA, Checkpointed, Direct, FixedStep, Legendre, PiecewiseConstant
from ode_nets.fields import ResidualUnit
from ode_nets.nn import ContinuousNet, WideContinuousNet, as_resnet
from ode_nets.nn.layers import Stem
from ode_nets.remanifest import n_parameters
from ode_nets.weights import RDA, configuration_1


def count(net, size=32, channels=3):
    images = jnp.zeros((1, size, size, channels))
    return n_parameters(jax.eval_shape(lambda: net.init(jax.random.key(0), images)))


def small(**changes):
    settings = {
        "widths": (2, 4),
        "n_classes": 3,
        "basis": PiecewiseConstant(3),
        "solver": FixedStep("euler", 3),
    }
    return ContinuousNet(**(settings | changes))


def moved(variables):
    """Variables away from their initial values, so that no scalar is zero; float64."""

    def leaf(path, value):
        key = jax.random.key(len(jax.tree_util.keystr(path)))
        return jnp.asarray(value, jnp.float64) + 0.1 * jnp.abs(jax.random.normal(key, value.shape, jnp.float64))

    return jax.tree_util.tree_map_with_path(leaf, variables)


def test_published_parameter_counts():
    assert count(ContinuousNet()) == 3_191_450
    assert count(WideContinuousNet()) == 13_584_188
    # With a norm before the pooling they round to the paper's 3.19M and 13.58M too.
    assert count(ContinuousNet(final_norm=True)) == 3_191_578
    assert count(WideContinuousNet(final_norm=True)) == 13_584_700


@pytest.mark.parametrize(
    ("m", "expected"),
    [(1, 170_717), (2, 268_160), (4, 463_046), (8, 852_818), (16, 1_632_362), (32, 3_191_450)],
)
def test_parameter_counts_during_refinement(m, expected):
    assert count(ContinuousNet(basis=PiecewiseConstant(m), solver=FixedStep("rk4", m))) == expected


def test_euler_with_as_many_intervals_as_steps_is_the_resnet(x64):
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 2), jnp.float64)
    net = small(epsilon=3.0, final_norm=True)
    variables = moved(jax.jit(net.init)(jax.random.key(0), images))
    resnet, twin_variables = as_resnet(net, variables)

    def run(model, variables):
        def loss(params):
            both = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, changed = model.apply(both, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits)), (logits, changed["batch_stats"])

        (_, (logits, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {
            "train": logits,
            "eval": model.apply(variables, images),
            "params": gradient,
            "batch_stats": stats,
        }

    ours, theirs = (
        jax.jit(lambda v: run(net, v))(variables),
        jax.jit(lambda v: run(resnet, v))(twin_variables),
    )
    converted = as_resnet(net, {name: ours[name] for name in ("params", "batch_stats")})[1]
    for name, expected in theirs.items():
        got = converted.get(name, ours[name])
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        # Biases before a batch norm have no gradient, so that each leaf has no scale of its own.
        assert relative(got, expected) < 1e-9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "epsilon=1.0: only epsilon=3"),
        ({"epsilon": 3.0, "dtype": "bfloat16"}, "dtype='bfloat16': only dtype=None"),
        ({"epsilon": 3.0, "evolution": configuration_1(RDA())}, r"evolution=.*: only evolution=None"),
    ],
)
def test_only_a_resnet_is_taken_for_one(changes, says):
    with pytest.raises(ValueError, match=says):
        as_resnet(small(**changes), {})


def test_gradient_methods_agree_in_gradients_and_in_batch_statistics(x64):
    images = jax.random.normal(jax.random.key(1), (4, 4, 4, 1), jnp.float64)
    net = small(widths=(2,), basis=PiecewiseConstant(2), solver=FixedStep("midpoint", 4))
    variables = moved(jax.jit(net.init)(jax.random.key(0), images))

    def run(gradient):
        def loss(params):
            both = {"params": params, "batch_stats": variables["batch_stats"]}
            model = net.clone(gradient=gradient)
            logits, changed = model.apply(both, images, train=True, mutable=["batch_stats", "solution"])
            return jnp.sum(jnp.sin(logits)), changed

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (_, reference), gradient = jax.jit(lambda: run(Direct()))()
    assert jax.tree.map(int, reference["solution"]["block1"]) == {
        "nfe": 8, "n_accepted": 4, "n_rejected": 0, "result": 0,
    }  # fmt: skip
    for method in (Checkpointed("step"), Checkpointed("block"), ACA(2)):
        (_, changed), other = jax.jit(lambda method=method: run(method))()
        assert relative(other, gradient) < 1e-11
        assert relative(changed["batch_stats"], reference["batch_stats"]) < 1e-11
        assert jax.tree.map(int, changed["solution"]) == jax.tree.map(int, reference["solution"])


def test_statistics_of_an_interval_are_the_mean_over_its_stages(x64):
    images = jax.random.normal(jax.random.key(1), (4, 4, 4, 1), jnp.float64)
    net = small(widths=(2,), basis=PiecewiseConstant(2), solver=FixedStep("euler", 4), momentum=0.0)
    variables = moved(jax.jit(net.init)(jax.random.key(0), images))
    _, changed = net.apply(variables, images, train=True, mutable=["batch_stats"])
    # The stem's output, then four Euler steps by hand.
    x, _ = Stem(2, 0.0).apply(
        {"params": variables["params"]["stem"], "batch_stats": variables["batch_stats"]["stem"]},
        images, train=True, mutable=["batch_stats"],
    )  # fmt: skip
    unit, seen = ResidualUnit(2), []
    for k in range(4):
        theta = jax.tree.map(lambda leaf, k=k: leaf[k // 2], variables["params"]["block1"]["coefficients"])
        dx, used = unit.apply(theta, x)
        seen.append(used)
        x = x + dx / 4
    for interval in range(2):
        expected = jax.tree.map(lambda a, b: (a + b) / 2, *seen[2 * interval : 2 * interval + 2])
        got = jax.tree.map(lambda leaf, i=interval: leaf[i], changed["batch_stats"]["block1"]["coefficients"])
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "shape", "channels"),
    [
        ({"widths": (3,), "order": "conv-bn-relu", "skip_init": False, "n_classes": 7}, (9, 5), 1),
        pytest.param(
            {"widths": (2, 3, 4), "order": "conv-relu-bn", "basis": Legendre(2)}, (8, 12), 4, marks=pytest.mark.slow
        ),
    ],
)
def test_sizes_orders_and_bases_are_free(changes, shape, channels):
    net = small(**changes)
    images = jnp.ones((2, *shape, channels))
    variables = jax.jit(net.init)(jax.random.key(0), images)
    logits, _ = jax.jit(lambda v: net.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
    assert logits.shape == (2, net.n_classes)
    assert jnp.isfinite(logits).all()


def test_in_nnx_values_gradients_and_statistics_are_those_of_linen(x64):
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1), jnp.float64)
    net = small(widths=(2,))
    model = nnx.bridge.lazy_init(nnx.bridge.ToNNX(net, rngs=nnx.Rngs(0)), images)
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    variables = moved({name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()})
    for name, kind in kinds.items():
        state = nnx.state(model, kind)
        nnx.replace_by_pure_dict(state, variables[name])
        nnx.update(model, state)

    @nnx.jit
    def in_nnx(model):
        evaluated = model(images)
        loss = lambda model: jnp.sum(jnp.sin(model(images, train=True, mutable=["batch_stats"])))
        gradient = nnx.grad(loss)(model)
        return evaluated, nnx.to_pure_dict(gradient), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @jax.jit
    def in_linen(variables):
        def loss(params):
            both = variables | {"params": params}
            logits, changed = net.apply(both, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits)), changed["batch_stats"]

        gradient, statistics = jax.grad(loss, has_aux=True)(variables["params"])
        return net.apply(variables, images), gradient, statistics

    expected = in_linen(variables)
    assert relative(expected[2], variables["batch_stats"]) > 0.1, "statistics that do not move would show nothing"
    got = in_nnx(model)
    for name, a, b in zip(("logits", "gradient", "batch_stats"), got, expected, strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b), name
        assert relative(a, b) < 1e-12, name


def test_integer_images_are_refused_by_name():
    with pytest.raises(ValueError, match=r"uint8.*expected floating-point"):
        small().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))


def test_a_net_is_a_flax_module_and_a_description():
    net = small()
    assert isinstance(net, nn.Module)
    assert net.clone(solver=FixedStep("rk4", 7)) == small(solver=FixedStep("rk4", 7))
    assert hash(net) == hash(small())
