import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ode_nets import manifest
from ode_nets.gradients import Direct
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.nn import ContinuousNet, ResNet
from ode_nets.weights import Legendre, PiecewiseConstant, PiecewiseLinear

GRID = [FixedStep("euler", 1), FixedStep("midpoint", 3), FixedStep("rk4_38", 5), FixedStep("rk4", 2)]
IMAGES = np.random.default_rng(0).normal(size=(6, 4, 4, 1))
LABELS = np.random.default_rng(1).integers(0, 3, size=6)


def model(basis, n_steps=2, widths=(2,), dtype=None):
    """A net and variables of which none is at its initial value: skip-init would hide the blocks."""
    net = ContinuousNet(n_classes=3, widths=widths, basis=basis, solver=FixedStep("rk4", n_steps), gradient=Direct())
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(IMAGES, dtype))
    rng = np.random.default_rng(2)

    def leaf(path, shape):
        values = rng.normal(size=shape.shape) * 0.7
        # The parameters of every interval differ, and no variance is small or negative.
        return jnp.asarray(1 + values**2 if "var" in str(path[-1]) else values, dtype)

    return net, jax.tree_util.tree_map_with_path(leaf, variables)


def logits(net, variables):
    return jax.jit(net.apply)(variables, IMAGES)


def score(values, labels):
    return {"sum": values.sum(), "hits": jnp.sum(values.argmax(-1) == labels)}


def batches():
    yield IMAGES[:3], LABELS[:3]
    yield IMAGES[3:], LABELS[3:]


@pytest.mark.parametrize("basis", [PiecewiseConstant(2), Legendre(3), PiecewiseLinear(1)])
def test_refinement_leaves_the_function_of_the_net_unchanged(x64, basis):
    net, variables = model(basis, n_steps=3)
    refined, finer = manifest.refine(net, variables)
    assert refined.solver == FixedStep("rk4", 6)
    assert refined.basis == basis.refined(2)
    block = finer["params"]["block1"]["coefficients"]
    assert all(leaf.shape[0] == refined.basis.n_basis for leaf in jax.tree.leaves(block))
    np.testing.assert_allclose(
        logits(refined.clone(solver=net.solver), finer), logits(net, variables), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("basis", [PiecewiseConstant(3), Legendre(2)])
def test_projecting_back_undoes_a_refinement_of_variables_and_of_the_optimizer_state(x64, basis):
    net, variables = model(basis)
    optimizer = optax.sgd(optax.constant_schedule(0.1), momentum=0.9)
    state = optimizer.init(variables["params"])
    _, state = optimizer.update(variables["params"], state)
    everything = variables | {"opt_state": state}

    refined, _ = manifest.refine(net, {}, factor=3)
    back, _ = manifest.project(refined, {}, basis)
    assert (refined.basis, back.basis) == (basis.refined(3), basis)

    @jax.jit
    def there_and_back(tree):
        finer = manifest.refine(net, tree, factor=3)[1]
        return finer, manifest.project(refined, finer, basis)[1]

    finer, coarse = there_and_back(everything)
    assert jax.tree.structure(coarse) == jax.tree.structure(everything)
    for old, new in zip(jax.tree.leaves(everything), jax.tree.leaves(coarse), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-12)
    # Momentum has the shapes of the parameters it belongs to, and the step count is no coefficient.
    trace = finer["opt_state"][0].trace
    assert jax.tree.map(jnp.shape, trace) == jax.tree.map(jnp.shape, finer["params"])
    assert finer["opt_state"][1].count == state[1].count
    optimizer.update(finer["params"], finer["opt_state"], finer["params"])


def test_refined_momentum_of_intervals_is_the_momentum_of_the_interval_they_came_from():
    net, variables = model(PiecewiseConstant(2), dtype="float32")
    _, finer = manifest.refine(net, {"momentum": variables["params"]})
    for old, new in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(finer["momentum"]), strict=True):
        np.testing.assert_array_equal(new, old if new.shape == old.shape else np.repeat(old, 2, axis=0))


