"""The smallest part of each benchmark runs, and programs that are timed against each other compute the same."""

from __future__ import annotations

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree, flat, relative
from benchmarks import anodev2, checkpoints, continuous_net, convolution, gradients, harness, reversible, torch_peers
from experiments.records.timing import compare, measure
from ode_nets import FixedStep, PiecewiseConstant
from ode_nets.nn import ContinuousNet, anodev2_net


def test_programs_are_measured_and_written_with_what_they_depend_on(tmp_path):
    x = jnp.arange(3.0)
    found = compare({"double": lambda x: 2 * x, "square": lambda x: x**2}, x, repeats={"double": 1, "square": 3})
    assert [len(found[name].samples) for name in ("double", "square")] == [1, 3]
    np.testing.assert_array_equal(found["square"].output, x**2)
    record = found["square"].record()
    assert 0 < record["minimum"] <= record["first_quartile"] <= record["median"] <= record["third_quartile"]
    assert record["compile"] > 0
    assert "output" not in record
    peer = measure(lambda: [1], repeats=2, min_seconds=0.0, compiled=False)
    assert (peer.output, peer.compile_seconds, peer.calls) == ([1], None, 1)
    with pytest.raises(ValueError, match="expected at least 1"):
        compare({"double": lambda x: 2 * x}, x, repeats=0)
    path = harness.write(tmp_path / "a" / "b.json", "name", {"square": record})
    written = json.loads(path.read_text())
    assert written["results"]["square"] == record
    assert written["environment"]["versions"]["jax"] == jax.__version__
    assert ("gradsolve" in written["environment"]["versions"]) == (importlib.util.find_spec("gradsolve") is not None)
    assert harness.default_path("name").name == f"name_{jax.default_backend()}.json"


def test_checkpoints_are_saved_and_restored_with_digests_and_without(tmp_path):
    found = checkpoints.measure_checkpoints("digits", repeats=1, folder=tmp_path)
    for part in ("save", "save, waited for", "restore"):
        assert found[f"plain {part}"]["median"] > 0
        assert found[part]["median"] > 0
        assert part in found["more_than_plain"]
    assert found["digests"]["median"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_convolutions_compared_are_one_convolution(capsys):
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 4, 4, 3), (3, 3, 3, 3)]))
    both = jax.jit(lambda x, kernel: [jax.vjp(f, x, kernel)[1](x) for f in (convolution.plain, convolution.canonical)])
    assert_agree(*both(x, kernel), 1e-5)
    config = convolution.Config(n_steps=2, repeats=1, slow_repeats=1)
    records = convolution.measure_shape(config, "2x4x4x3")
    assert all(record["minimum"] > 0 for record in records.values())
    rows = [convolution.row("2x4x4x3", records, kind, 2) for kind in ("forward", "gradients")]
    assert all(isinstance(cell, float) for row in rows for cell in row[4:])
    with pytest.raises(ValueError, match="16x16x16x64"):
        convolution.measure_shape(config, "2x4x4")


@pytest.mark.slow
def test_swap_and_training_compare_what_computes_the_same(monkeypatch):
    monkeypatch.setattr(continuous_net, "GRID", [("euler", 1), ("midpoint", 2)])
    swap = continuous_net.measure_swap({"widths": (2,), "image": (4, 4, 4, 1)}, repeats=1)
    assert swap["images_scored_differently"] == 0
    assert swap["one_program"]["steady_minimum"] > 0

    net = ContinuousNet(10, (2,), PiecewiseConstant(2), FixedStep("euler", 2), epsilon=2.0)
    record = continuous_net.measure_training(net, batch_size=4, repeats=1)
    losses = record["losses_of_two_images"]
    assert max(losses.values()) - min(losses.values()) < 1e-5
    assert len(continuous_net.training_rows("tiny", record)) == 3


@pytest.mark.slow
def test_cost_of_evolving_weights_is_measured():
    config = anodev2.Config(networks=("resnet4",), forms=("baseline",), batch_size=2, repeats=1, n_images=4)
    cost = anodev2.measure_evolution(config, "resnet4")
    assert min(cost["ratio"], cost["ratio of gradients"]) > 0
    record = anodev2.measure_network(config, "resnet4")["baseline"]
    assert record["seconds_per_epoch"] == pytest.approx(2 * record["training_step"]["median"], rel=1e-3)
    assert record["inference"]["median"] > 0


@pytest.mark.parametrize(
    ("network", "pixels"),
    [
        ("resnet4", {"block1": 32**2}),
        ("alexnet", {"block1": 16**2}),
        ("resnet10", {"block1": 32**2, "block2": 16**2}),
    ],
)
def test_multiply_adds_of_an_evaluation_are_its_kernels_at_every_pixel(network, pixels):
    net = anodev2_net(network, "baseline")
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    size = lambda block: sum(leaf.size for leaf in jax.tree.leaves(params[block]) if leaf.ndim == 5)
    more = anodev2.multiply_adds(network, 2) - anodev2.multiply_adds(network, 1)
    assert more == sum(n * size(block) for block, n in pixels.items())


OPTIONS = gradients.Options(channels=4, repeats=1, max_steps=64, slow_peers=False, truth_tolerance=1e-6)


