"""ANODEV2: the four forms of one network on CIFAR-10, all seeds side by side (tables 1, 2 and 4).

    python -m experiments.anodev2 resnet4                       a subset, few epochs, three seeds: 11 min on two cores
    python -m experiments.anodev2 resnet4 --full --n-seeds 5    the paper's setting, five seeds in one program
    python -m experiments.anodev2 alexnet --full --n-seeds 5 --forms baseline configuration_1

Baseline (one Euler step), Neural ODE (two, q = 0), configuration 1 (five, each with its own kernels) and
configuration 2 (two, before and after ten steps of the kernels) are trained for the same epochs, on the same
images in the same order a seed. The seeds of a form are one program, vmapped; where memory is short,
`--seeds-at-once 2` trains them in groups. `--resume` reads finished forms and goes on with one that was stopped.
Test images are read once, at the end of a form.

Writes into --run-dir: NETWORK.json (settings, environment, curves, accuracies), and a folder a form and group of
seeds with checkpoints, curves and filters.npz, the filters of its first seed as they evolve, for
experiments.anodev2.figures.

Means of so few epochs on so few images say nothing about the paper's, which are printed beside them: on 2,000
images for five epochs ResNet-4 classifies 29.2, 31.3, 31.6 and 33.5 % (std 3.4, 2.8, 2.8, 0.4) of 2,000 test images.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.configs import anodev2 as cells
from experiments.images import data
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, write_json
from experiments.records.tables import show
from experiments.training import models, optimizers, steps
from experiments.training.config import Config
from experiments.training.run import Run, check_start
from ode_nets.nn import ANODEV2
from ode_nets.remanifest import n_parameters
from ode_nets.weights import Still

PyTree = Any
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train."""

    network: Annotated[Literal["alexnet", "resnet4", "resnet10"], tyro.conf.Positional]
    """Which of the paper's networks."""
    forms: tuple[str, ...] = tuple(cells.FORMS)
    """Which of its four forms."""
    n_seeds: int = 3
    """Runs of each form, side by side."""
    seeds_at_once: int | None = None
    """Seeds in one program; default all of them."""
    seed: int = 0
    """The first of the seeds."""
    full: bool = False
    """The paper's setting; limit, n_test, epochs, batch size and learning rate have no meaning then."""
    limit: int = 2000
    """Training images; a subset of the training split."""
    n_test: int = 2000
    """Test images."""
    epochs: int = 5
    """Epochs; the learning rate decays at the same shares of them as in the paper."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: float = 0.02
    """Of SGD at the start; the paper's 0.1 is for batches of 256."""
    compute_dtype: str | None = None
    """What convolutions compute in, e.g. `bfloat16`; default float32."""
    dataset: str = "cifar10"
    """A TFDS name or an `.npz` file."""
    data_dir: str | None = None
    """Where prepared TFDS data lies."""
    run_dir: Path = Path("runs/anodev2")
    """Folder of the results."""
    resume: bool = False
    """Read what is finished in the folder, and go on with what was stopped."""
    overwrite: bool = False
    """Delete the runs of these forms in the folder and start anew."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints, which are written after an epoch."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("forms", bool(self.forms) and set(self.forms) <= set(cells.FORMS), f"some of {', '.join(cells.FORMS)}"),
            ("n_seeds", self.n_seeds >= 1, "at least 1"),
            ("seeds_at_once", self.seeds_at_once is None or self.seeds_at_once >= 1, "None or at least 1"),
            ("n_test", self.n_test >= 1, "at least 1"),
        )

    def config(self, form: str) -> Config:
        """The setting of one form."""
        paper = cells.cell(self.network, form)
        model: Any = dataclasses.replace(paper.model, compute_dtype=self.compute_dtype)  # type: ignore[call-arg]
        config = dataclasses.replace(paper, dataset=self.dataset, data_dir=self.data_dir, model=model, seed=self.seed)
        if self.full:
            return config
        decay = sorted({max(1, round(epoch * self.epochs / paper.epochs)) for epoch in paper.decay_epochs})
        small: dict[str, Any] = {"limit": self.limit, "epochs": self.epochs, "batch_size": self.batch_size}
        return dataclasses.replace(config, **small, learning_rate=self.learning_rate, decay_epochs=tuple(decay))

    def groups(self) -> list[tuple[int, ...]]:
        """The seeds, in groups that are trained at once."""
        seeds = range(self.seed, self.seed + self.n_seeds)
        size = self.seeds_at_once or self.n_seeds
        return [tuple(seeds[i : i + size]) for i in range(0, self.n_seeds, size)]


# ---------------------------------------------------------------------------------------------------------
# One form, a group of seeds
# ---------------------------------------------------------------------------------------------------------


class Group:
    """The compiled parts of training several seeds of one form at once; states are stacked by seed."""

    def __init__(self, config: Config, seeds: tuple[int, ...], dataset: data.Dataset):
        net: Any = models.build(config, dataset.n_classes)
        n_steps = len(dataset.x_train) // config.batch_size
        optimizer = optimizers.make_optimizer(config, n_steps)
        scaling, every = (dataset.mean, dataset.std), jnp.asarray(seeds)
        one_image = jnp.zeros((1, *dataset.x_train.shape[1:]))
        self.net, self.n_steps = net, n_steps
        self.images, self.labels = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)

        def init() -> PyTree:
            return jax.vmap(lambda seed: steps.init_state(net, optimizer, one_image, seed))(every)

        def orders(epoch: jax.Array) -> jax.Array:
            used = n_steps * config.batch_size
            one = lambda seed: data.epoch_permutation(seed, epoch, len(dataset.x_train))[:used].reshape(n_steps, -1)
            return jax.vmap(one)(every)

        def step(state: PyTree, images: jax.Array, labels: jax.Array, order: jax.Array) -> tuple[PyTree, PyTree]:
            one = lambda state, order, seed: steps.train_step(
                config, net, optimizer, state, images, labels, order, scaling, seed
            )
            return jax.vmap(one)(state, order, every)

        def hits(state: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
            variables = {name: state[name] for name in ("params", "batch_stats")}
            return jax.vmap(lambda variables: steps.evaluate_batch(net, variables, x, y, scaling)[1])(variables)

        self.init, self.orders, self.hits = jax.jit(init), jax.jit(orders), jax.jit(hits)
        self.step = jax.jit(step, donate_argnums=0)

    def epoch(self, state: PyTree, epoch: int) -> tuple[PyTree, Record]:
        """One pass over the training images; loss and accuracy of each seed, and seconds."""
        order, began = jax.block_until_ready(self.orders(epoch)), time.perf_counter()
        for _ in range(self.n_steps):
            state, metrics = self.step(state, self.images, self.labels, order)
        sums, bad = jax.device_get((metrics["epoch"], metrics["bad_step"]))
        seconds = time.perf_counter() - began
        if bad.any():
            raise RunError(f"training diverged at step {bad[bad > 0].min()} of some seed; lower --learning-rate")
        loss, accuracy = sums["loss"] / sums["images"], sums["correct"] / sums["images"]
        return state, {"loss": loss.tolist(), "accuracy": accuracy.tolist(), "seconds": seconds}

    def test_accuracy(self, state: PyTree, x: np.ndarray, y: np.ndarray) -> list[float]:
        """Share of test images that each seed classifies rightly."""
        batches = steps.padded_batches(x, y, min(500, len(x)))
        hits = np.sum([self.hits(state, *batch) for batch in batches], axis=0)
        return (hits / len(x)).tolist()


def train_group(
    config: Config, seeds: tuple[int, ...], dataset: data.Dataset, options: Options, folder: Path, console: Console
) -> Record:
    """Train a group of seeds, from the newest checkpoint in its folder on; what came of it."""
    config = dataclasses.replace(config, seed=seeds[0])
    flags = {"resume": options.resume and (folder / "manifest.json").exists(), "overwrite": options.overwrite}
    manifest = check_start(folder, config, **flags)
    n_test = len(dataset.x_test) if options.full else options.n_test
    for name, asked in (("seeds", list(seeds)), ("n_test", n_test)):
        if flags["resume"] and manifest.get(name, asked) != asked:
            raise RunError(f"--resume: {folder} holds a run with {name}={manifest[name]}, not {asked}; repeat that")
    if flags["resume"] and manifest["status"] == "finished":
        return manifest["results"]
    run = Run.start(folder, config, resume=flags["resume"], overwrite=flags["overwrite"])
    try:
        run.update(seeds=list(seeds), n_test=n_test)
        group = Group(config, seeds, dataset)
        state, curve = group.init(), []
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state)
        if (found := run.newest(lambda notes: like)) is not None:
            _, notes, state = found
            curve = notes["curve"]
        run.forget_after(len(curve) * group.n_steps)
        saved = time.perf_counter()
        for epoch in range(len(curve), config.epochs):
            state, record = group.epoch(state, epoch)
            curve.append(record)
            means = {"train_loss": np.mean(record["loss"]), "train_accuracy": np.mean(record["accuracy"])}
            run.log({"step": (epoch + 1) * group.n_steps, "epoch": epoch + 1} | {k: float(v) for k, v in means.items()})
            console.print(f"  epoch {epoch + 1}: training loss {means['train_loss']:.3f}, {record['seconds']:.1f} s")
            if time.perf_counter() - saved > options.checkpoint_seconds or epoch + 1 == config.epochs:
                run.save("latest", (epoch + 1) * group.n_steps, state, {"curve": curve})
                saved = time.perf_counter()
        first = jax.tree.map(lambda leaf: leaf[0], state["params"])
        if (filters := filters_of(group.net, first)) is not None:
            np.savez(folder / "filters.npz", filters=filters)
        results = {
            "n_parameters": n_parameters({"params": first}),
            "test_accuracy": group.test_accuracy(state, dataset.x_test[:n_test], dataset.y_test[:n_test]),
            "training_loss": [record["loss"] for record in curve],
            "training_accuracy": [record["accuracy"] for record in curve],
            "seconds": [record["seconds"] for record in curve],
        }
        run.update(status="finished", results=results)
    except BaseException as error:
        run.update(status=f"failed: {type(error).__name__}")
        raise
    finally:
        run.close()
    return results


def filters_of(net: ANODEV2, params: PyTree) -> np.ndarray | None:
    """Filters of the first convolution of the first block at every weight step, `[n + 1, k, k, 8]`."""
    if net.evolution is None or isinstance(net.evolution.q, Still):
        return None
    evolved = params["block1"]["evolved"]
    path = net.evolution.path(evolved["w0"], evolved["p"])["conv1.kernel"]
    return np.asarray(path[..., 0, :8])


# ---------------------------------------------------------------------------------------------------------
# All forms, and what is shown
# ---------------------------------------------------------------------------------------------------------


def train_form(form: str, dataset: data.Dataset, options: Options, console: Console) -> Record:
    """Every seed of a form; the groups put together."""
    config, found = options.config(form), []
    for seeds in options.groups():
        console.print(f"{options.network}, {form}: seeds {seeds[0]} to {seeds[-1]}")
        folder = options.run_dir / f"{options.network}_{form}_seed{seeds[0]}"
        found.append(train_group(config, seeds, dataset, options, folder, console))
    # The first epoch compiles.
    per_epoch = [np.median(group["seconds"][1:] or group["seconds"]) for group in found]
    record = {
        "n_parameters": found[0]["n_parameters"],
        "test_accuracy": [accuracy for group in found for accuracy in group["test_accuracy"]],
        "seconds_per_epoch": float(sum(per_epoch)),
        "config": config.to_json() | {"data_dir": None},
    }
    for name in ("training_loss", "training_accuracy"):
        by_epoch = zip(*(group[name] for group in found), strict=True)
        record[name] = [[value for group in epoch for value in group] for epoch in by_epoch]
    return record


def run(options: Options, console: Console) -> Record:
    """Train every form; the record, which is also written."""
    some = options.config(options.forms[0])
    dataset = data.load(
        some.dataset, data_dir=some.data_dir, validation_fraction=0.0, seed=options.seed, limit=some.limit
    )
    if len(dataset.x_train) < some.batch_size:
        raise ValueError(f"batch_size={some.batch_size}: expected at most the {len(dataset.x_train)} training images")
    record: Record = {
        "network": options.network,
        "n_seeds": options.n_seeds,
        "seeds_at_once": options.seeds_at_once or options.n_seeds,
        "n_train": len(dataset.x_train),
        "n_test": min(len(dataset.x_test), len(dataset.x_test) if options.full else options.n_test),
        "full": options.full,
        "data": dataset.source,
        "environment": environment(),
        "forms": {},
    }
    for form in options.forms:
        record["forms"][form] = train_form(form, dataset, options, console)
        write_json(options.run_dir / f"{options.network}.json", record)
    return record


def print_table(record: Record, console: Console) -> None:
    """Minimum / maximum and mean of the test accuracy in percent, as the paper prints them."""
    epochs = next(iter(record["forms"].values()))["config"]["epochs"]
    table = Table(
        title=f"{record['network']}: test accuracy % on {record['n_test']} images after {epochs} epochs of "
        f"{record['n_train']}, {record['n_seeds']} seeds",
        title_justify="left",
    )
    columns = ("form", "parameters", "min / max", "mean", "std", "s / epoch", "paper: min / max", "mean")
    for column in columns:
        table.add_column(column, justify="left" if column == "form" else "right")
    for form, found in record["forms"].items():
        accuracy = 100 * np.array(found["test_accuracy"])
        low, high, mean = cells.ACCURACY[record["network"]][form]
        table.add_row(
            form.replace("_", " "),
            f"{found['n_parameters']:,}",
            f"{accuracy.min():.2f} / {accuracy.max():.2f}",
            f"{accuracy.mean():.2f}",
            f"{accuracy.std(ddof=1):.2f}" if len(accuracy) > 1 else "",
            f"{found['seconds_per_epoch']:.1f}",
            f"{low:.2f} / {high:.2f}",
            f"{mean:.2f}",
        )
    show(table, console)


def main() -> None:
    """The command line."""
    console, began = Console(highlight=False), time.perf_counter()
    try:
        options = command_line(Options, "python -m experiments.anodev2", __doc__)
        print_table(run(options, console), console)
    except (RunError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"{time.perf_counter() - began:.0f} s in all; written: {options.run_dir}/{options.network}.json")


if __name__ == "__main__":
    main()