def test_statistics_of_merged_intervals_are_averages():
    net, variables = model(PiecewiseConstant(4), dtype="float32")
    _, merged = manifest.project(net, variables, PiecewiseConstant(2))
    old = variables["batch_stats"]["block1"]["coefficients"]["bn1"]["var"]
    new = merged["batch_stats"]["block1"]["coefficients"]["bn1"]["var"]
    np.testing.assert_allclose(new, (old[::2] + old[1::2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(
        merged["batch_stats"]["stem"]["bn"]["var"], variables["batch_stats"]["stem"]["bn"]["var"]
    )


@pytest.mark.parametrize("basis", [PiecewiseConstant(4), PiecewiseLinear(3)])
def test_a_swap_grid_is_its_manifestations_one_by_one_and_compiles_once(x64, basis):
    net, variables = model(basis)
    traces = []

    def counted(values, labels):
        traces.append(values.shape)
        return score(values, labels) | {"logits": jnp.square(values)}

    scores, seconds = manifest.swap_solvers(net, variables, GRID, batches, counted)
    assert len(traces) == 1
    assert seconds == []
    for solver, got in zip(GRID, scores, strict=True):
        values = logits(net.clone(solver=solver), variables)
        np.testing.assert_allclose(got["logits"], values[:3] ** 2 + values[3:] ** 2, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(got["sum"], values.sum(), rtol=1e-10)
        assert got["hits"] == (values.argmax(-1) == LABELS).sum()
    assert len({float(got["sum"]) for got in scores}) == len(GRID)


def test_lanes_change_nothing_but_the_memory(x64):
    net, variables = model(PiecewiseConstant(3))
    ticks = iter(range(100))
    timer = lambda: float(next(ticks))
    example, shared = (
        next(batches()),
        partial(manifest.compile_swap, net, variables, score=score, solvers=GRID),
    )
    one, three = shared(example, lanes=1), shared(example, lanes=3)
    assert (one.lanes, three.lanes) == (1, 3)
    assert three.temporary_bytes > one.temporary_bytes > 0

    alone, _ = manifest.run_swap(one, variables, GRID, batches)

    def slow_batches():
        for batch in batches():
            timer()
            yield batch

    together, seconds = manifest.run_swap(three, variables, GRID, slow_batches, timer)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a["sum"], b["sum"], rtol=1e-10)
        assert a["hits"] == b["hits"]
    # Two chunks of two batches, a tick each, shared out by field evaluations: 1, 6, 8 and then 20. That the lazy
    # batches read the clock as well changes nothing.
    np.testing.assert_allclose(seconds, [2 / 15, 12 / 15, 2, 16 / 15])


def test_a_memory_bound_chooses_the_lanes():
    net, variables = model(PiecewiseConstant(1), dtype="float32")
    images = jnp.asarray(IMAGES, "float32")
    shared = partial(manifest.compile_swap, net, variables, (images, LABELS), score, GRID)
    half = shared(lanes=2).temporary_bytes
    bounded = shared(bytes_available=half)
    assert 1 <= bounded.lanes <= 2
    assert bounded.temporary_bytes <= half


@pytest.mark.parametrize(("solvers", "lanes"), [([], 1), (GRID, 0)])
def test_an_empty_grid_is_refused(solvers, lanes):
    net, variables = model(PiecewiseConstant(1))
    with pytest.raises(ValueError, match="at least one"):
        manifest.swap_solvers(net, variables, solvers, batches, score, lanes=lanes)


def test_only_a_fixed_number_of_steps_can_be_refined():
    net, variables = model(PiecewiseConstant(1))
    adaptive = net.clone(solver=Adaptive("dopri5", rtol=1e-3, atol=1e-3))
    with pytest.raises(ValueError, match="FixedStep"):
        manifest.refine(adaptive, variables)


@pytest.mark.parametrize("change", [manifest.refine, lambda *net: manifest.project(*net, Legendre(2))])
def test_a_net_whose_weights_are_in_no_basis_is_refused_by_name(change):
    with pytest.raises(ValueError, match=r"net is a ResNet, whose weights are in no basis: expected .* ContinuousNet"):
        change(ResNet(), {})


@pytest.mark.parametrize(
    ("scheme", "stages"),
    [("euler", 1), ("midpoint", 2), ("rk4", 4), ("rk4_38", 4), ("bosh3", 3), ("dopri5", 6)],
)
def test_field_evaluations_do_not_count_stages_of_the_error_estimate(scheme, stages):
    assert manifest.nfe(FixedStep(scheme, 5), n_blocks=3) == 15 * stages


def test_field_evaluations_of_an_implicit_scheme_are_not_known_before():
    diffrax = pytest.importorskip("diffrax")
    from ode_nets.interop.diffrax import DiffraxScheme

    with pytest.raises(ValueError, match="solve and count"):
        manifest.nfe(FixedStep(DiffraxScheme(diffrax.ImplicitEuler()), 5))


def test_lanes_within_a_bound():
    assert manifest.lanes_within(100, 30, 8) == 3
    assert manifest.lanes_within(10, 30, 8) == 1
    assert manifest.lanes_within(1000, 30, 8) == 8
    assert manifest.lanes_within(1000, 0, 8) == 8


def test_the_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(3)
    points = [(float(c), float(v)) for c, v in rng.integers(0, 12, size=(60, 2))]
    front = manifest.pareto_front(points)

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    unbeaten = {p for p in points if not any(beats(q, p) for q in points)}
    assert {points[i] for i in front} == unbeaten
    assert len(front) == len(unbeaten)
    costs, values = zip(*(points[i] for i in front), strict=True)
    assert list(costs) == sorted(costs)
    assert list(values) == sorted(values)


def test_the_pareto_front_prefers_the_earlier_of_equals_and_leaves_out_what_is_not_a_number():
    points = [(2.0, 0.5), (2.0, 0.5), (1.0, float("nan")), (3.0, 0.5), (4.0, 0.6)]
    assert manifest.pareto_front(points) == [0, 4]
    assert manifest.pareto_front([]) == []


def test_an_exported_net_runs_without_the_library(tmp_path):
    net, variables = model(PiecewiseConstant(2), dtype="float32")
    data = manifest.export_inference(
        net,
        variables,
        IMAGES.shape[1:],
        preprocess=lambda x: x.astype("float32") / 255,
        dtype="uint8",
        platforms=("cpu",),
    )
    images = np.random.default_rng(4).integers(0, 256, size=(5, *IMAGES.shape[1:]), dtype=np.uint8)
    (tmp_path / "model").write_bytes(data)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['ode_nets'] = sys.modules['flax'] = None\n"
        "import numpy as np; from jax import export\n"
        "function = export.deserialize(bytearray(open('model', 'rb').read()))\n"
        "images = np.load('images.npy')\n"
        "np.save('logits.npy', np.concatenate([function.call(images[:2]), function.call(images[2:])]))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = jax.jit(net.apply)(variables, images.astype("float32") / 255)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-5)


def test_coefficients_are_found_by_name_anywhere():
    tree = {"a": {"coefficients": {"k": 1.0}}, "b": ({"coefficients": 2.0}, {"other": 3.0}), "c": 4.0}
    doubled = manifest.map_coefficients(tree, lambda value: 2 * value)
    assert doubled == {
        "a": {"coefficients": {"k": 2.0}},
        "b": ({"coefficients": 4.0}, {"other": 3.0}),
        "c": 4.0,
    }
    assert manifest.n_parameters({"params": {"a": np.ones((2, 3)), "b": np.ones(4)}, "other": np.ones(9)}) == 10
