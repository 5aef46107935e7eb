"""NODE18 and ResNet18: exact sizes, what the blocks compute, and statistics and counts under every method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, NODE18, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, ResNet18
from ode_nets.fields import ResidualUnit
from ode_nets.nn.node18 import BasicBlock
from ode_nets.remanifest import n_parameters

# A first step that is too long, so that trials are rejected; few trials, which Direct keeps room for.
SOLVER = Adaptive("heun_euler", rtol=5e-3, atol=5e-3, first_step=1.0, max_steps=24)


def sizes(net, size=32):
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return jax.eval_shape(net.init, jax.random.key(0), images)


def small(**changes):
    return NODE18(**({"n_classes": 3, "widths": (2,), "solver": SOLVER} | changes))


def test_both_networks_have_the_published_number_of_parameters():
    node, resnet = sizes(NODE18()), sizes(ResNet18())
    assert n_parameters(node) == n_parameters(resnet) == 11_173_962
    blocks = [n_parameters({"params": node["params"][f"ode{stage}_1"]}) for stage in (1, 2, 3, 4)]
    assert blocks == [73_984, 295_424, 1_180_672, 4_720_640]
    # One block more a stage is one more of these, in either network.
    assert n_parameters(sizes(NODE18(n_blocks=2))) == 11_173_962 + sum(blocks)
    assert n_parameters(sizes(ResNet18(n_blocks=2))) == 11_173_962 + sum(blocks)
    assert n_parameters(sizes(NODE18(n_classes=100))) == 11_173_962 + 90 * 513


@pytest.fixture
def trained(x64):
    """Images and float64 variables away from their initial values."""
    images = jax.random.normal(jax.random.key(1), (4, 6, 6, 2), jnp.float64)
    shapes = jax.eval_shape(small().init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = 0.4 * rng.normal(size=leaf.shape)
        return jnp.asarray(1 + 0.5 * abs(values) if path[-1].key in ("scale", "var") else values)

    start = {name: shapes[name] for name in ("params", "batch_stats")}
    return images, jax.tree_util.tree_map_with_path(draw, start)


def test_statistics_come_from_accepted_steps_alone_and_no_gradient_method_changes_them(trained):
    images, variables = trained
    methods = [Direct(), Checkpointed("step"), ACA(2), Backsolve(rtol=1e-4, atol=1e-4)]

    def run(params, method):
        # Solving backward to a closer tolerance takes more trials than Direct need have room for.
        n_trials = 4096 if isinstance(method, Backsolve) else SOLVER.max_steps
        net = small(gradient=method, solver=dataclasses.replace(SOLVER, max_steps=n_trials))

        def loss(params):
            both = variables | {"params": params}
            out, changed = net.apply(both, images, train=True, mutable=["batch_stats", "solution"])
            return jnp.sum(jnp.sin(out)), changed

        (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, changed, gradient

    results = jax.jit(lambda params: [run(params, method) for method in methods])(variables["params"])
    value, changed, gradient = results[0]
    assert all(int(block["n_rejected"]) > 0 for block in changed["solution"].values())
    assert all(int(block["result"]) == 0 for block in changed["solution"].values())
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    for method, (other_value, other, other_gradient) in zip(methods[1:], results[1:], strict=True):
        for a, b in zip(jax.tree.leaves((value, changed)), jax.tree.leaves((other_value, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
        # The continuous adjoint solves another problem, backward; it comes near but is not the same.
        tolerance = 0.2 if isinstance(method, Backsolve) else 1e-10
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance * scale)


def test_running_statistics_are_the_means_over_the_stages_of_the_steps_that_were_accepted(trained):
    images, variables = trained
    net = small(momentum=0.0)
    keep = {"mutable": ["batch_stats", "solution", "intermediates"]}
    only = {"capture_intermediates": lambda module, _: isinstance(module, BasicBlock)}
    _, changed = jax.jit(lambda v: net.apply(v, images, train=True, **keep, **only))(variables)

    # From the input of the ODE block on, Heun steps whose sizes repeat the step control by hand.
    x = changed["intermediates"]["basic1_0"]["__call__"][0]
    theta = jax.tree.map(lambda leaf: leaf[0], variables["params"]["ode1_1"]["coefficients"])
    field = jax.jit(lambda x: ResidualUnit(2, order="conv-bn-relu", skip_init=False, bias=False).apply(theta, x))
    t, h, seen, rejected = 0.0, 1.0, [], 0
    while t < 1.0:
        step = min(h, 1.0 - t)
        k1, first = field(x)
        k2, second = field(x + step * k1)
        y = x + step / 2 * (k1 + k2)
        scale = 5e-3 * (1 + jnp.maximum(jnp.abs(x), jnp.abs(y)))
        error = float(jnp.sqrt(jnp.mean((step / 2 * (k2 - k1) / scale) ** 2)))
        factor = 0.9 * error**-0.5
        if error <= 1:
            t, x = t + step, y
            seen += [first, second]
            h = step * min(max(factor, 1.0), 10.0)
        else:
            rejected += 1
            h = step * min(max(factor, 0.2), 0.9)
    block = changed["solution"]["ode1_1"]
    assert (2 * int(block["n_accepted"]), int(block["n_rejected"])) == (len(seen), rejected)
    expected = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *seen)
    got = jax.tree.map(lambda leaf: leaf[0], changed["batch_stats"]["ode1_1"]["coefficients"])
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_solver_swap_is_another_description_of_the_same_variables(trained):
    images, variables = trained

    @jax.jit
    def run(variables):
        out = {}
        for scheme in ("euler", "rk4"):
            for n in (1, 128):
                net = small(solver=FixedStep(scheme, n), gradient=Direct())
                out[f"{scheme}{n}"] = net.apply(variables, images)
        out["fine"] = small(solver=Adaptive("dopri5", 1e-9, 1e-9)).apply(variables, images)
        return out

    out = run(variables)
    np.testing.assert_allclose(out["rk4128"], out["fine"], rtol=1e-6)
    assert jnp.abs(out["euler1"] - out["fine"]).max() > 10 * jnp.abs(out["euler128"] - out["fine"]).max()


def test_bfloat16_reaches_the_convolutions_and_nothing_else():
    net, images = small(dtype="bfloat16"), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

    def run(net, variables):
        return net.apply(variables, images, train=True, mutable=["batch_stats", "solution"])

    def both():
        variables = net.init(jax.random.key(0), images)
        return variables, run(net, variables), run(net.clone(dtype=None), variables)

    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), images))
    assert "bf16" in str(jax.make_jaxpr(lambda v: run(net, v))(variables))
    assert "bf16" not in str(jax.make_jaxpr(lambda v: run(net.clone(dtype=None), v))(variables))
    variables, (logits, changed), (exact, _) = jax.jit(both)()
    for tree in (variables, logits, changed):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    np.testing.assert_allclose(logits, exact, atol=0.1)
    assert jnp.abs(logits - exact).max() > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"widths": ()}, r"widths=\(\)"), ({"widths": (4, 0)}, r"widths=\(4, 0\)"), ({"n_blocks": -1}, "n_blocks=-1")],
)
def test_what_is_no_network_is_refused_by_name(changes, says):
    for make in (small, ResNet18):
        with pytest.raises(ValueError, match=says):
            make(**changes)
    with pytest.raises(ValueError, match=r"uint8.*expected floating-point"):
        NODE18().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))


def test_descriptions_are_hashable_and_compared_by_value():
    assert hash(small()) == hash(small())
    assert small().clone(n_blocks=2) == small(n_blocks=2)
    assert small(solver=dataclasses.replace(SOLVER, rtol=0.5)) != small()
