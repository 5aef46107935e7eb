"""The networks of ANODEV2: counts of the paper, what the four forms compute, evolved weights in other networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import (
    ACA,
    ANODEV2,
    MLP,
    NODE18,
    RDA,
    Backsolve,
    Checkpointed,
    ContinuousNet,
    Direct,
    Evolution,
    Evolved,
    FixedStep,
    FlowStep,
    OdeBlock,
    PiecewiseConstant,
    PiecewiseLinear,
    Still,
    anodev2_net,
    configuration_1,
    regularization,
    remanifest,
)
from ode_nets.nn.evolving import split_kernels

TABLE_3 = {
    "alexnet": {"baseline": 1756682, "neural_ode": 1757130, "configuration_1": 1757510, "configuration_2": 1757130},
    "resnet4": {"baseline": 7706, "neural_ode": 7960, "configuration_1": 8230, "configuration_2": 7990},
    "resnet10": {"baseline": 44186, "neural_ode": 44950, "configuration_1": 45770, "configuration_2": 45050},
}
KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (4, 8, 8, 3))


def drawn(net, images=IMAGES):
    """Variables at which nothing is zero or alike by construction, made without compiling anything."""
    shapes = jax.eval_shape(net.init, KEY, images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        positive = path[-1].key.rsplit(".")[-1] in ("scale", "var")
        return jnp.asarray(1 + 0.2 * abs(values) if positive else 0.2 * values, leaf.dtype)

    start = {name: shapes.get(name, {}) for name in ("params", "batch_stats")}
    return jax.tree_util.tree_map_with_path(draw, start)


@pytest.mark.parametrize("network", TABLE_3)
def test_parameters_are_those_of_table_3(network):
    """Baselines exactly; the share of the evolution, which the paper leaves open, within 3 %."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for form, paper in TABLE_3[network].items():
        ours = remanifest.n_parameters(jax.eval_shape(anodev2_net(network, form).init, KEY, images))
        assert abs(ours - paper) <= (0 if form == "baseline" else 0.03 * paper), (form, ours)


def test_forms_compute_the_papers_recursions():
    """ResNet-4 in its four forms, each with weights of its own, against Euler steps written out."""

    @jax.jit
    def run():
        found = []
        for form, n in (("baseline", 1), ("neural_ode", 2), ("configuration_1", 5), ("configuration_2", 2)):
            net = anodev2_net("resnet4", form, RDA(advection=0.5), gradient=Direct())
            variables = drawn(net)
            block, stats = variables["params"]["block1"], variables["batch_stats"]["block1"]["coefficients"]
            unit = net._unit(16)
            stem = net._unit(16, n_convolutions=1, in_channels=3)
            layer, layer_stats = variables["params"]["stem"]["unit"], variables["batch_stats"]["stem"]["unit"]
            x = stem.apply(layer, IMAGES, stats=layer_stats)[0]
            for k in range(n):
                at = lambda tree, k=k: jax.tree.map(lambda leaf: leaf[k], tree)
                if form == "baseline":
                    params = at(block["coefficients"])
                else:
                    w, q = block["evolved"]["w0"], net.evolution.q
                    for _ in range({"neural_ode": 0, "configuration_1": k, "configuration_2": 10 * k}[form]):
                        w = q.flow(w, block["evolved"]["p"], 1 / (5 if n == 5 else 10))
                    norms = at(block["coefficients"])
                    params = {f"conv{i}": {"kernel": w[f"conv{i}.kernel"]} for i in (1, 2)} | {
                        f"bn{i}": {name: norms[f"bn{i}.{name}"] for name in ("scale", "bias")} for i in (1, 2)
                    }
                x = x + unit.apply(params, x, stats=at(stats))[0] / n
            head = variables["params"]["head"]
            found.append((net.apply(variables, IMAGES), x.max((1, 2)) @ head["kernel"] + head["bias"]))
        return found

    for got, want in run():
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "size"), [("alexnet", 8), ("resnet10", 16)])
def test_networks_train(network, size):
    """Every parameter moves the loss, and each interval keeps statistics of its own."""
    net = anodev2_net(network, "configuration_2")
    images = jax.random.normal(KEY, (2, size, size, 3))
    variables = drawn(net, images)

    @jax.jit
    def run(params):
        def loss(params):
            inputs = variables | {"params": params}
            logits, changed = net.apply(inputs, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits)), changed

        return jax.grad(loss, has_aux=True)(params)

    slope, changed = run(variables["params"])
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(slope) if not leaf.any()]
    # Batch norm takes a bias before it away.
    assert [name for name in still if "conv1.bias" not in name and "['conv1']['bias']" not in name] == []
    mean = changed["batch_stats"]["block1"]["coefficients"]["bn1"]["mean"]
    assert mean.shape[0] == 2
    assert jnp.abs(mean[0] - mean[1]).max() > 1e-6


CONTINUOUS = ContinuousNet(
    widths=(4,),
    basis=PiecewiseConstant(2),
    solver=FixedStep("midpoint", 2),
    skip_init=False,
    evolution=configuration_1(RDA(advection=0.3), 4),
)


def loss_of(net, params, variables):
    logits, _ = net.apply(variables | {"params": params}, IMAGES, train=True, mutable=["batch_stats"])
    return jnp.sum(logits**2)


