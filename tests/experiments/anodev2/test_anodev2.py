"""ANODEV2's experiments: the optimality conditions, the cells of its tables, and seeds trained side by side."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import compress
from experiments.anodev2 import figures as anodev2_figures
from experiments.anodev2 import kkt as anodev2_kkt
from experiments.anodev2 import parameters as anodev2_parameters
from experiments.anodev2 import rda as anodev2_rda
from experiments.anodev2 import tables as anodev2
from experiments.configs import CONFIGS
from experiments.configs import anodev2 as cells
from experiments.records.files import RunError
from experiments.training import models, optimizers, steps
from ode_nets import anodev2_net
from settings import changed


@pytest.mark.parametrize("scheme", ["heun", pytest.param("euler", marks=pytest.mark.slow)])
def test_optimality_conditions_give_the_trained_gradient_to_the_order_of_the_scheme(scheme):
    """Two discretizations of one continuous gradient, for Dirac and for a smooth kernel."""
    rows = anodev2_kkt.measure(anodev2_kkt.Options(schemes=(scheme,), n_steps=(64, 128)))
    for row in rows[1::2]:
        for key in ("order_w0", "order_p"):
            assert row[key] == pytest.approx(anodev2_kkt.ORDERS[scheme], abs=0.1), row


def test_every_cell_of_the_tables_has_a_config_that_builds_its_network():
    for network in cells.NETWORKS:
        for form in cells.FORMS:
            config = CONFIGS[f"anodev2_{network}_{form}"]
            assert models.build(config, 10) == anodev2_net(network, form)
            assert (config.batch_size, config.learning_rate) == (256, 0.1)
            schedule = (120, (40, 80, 100)) if network == "alexnet" else (350, (150, 300))
            assert (config.epochs, config.decay_epochs) == schedule


@pytest.mark.parametrize(
    ("name", "level", "form"),
    [("digits", 1, "configuration_1"), pytest.param("node18_small", 0, "configuration_2", marks=pytest.mark.slow)],
)
def test_kernels_of_any_network_evolve_by_its_config(name, level, form):
    """And the parameters of their equation are trained, at every level of refinement."""
    small = {"widths": (2,)} | ({"skip_init": False} if name == "digits" else {})
    config = changed(CONFIGS[name], evolution=form, evolution_steps=3, **small)
    net, x = models.build(config, 3, level), jax.random.normal(jax.random.key(0), (2, 8, 8, 1))

    @jax.jit
    def slope():
        variables = net.init(jax.random.key(1), x)
        return jax.grad(lambda params: net.apply(variables | {"params": params}, x).var())(variables["params"])

    (block,) = [block for block in slope().values() if "evolved" in block]
    assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(block["evolved"]))


def test_table_of_parameters_is_of_every_cell():
    """Their values are those of tests/nn/test_anodev2.py."""
    counts = anodev2_parameters.counts()
    assert {name: list(forms) for name, forms in counts.items()} == {name: list(cells.FORMS) for name in cells.NETWORKS}
    assert counts["resnet4"]["baseline"] == 7706


def test_compressed_networks_evolve_their_kernels_on_the_grid_of_training():
    """Whatever number of steps is chosen for the state, one included."""
    for changes in ({"n_steps": 4}, {"n_steps": 2, "evolution_steps": 5}):
        config = changed(CONFIGS["digits"], evolution="configuration_1", **changes)
        for n in (1, 2):
            chosen = {"basis": "piecewise_constant", "n_basis": 1, "scheme": "euler", "n_steps": n}
            smaller = compress.compressed(config, chosen)
            assert models.build(smaller, 10).evolution == models.build(config, 10, level=1).evolution
            assert smaller.model.n_steps == n


def test_penalties_pull_at_the_weights_of_training():
    """One step of SGD with and without: apart by learning rate times penalty times what is penalized."""
    small = {"widths": (2,), "crop_pad": 0, "flip": False, "batch_size": 2, "evolution": "configuration_1"}
    plain = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "decay_epochs": (), "evolution_steps": 2}
    config = changed(CONFIGS["digits"], scheme="euler", n_steps=1, n_basis=1, **small, **plain)
    images, labels = np.ones((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)
    moved, scaling = [], (np.zeros(1, np.float32), np.ones(1, np.float32))
    for changes in ({}, {"w0_penalty": 0.5, "p_penalty": 0.25}):
        one = dataclasses.replace(config, **changes)
        net = models.build(one, 3)
        optimizer = optimizers.make_optimizer(one, 1)
        state = steps.init_state(net, optimizer, jax.numpy.zeros((1, 4, 4, 1)), 0)
        block = state["params"]["block1"]
        start = block["evolved"] = jax.tree.map(lambda leaf: leaf + 0.3, block["evolved"])  # p starts at zero
        step = jax.jit(steps.train_step, static_argnums=(0, 1, 2))
        after, _ = step(one, net, optimizer, state, images, labels, np.array([[0, 1]]), scaling, 0)
        moved.append(after["params"]["block1"]["evolved"])
    for name, factor in (("w0", 0.5), ("p", 0.25)):
        for a, b, leaf in zip(*map(jax.tree.leaves, (moved[0][name], moved[1][name], start[name])), strict=True):
            np.testing.assert_allclose(a - b, 0.1 * factor * leaf, atol=1e-6)


def test_small_settings_decay_at_the_papers_shares():
    options = anodev2.Options("alexnet", epochs=12, n_seeds=5, seeds_at_once=2, seed=3)
    assert options.config("baseline").decay_epochs == (4, 8, 10)
    assert options.groups() == [(3, 4), (5, 6), (7,)]
    assert dataclasses.replace(options, full=True).config("baseline").decay_epochs == (40, 80, 100)
    with pytest.raises(ValueError, match=r"forms=.*expected some of baseline"):
        anodev2.Options("alexnet", forms=("config1",))


def test_gaussian_of_figure_3_does_what_its_rows_say():
    images = anodev2_figures.gaussians((0.0, 0.5))
    peak = lambda image: np.unravel_index(image.argmax(), image.shape)
    diffusion, advection, reaction, _ = images
    np.testing.assert_allclose(images[:, 0], np.broadcast_to(images[0, 0], images[:, 0].shape), atol=1e-5)
    assert diffusion[1].max() < 0.8
    assert diffusion[1].sum() == pytest.approx(diffusion[0].sum(), rel=1e-4)
    assert peak(diffusion[1]) == peak(diffusion[0]) == (20, 20)
    assert peak(advection[1]) != (20, 20)
    assert reaction[1].max() == pytest.approx(np.exp(0.4), rel=1e-4)


@pytest.mark.slow
def test_evolution_of_filters_is_that_of_other_solvers():
    with jax.enable_x64(True):
        for row in anodev2_rda.measure_linear(anodev2_rda.Options(extents=(3, 5))):
            assert max(row["diffrax"], row["semigroup"], row["closed_form"]) < 1e-9, row


@pytest.fixture
def options(tmp_path):
    """Two seeds of the cheapest form on images of random pixels."""
    rng = np.random.default_rng(0)
    images = lambda n: rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
    path = tmp_path / "images.npz"
    labels = np.arange(48, dtype=np.int32) % 3
    np.savez(path, x_train=images(48), y_train=labels, x_test=images(20), y_test=labels[:20])
    small = {"limit": 32, "n_test": 20, "epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    return anodev2.Options("resnet4", ("baseline",), 2, **small, dataset=str(path), run_dir=tmp_path / "runs")


@pytest.mark.slow
def test_seeds_side_by_side_are_those_by_themselves_and_stopped_ones_go_on(options, monkeypatch):
    """In one program, one after the other, and stopped after the first epoch: the same curves."""
    console = Console(quiet=True)
    whole = anodev2.run(options, console)["forms"]["baseline"]
    alone = dataclasses.replace(options, seeds_at_once=1, run_dir=options.run_dir / "alone")
    split = anodev2.run(alone, console)["forms"]["baseline"]
    np.testing.assert_allclose(split["training_loss"], whole["training_loss"], rtol=1e-4)
    assert len(split["test_accuracy"]) == len(whole["test_accuracy"]) == 2
    assert whole["training_loss"][0][0] != whole["training_loss"][0][1]

    evolving = dataclasses.replace(options, forms=("configuration_2",), run_dir=options.run_dir / "evolving")
    losses = anodev2.run(evolving, console)["forms"]["configuration_2"]["training_loss"]
    assert np.isfinite(losses).all()
    filters = np.load(evolving.run_dir / "resnet4_configuration_2_seed0" / "filters.npz")["filters"]
    assert filters.shape[:3] == (11, 3, 3)
    assert abs(filters[-1] - filters[0]).max() > 0

    stopped = dataclasses.replace(options, run_dir=options.run_dir / "stopped", checkpoint_seconds=0.0)
    epoch_of = anodev2.Group.epoch

    def stop_after_one(self, state, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return epoch_of(self, state, epoch)

    monkeypatch.setattr(anodev2.Group, "epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        anodev2.run(stopped, console)
    monkeypatch.undo()
    with pytest.raises(RunError, match="--resume goes on with it"):
        anodev2.run(stopped, console)
    resumed = dataclasses.replace(stopped, resume=True)
    with pytest.raises(RunError, match=r"holds a run with seeds=\[0, 1\], not \[0\]"):
        anodev2.run(dataclasses.replace(resumed, n_seeds=1), console)
    found = anodev2.run(resumed, console)["forms"]["baseline"]
    for name in ("training_loss", "training_accuracy", "test_accuracy"):
        assert found[name] == whole[name]
    again = anodev2.run(resumed, console)["forms"]["baseline"]
    assert again["test_accuracy"] == whole["test_accuracy"]
    record = json.loads((stopped.run_dir / "resnet4.json").read_text())
    assert record["environment"]["device"]
    assert record["data"]


@pytest.mark.slow
def test_pictures_are_drawn_of_trained_filters_and_move(tmp_path):
    folder = tmp_path / "resnet4_configuration_1_seed0"
    folder.mkdir()
    np.savez(folder / "filters.npz", filters=np.random.default_rng(0).normal(size=(6, 3, 3, 8)))
    options = anodev2_figures.Options(runs=tmp_path, out=tmp_path / "pictures", n_filters=2, frames=3)
    names = {path.name for path in anodev2_figures.draw(options)}
    stem = "fig4_resnet4_configuration_1_seed0"
    assert names == {"fig3_gaussian.png", "fig3_gaussian.gif", f"{stem}.png", f"{stem}.gif"}
    with Image.open(options.out / f"{stem}.gif") as moving:
        assert moving.n_frames == 6