@pytest.mark.parametrize("case", ["mlp", "node18"])
def test_fields_in_pytorch_are_ours_with_our_weights(case):
    torch = pytest.importorskip("torch")
    field, x, theta = gradients.make_case(case, 4)
    x = x[:2, :4, :4] if case == "node18" else x
    peer = torch_peers.make_field(case, theta, "cpu")
    start = torch.tensor(np.asarray(x).transpose(torch_peers.STATE_AXES[case]).copy(), requires_grad=True)
    y = peer(0.0, start)
    (y**3).sum().backward()
    ran = torch_peers.Ran({}, y, start.grad, tuple(p.grad for p in peer.parameters()))
    expected = jax.jit(jax.grad(lambda x, theta: jnp.sum(field(0.0, x, theta) ** 3), (0, 1)))(x, theta)
    assert relative(torch_peers.state_of(case, ran), field(0.0, x, theta)) < 1e-5
    for got, leaf in zip(jax.tree.leaves(torch_peers.gradient_of(case, ran)), jax.tree.leaves(expected), strict=True):
        assert relative(got, leaf) < 1e-4


def test_pytorch_peers_solve_and_differentiate_the_same_problem():
    for name in ("torchdiffeq", "TorchDiffEqPack"):
        pytest.importorskip(name)
    _, x, theta = gradients.make_case("mlp", 4)
    state, gradient = gradients.find_truth("mlp", OPTIONS)
    programs = torch_peers.torch_programs("mlp", "heun_euler", 1e-4, x, theta)
    for name, run in programs.items():
        ran = run()
        assert relative(torch_peers.state_of("mlp", ran), state.reshape(x.shape)) < 1e-3, name
        assert ran.counts["n_accepted"] > 1, f"{name} took a step that nobody looked at"
        assert ran.counts["nfe"] >= ran.counts["n_accepted"]
        if ran.theta_bar:
            assert relative(flat(torch_peers.gradient_of("mlp", ran)), gradient) < 1e-2, name


def test_a_program_far_off_the_truth_is_marked(capsys):
    field, x, theta = gradients.make_case("mlp", 4)
    truth = gradients.find_truth("mlp", OPTIONS)
    programs = {"ACA()": gradients.ours(field, gradients.Adaptive("heun_euler", 1e-3, 1e-3), gradients.ACA())}
    programs["forward"] = lambda x, theta: x
    measured = compare(programs, x, theta, repeats=1)
    records = {name: m.record() | gradients.describe(name, m.output, truth) for name, m in measured.items()}
    assert records["ACA()"]["gradient_error"] < 0.05
    assert records["ACA()"]["n_accepted"] > 1
    records["one step"] = records["ACA()"] | {"n_accepted": 1, "gradient_error": 0.9}
    record = {"case": "mlp", "scheme": "heun_euler", "tolerance": 1e-3, "floor_ratio": 1.0, "programs": records}
    gradients.print_record(record)
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "9.0e-01!" in lines["one step"]
    assert "!" not in lines["ACA()"]


@pytest.mark.slow
def test_compilation_is_measured_by_number_of_steps_and_of_intervals(monkeypatch):
    tiny = {"widths": (2,), "image": (2, 4, 4, 1), "scheme": "euler", "n_steps": (1, 2)}
    monkeypatch.setattr(continuous_net, "COMPILE", tiny)
    records, rows = continuous_net.measure_compilation(repeats=1)
    assert [(r["basis"], r["n_steps"]) for r in records] == [(b, n) for b in ("M = N_t", "M = 8") for n in (1, 2)]
    assert all(r["seconds"]["total"] > 0 for r in records)
    assert records[0]["total_to_1"] == records[1]["total_to_2"] == 1
    assert len(rows[0]) == 9


@pytest.mark.slow
def test_gradient_methods_side_by_side():
    record = gradients.compare("mlp", "dopri5", 1e-3, OPTIONS, gradients.find_truth("mlp", OPTIONS))
    programs = record["programs"]
    assert {"ACA()", "ACA(4)", "diffrax RecursiveCheckpointAdjoint"} < set(programs)
    for name, program in programs.items():
        error = program.get("gradient_error", program.get("state_error", 0.0))
        assert error < 0.05, name
    assert programs["ACA()"]["nfe"] > 6 * programs["ACA()"]["n_accepted"]
    assert record["floor_ratio"] > 0


@pytest.mark.slow
def test_reversible_gradients_and_their_peers_are_one_gradient_a_scheme(tmp_path, capsys):
    options = reversible.Options(("mlp",), channels=3, mlp_steps=40, repeats=1, out=tmp_path / "reversible.json")
    reversible.main(options)
    printed = capsys.readouterr().out
    (record,) = json.loads(options.out.read_text())["results"]
    assert len(record["programs"]) == 8
    for name, program in record["programs"].items():
        assert program["difference"] < 1e-5, name
        assert name in printed
    few, many = (record["programs"][f"{name}, coupled midpoint"] for name in ("Reversible()", "Checkpointed()"))
    assert few["temporary_bytes"] < many["temporary_bytes"]
    assert options.out.with_suffix(".png").stat().st_size > 0