def test_continuous_net_takes_evolved_weights():
    """One attribute; other manifestations and a refinement are those of any network, and it trains."""
    variables = drawn(CONTINUOUS)
    deeper, finer = remanifest.refine(CONTINUOUS, variables)
    assert set(variables["params"]["block1"]["evolved"]) == {"w0", "p"}

    @jax.jit
    def run(variables, finer):
        outputs = CONTINUOUS.clone(solver=deeper.solver).apply(variables, IMAGES), deeper.apply(finer, IMAGES)
        return outputs, jax.grad(loss_of, 1)(CONTINUOUS, variables["params"], variables)

    (ours, refined), slope = run(variables, finer)
    np.testing.assert_allclose(ours, refined, rtol=1e-5, atol=1e-6)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope["block1"]["evolved"]))


def test_node18_takes_evolved_weights():
    """Kernels that stand still are those of the plain network, under the same adaptive steps; others train by ACA."""
    plain = NODE18(3, (2,))
    still = plain.clone(evolution=Evolution(Still(), FlowStep(1), PiecewiseConstant(1)))
    moving = plain.clone(evolution=configuration_1(RDA(advection=0.3), 4))
    constant = drawn(plain)
    kernels, others = split_kernels(constant["params"]["ode1_1"]["coefficients"])
    w0 = {name: leaf[0] for name, leaf in kernels.items()}
    block = {"coefficients": others, "evolved": {"w0": w0, "p": {}}}
    variables = constant | {"params": constant["params"] | {"ode1_1": block}}

    @jax.jit
    def run(constant, variables, moved):
        outputs = plain.apply(constant, IMAGES), still.apply(variables, IMAGES)
        return outputs, jax.grad(loss_of, 1)(moving, moved["params"], moved)

    (want, got), slope = run(constant, variables, drawn(moving))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope["ode1_1"]["evolved"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", [Direct(), Checkpointed("step"), ACA(1), Backsolve(1e-6, 1e-6)], ids=repr)
def test_gradient_methods_agree_on_a_network_with_evolved_weights(x64, method):
    """In float64; `Backsolve` solves its adjoint to tolerances of its own."""
    variables = jax.tree.map(lambda leaf: leaf.astype(float), drawn(CONTINUOUS))
    finely = CONTINUOUS.clone(solver=FixedStep("rk4", 64)) if isinstance(method, Backsolve) else CONTINUOUS

    @jax.jit
    def run(variables):
        nets = [finely.clone(gradient=gradient) for gradient in (Checkpointed("block"), method)]
        return [jax.grad(loss_of, 1)(net, variables["params"], variables) for net in nets]

    want, got = run(variables)
    rtol = 1e-2 if isinstance(method, Backsolve) else 1e-9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 100), got, want)


def test_blocks_of_perceptrons_evolve_their_kernels():
    """Any unit and any q: theta(1/2) of a block is read from the path of its kernels."""
    half = lambda w, p: jax.tree.map(lambda leaf: -leaf, w)
    evolution = Evolution(half, FixedStep("euler", 2), PiecewiseLinear(3))
    block = OdeBlock(MLP(3, (4,)), PiecewiseConstant(1), FixedStep("midpoint", 1), evolution=evolution)
    x = jax.random.normal(KEY, (5, 3))
    variables = drawn(block, x)
    params, w0 = variables["params"]["coefficients"], variables["params"]["evolved"]["w0"]
    assert set(params) == {"0.bias", "1.bias"}
    assert variables["params"]["evolved"]["p"] == {}

    def slope(x, scale):
        hidden = jnp.tanh(x @ (scale * w0["0.kernel"]) + params["0.bias"][0])
        return hidden @ (scale * w0["1.kernel"]) + params["1.bias"][0]

    want = x + slope(x + slope(x, 1.0) / 2, 0.5)
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), want, rtol=1e-5, atol=1e-6)


def test_regularization_is_of_w0_and_p_alone():
    evolved = {"w0": {"k": jnp.full(3, 2.0)}, "p": {"tau": jnp.full(2, 3.0)}}
    params = {"block1": {"evolved": evolved, "coefficients": jnp.ones(7)}, "head": jnp.ones(5)}
    assert regularization(params, w0=0.5) == 0.5 / 2 * 12
    assert regularization(params, w0=0.5, p=0.1) == pytest.approx(0.5 / 2 * 12 + 0.1 / 2 * 18)
    assert regularization({"head": jnp.ones(5)}, w0=1.0, p=1.0) == 0
    bare = Evolved(evolved["w0"], evolved["p"], Evolution(Still(), FlowStep(1), PiecewiseConstant(1)))
    assert regularization((bare, jnp.ones(3)), w0=0.5, p=0.1) == regularization(params, w0=0.5, p=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regularization({}, w0=-1.0), "w0=-1.0: expected at least 0"),
        (lambda: anodev2_net("resnet4", "config1"), "form='config1'"),
        (lambda: anodev2_net("resnet5", "baseline"), "network='resnet5'"),
        (lambda: ANODEV2("vgg").init(KEY, IMAGES), "network='vgg'"),
        (lambda: ANODEV2().init(KEY, IMAGES[:, :4]), "at least 8x8 pixels"),
        (lambda: ANODEV2("resnet10").init(KEY, IMAGES), "at least 16x16 pixels"),
        (lambda: ANODEV2().init(KEY, IMAGES.astype(int)), "expected floating-point"),
        (lambda: anodev2_net("resnet4", "configuration_1", lambda w, p: w["conv1.kernel"]).init(KEY, IMAGES), "of w0"),
        (
            lambda: OdeBlock(
                MLP(3), PiecewiseConstant(1), FixedStep("euler", 1),
                evolution=Evolution(RDA(), FlowStep(1), PiecewiseConstant(1)),
            ).init(KEY, IMAGES[0, 0]),
            "RDA needs a filter",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make)
