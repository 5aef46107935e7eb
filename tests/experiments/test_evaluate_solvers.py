"""Solver swaps, compression and pictures, end to end on two tiny runs."""

import csv
import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import cifar10, compress, evaluate_solvers, figures, quickstart
from experiments.records import pictures
from experiments.records.files import RunError, read_manifest
from experiments.records.swaps import read_swap
from experiments.training import exported, manifestations
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings
from experiments.training.run import load_run
from experiments.training.snapshots import pick_weights
from experiments.training.steps import dataset_of
from ode_nets import FixedStep, remanifest
from ode_nets.weights import PiecewiseConstant
from settings import changed

TINY = Config(
    dataset="digits", limit=64, batch_size=32, epochs=2, refine_epochs=(1,), decay_epochs=(),
    crop_pad=0, flip=False, learning_rate=0.05, model=ContinuousNetSettings(widths=(2,), gradient="direct"),
)  # fmt: skip
TWIN = changed(TINY, scheme="euler", n_basis=2, n_steps=2, epsilon=2.0, refine_epochs=())


def say(function, *args):
    """What a function prints, on a wide and on a narrow terminal alike."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    result = function(*args, console)
    return result, console.file.getvalue()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    _, text = say(quickstart.quickstart, {"refined": TINY, "twin": TWIN}, folder, False)
    assert "refined: training" in text
    assert "refined: trained under rk4, N_t = 2" in text
    assert "twin: trained under euler, N_t = 2" in text
    return folder


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write into is there on Linux")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_evaluated(out, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate_solvers", str(out / "refined"), "--out", "/proc/none"])
    monkeypatch.setattr(evaluate_solvers, "swap_run", None)
    with pytest.raises(SystemExit, match=r"nothing can be written in /proc .*: --out writes elsewhere"):
        evaluate_solvers.main()


def test_quickstart_writes_pictures_and_skips_what_is_finished(out):
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}
    for name in ("swap.png", "weights.png", "training.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        (out / name).unlink()
    _, text = say(quickstart.quickstart, {"refined": TINY, "twin": TWIN}, out, False)
    assert text.count("finished earlier, skipped") == 2
    assert text.count("evaluated earlier, skipped") == 2
    assert (out / "swap.png").exists()
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}


def test_quickstart_leaves_a_run_with_other_settings_alone(out):
    other = dataclasses.replace(TINY, seed=1)
    with pytest.raises(RunError, match="--overwrite"):
        say(quickstart.quickstart, {"refined": other}, out, False)


def test_a_run_is_loaded_as_it_was_trained(out):
    config, net, variables, notes = load_run(out / "refined")
    assert config == TINY
    assert (net.basis, net.solver.n_steps) == (PiecewiseConstant(2), 2)
    assert notes["level"] == 1
    assert notes["step"] == 4
    assert remanifest.n_parameters(variables) == read_manifest(out / "refined")["results"]["n_parameters"]
    with pytest.raises(RunError, match="no run"):
        load_run(out / "nowhere")


def test_swap_files_hold_every_manifestation_with_its_cost_and_provenance(out):
    record = json.loads((out / "refined" / "swap" / "swap.json").read_text())
    results = read_manifest(out / "refined")["results"]
    rows = {(row["scheme"], row["n_steps"]): row for row in record["rows"]}
    assert set(rows) == {(s, n) for s in ("euler", "midpoint", "rk4", "rk4_38") for n in quickstart.N_STEPS}
    for (scheme, n_steps), stages in zip((("euler", 3), ("rk4_38", 11)), (1, 4), strict=True):
        assert rows[scheme, n_steps]["nfe"] == stages * n_steps * len(TINY.model.widths)
    # As trained, the swap is the test that the run itself made.
    assert rows["rk4", 2]["accuracy"] == results["test_accuracy"]
    assert rows["rk4", 2]["loss"] == pytest.approx(results["test_loss"], rel=1e-5)
    assert record["n_images"] == results["n_test"]
    assert record["seed"] == TINY.seed
    assert record["environment"]["versions"]["jax"] == jax.__version__
    assert record["program"]["lanes"] == 1
    with (out / "refined" / "swap" / "swap.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in table] == [row["accuracy"] for row in record["rows"]]


def test_the_table_shows_every_number_on_a_narrow_terminal(out):
    swapped = read_swap(out / "refined")
    console = Console(file=io.StringIO(), width=80, highlight=False)
    evaluate_solvers.print_table(swapped, console)
    text = console.file.getvalue()
    assert "…" not in text
    for row in swapped.rows:
        assert f"{100 * row['accuracy']:.2f}" in text
        assert f"{row['loss']:.3f}" in text


def test_fig_9_draws_each_run_under_its_own_scheme_left_and_under_the_others_right(out):
    swaps = [read_swap(out / name) for name in ("refined", "twin")]
    left, right = pictures.draw_swap(swaps).axes
    curves = {line.get_label(): line for line in left.lines + right.lines if len(line.get_xdata()) > 2}
    assert len(curves) == 2 * 4
    own = next(line for label, line in curves.items() if label.startswith("refined (trained"))
    steps, errors = swaps[0].error("rk4")
    np.testing.assert_array_equal(own.get_xdata(), steps)
    np.testing.assert_allclose(own.get_ydata(), errors)
    assert errors[steps.index(2)] == pytest.approx(100 * (1 - swaps[0].own["accuracy"]))


def test_images_that_are_not_finite_are_misses_of_any_class():
    logits = np.array([[np.nan] * 3, [np.inf, 0, 0], [0, 2, 1], [2, 0, 1], [np.nan] * 3])
    sums = manifestations.score(jnp.asarray(logits), jnp.array([0, 0, 1, 1, -1]))
    assert (int(sums["hits"]), int(sums["diverged"])) == (1, 2)


def test_a_manifestation_that_diverges_is_marked_and_does_not_score_as_class_0(out):
    config, net, variables, _ = load_run(out / "refined")
    variables["params"]["head"] = jax.tree.map(lambda leaf: leaf * np.inf, variables["params"]["head"])
    batches, n_images = manifestations.make_batches(dataset_of(config), "test")
    (row,), _ = manifestations.evaluate_grid(net, variables, [remanifest.Manifestation("rk4", 2)], batches, n_images)
    assert (row["accuracy"], row["loss"], row["diverged"]) == (0, None, n_images)

    swapped = read_swap(out / "refined")
    diverged = row | {"scheme": "euler", "n_steps": 7}
    swapped = dataclasses.replace(swapped, rows=[*swapped.rows, diverged])
    _, text = say(evaluate_solvers.print_table, swapped)
    assert f"0.00 {n_images} diverged" in text
    left, right = pictures.draw_swap([swapped]).axes
    crosses = [line.get_xydata().tolist() for axes in (left, right) for line in axes.lines if line.get_marker() == "x"]
    assert crosses == [[[7, 100]]]
    assert quickstart.largest_loss(swapped, 4) == (100 * swapped.own["accuracy"], "euler, N_t = 7")


def test_manifestations_that_meet_other_intervals_than_training_have_statistics_of_their_own(out):
    config, net, variables, _ = load_run(out / "refined")
    dataset = dataset_of(config)
    assert manifestations.restat_of(net, variables, dataset) is None
    net = net.clone(solver=FixedStep("euler", 1))
    restat = manifestations.restat_of(net, variables, dataset)
    assert "block1: 1" in restat.sentence
    batches, n_images = manifestations.make_batches(dataset, "test")
    grid = [remanifest.Manifestation(*which) for which in (("euler", 1), ("midpoint", 2))]
    rows, _ = manifestations.evaluate_grid(net, variables, grid, batches, n_images, restat=restat)
    for row, solver in zip(rows, (FixedStep("euler", 1), FixedStep("midpoint", 2)), strict=True):
        other = net.clone(solver=solver)
        own = variables if other == net else remanifest.restat(other, variables, restat.images)
        scores = [manifestations.score(other.apply(own, images), labels) for images, labels in batches()]
        assert row["loss"] == pytest.approx(float(sum(s["loss"] for s in scores)) / n_images, rel=1e-4)


@pytest.mark.parametrize("bad", [{"schemes": ("rk5",)}, {"n_steps": (0,)}, {"lanes": 0}, {"memory_gib": -1.0}])
def test_a_value_out_of_range_is_refused_by_name(out, bad):
    with pytest.raises(ValueError, match=f"--{next(iter(bad))}=".replace("_", "-")):
        evaluate_solvers.Options(out / "refined", **bad)


def test_default_steps_enclose_the_trained_count_with_some_that_do_not_divide_it():
    assert manifestations.default_steps(1) == (1, 2, 3, 4)
    assert {8, 16, 32} < set(manifestations.default_steps(8))
    assert any(8 % n and n % 8 for n in manifestations.default_steps(8))


def test_snapshots_hold_the_same_weights_at_every_level(out):
    block, levels = figures.read_snapshots(out / "refined", "")
    assert block == "block1"
    assert [basis for basis, _ in levels] == [PiecewiseConstant(1), PiecewiseConstant(2)]
    _, _, variables, _ = load_run(out / "refined")
    last = levels[-1][1]
    np.testing.assert_array_equal(last, pick_weights(variables["params"])[block])
    unit = variables["params"][block]["coefficients"]
    kernels = np.concatenate([np.asarray(unit[conv]["kernel"]).reshape(2, -1) for conv in ("conv1", "conv2")], 1)
    assert last.shape == (2, 40)
    assert all((kernels == weight[:, None]).all(0).any() for weight in last.T)
    with pytest.raises(RunError, match="are block1"):
        figures.read_snapshots(out / "refined", "block9")


def test_roughness_tells_a_constant_from_independent_intervals():
    rng = np.random.default_rng(0)
    basis = PiecewiseConstant(8)
    assert pictures.roughness(basis, np.repeat(rng.normal(size=(1, 500)), 8, axis=0)) == 0
    assert pictures.roughness(basis, rng.normal(size=(8, 500))) == pytest.approx(2**0.5, rel=0.1)
    assert pictures.roughness(PiecewiseConstant(1), np.ones((1, 5))) == 0


def test_compression_saves_a_run_that_loads_and_an_exported_function(out):
    options = compress.Options(
        out / "refined", basis=("piecewise_constant",), n_basis=(1,), scheme=("midpoint",), n_steps=(1,)
    )
    folder, text = say(compress.compress, options)
    assert folder == out / "refined" / "compressed" / "piecewise_constant-1-midpoint-1"
    assert "2 of 8 field evaluations" in text
    record = read_manifest(folder)
    assert record["status"] == "finished"
    assert record["parent"]["run"] == "../.."
    assert record["results"]["export_difference"] < 1e-4

    # What was saved is the projection of the parent, and what was exported computes its logits.
    _, net, variables, notes = load_run(folder)
    _, parent, weights, _ = load_run(out / "refined")
    projected = remanifest.project(parent, weights, PiecewiseConstant(1))[1]
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(projected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (net.basis.n_basis, net.solver.scheme.name, net.solver.n_steps) == (1, "midpoint", 1)
    assert notes["level"] == 0
    dataset = dataset_of(TINY)
    function = jax.export.deserialize(bytearray((folder / exported.EXPORTED).read_bytes()))
    hits = np.asarray(function.call(dataset.x_test)).argmax(-1) == dataset.y_test
    assert hits.mean() == record["results"]["test_accuracy"]
    with pytest.raises(RunError, match="--overwrite"):
        say(compress.compress, options)


ROWS = [
    {"basis": "piecewise_constant", "n_basis": m, "scheme": s, "n_steps": n, "nfe": nfe, "accuracy": a,
     "n_parameters": 10 * m, "loss": 0.0, "diverged": 0}
    for m, s, n, nfe, a in [(4, "rk4", 4, 32, 0.98), (2, "rk4", 2, 16, 0.975), (1, "rk4", 2, 16, 0.975),
                            (2, "euler", 4, 8, 0.93), (4, "euler", 8, 16, 0.96)]
]  # fmt: skip


def test_a_run_that_was_trained_is_never_replaced_by_one_that_is_compressed(out):
    own = "holds the run that is compressed"
    for target, said in ((out / "refined", own), (out, own), (out / "twin", "was trained, not compressed")):
        options = compress.Options(out / "refined", out=target, overwrite=True)
        with pytest.raises(RunError, match=said):
            compress.check_free(target, options)


def test_what_is_compressed_of_an_averaged_run_is_the_average(out):
    config = dataclasses.replace(Config(), ema_decay=0.9)
    chosen = {"basis": "piecewise_constant", "n_basis": 1, "scheme": "euler", "n_steps": 1}
    assert compress.compressed(config, chosen).ema_decay == 0


def test_a_swap_is_read_again_on_the_same_images_alone(out, tmp_path):
    run = shutil.copytree(out / "refined", tmp_path / "refined")
    options = evaluate_solvers.Options(run, schemes=("euler",), n_steps=(1,))
    found, earlier = evaluate_solvers.swap_or_read(run, options)
    assert (earlier, found.record["split"]) == (True, "test")
    found, earlier = evaluate_solvers.swap_or_read(run, dataclasses.replace(options, split="validation"))
    assert (earlier, found.record["split"]) == (False, "validation")
    assert not evaluate_solvers.swap_or_read(run, options)[1]


def test_the_cheapest_within_the_drop_is_chosen():
    assert compress.front_of(ROWS) == [ROWS[3], ROWS[2], ROWS[0]]
    choose = lambda **changes: compress.choose(ROWS, compress.Options("run", **changes))
    assert choose(max_drop=1.0) == ROWS[2]
    assert choose(max_drop=5.0) == ROWS[3]
    only = {"basis": ("piecewise_constant",), "n_basis": (4,), "scheme": ("euler",), "n_steps": (8,)}
    assert choose(**only) == ROWS[4]
    with pytest.raises(RunError, match=r"0\.50 points"):
        choose(max_drop=0.4)


def test_what_diverged_is_never_chosen_nor_in_the_front():
    rows = [*ROWS, ROWS[3] | {"nfe": 1, "accuracy": 0.99, "diverged": 1, "loss": None}]
    assert compress.front_of(rows) == compress.front_of(ROWS)
    assert compress.choose(rows, compress.Options("run")) == ROWS[2]


def test_the_front_is_drawn_through_the_rows_that_are_in_it():
    (axes,) = pictures.draw_front(ROWS, compress.front_of(ROWS), ROWS[2]).axes
    line = next(line for line in axes.lines if line.get_label() == "front")
    np.testing.assert_allclose(line.get_xdata(), [8, 16, 32])
    np.testing.assert_allclose(line.get_ydata(), [93, 97.5, 98])


def test_the_trained_network_and_the_one_chosen_are_in_the_picture_whatever_their_accuracy():
    trained = ROWS[0] | {"accuracy": 0.3, "nfe": 64}
    (axes,) = pictures.draw_front([trained, *ROWS[1:]], [ROWS[3], ROWS[2]], ROWS[2]).axes
    low, high = axes.get_ylim()
    assert low < 30
    assert high > 97.5


def test_blocks_without_kernels_among_their_coefficients_have_no_weights_to_keep():
    """Those of evolved weights, whose coefficients are biases and norms alone."""
    kernels = {"conv1": {"kernel": np.arange(36.0).reshape(2, 3, 3, 2, 1)}, "bn1": {"scale": np.ones((2, 2))}}
    params = {"block1": {"coefficients": kernels}, "block2": {"coefficients": {"bn1": kernels["bn1"]}, "evolved": {}}}
    picked = pick_weights(params)
    assert list(picked) == ["block1"]
    assert picked["block1"].shape == (2, 18)
    np.testing.assert_array_equal(np.sort(picked["block1"][1]), np.arange(18.0, 36.0))


@pytest.mark.slow
def test_one_command_gathers_swaps_roughness_compression_and_verdicts_and_computes_them_once(
    out, tmp_path, monkeypatch, capsys
):
    runs = [out / "refined", out / "twin"]
    args = ["cifar10", "--runs", *map(str, runs), "--images", "16", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", args)
    cifar10.main()
    assert {path.name for path in tmp_path.iterdir()} == {
        "cifar10.json", "training.png", "weights.png", "swap.png", "front.png"
    }  # fmt: skip
    found = json.loads((tmp_path / "cifar10.json").read_text())["runs"]
    for folder, record in zip(runs, found, strict=True):
        manifest = read_manifest(folder)
        own = next(
            row for row in record["swap"]["rows"]
            if {key: row[key] for key in ("scheme", "n_steps")} == {
                key: record["swap"]["trained"][key] for key in ("scheme", "n_steps")
            }
        )  # fmt: skip
        assert own["accuracy"] == pytest.approx(manifest["results"]["test_accuracy"])
        for block, levels in figures.snapshots(folder).items():
            first, second = levels[-1][1]
            rough = np.sqrt(np.mean((second - first) ** 2)) / np.std([first, second])
            assert record["roughness"][block] == pytest.approx(rough)
        assert record["verdict"]["n_images"] == 16
    monkeypatch.setattr(evaluate_solvers, "swap_run", None)
    monkeypatch.setattr(compress, "evaluate_candidates", None)
    cifar10.main()
    assert json.loads((tmp_path / "cifar10.json").read_text())["runs"] == found
    monkeypatch.setattr(sys, "argv", [*args[:2], str(tmp_path / "none"), *args[4:]])
    with pytest.raises(SystemExit, match="not finished"):
        cifar10.main()
