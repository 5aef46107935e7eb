"""Test-retest reliability of training: do runs that differ in their seed alone give the same answers (ACA Table 3)?

    python -m experiments.aca.reliability node18_cifar10_90 --n-runs 10
    python -m experiments.aca.reliability resnet18_small --n-runs 5
    python -m experiments.aca.reliability node18_small --n-runs 5 --beside runs/resnet18_small_reliability

Each run trains a config from another seed, which draws the initial weights, the order of the images and their
augmentation; the training images are those of the config's own seed. The test images are then subjects, the runs are
raters, and the index of the predicted class is the rating. ICC1 is the reliability of one run, ICC1k that of the mean
of all, over all images and over those that one run or more got wrong (the paper does not say whose errors it means).
`--beside` compares with earlier runs of another network on the same test images, which is how the paper's claim, NODE18
above ResNet18, is tested: the difference of each ICC, with an interval from resampled images. Writes
RUN_DIR/reliability.json and the predictions of each run; runs that are finished are not repeated. A run of
node18_small takes 37 minutes on two cores, so five of them three hours.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy import stats

from experiments import configs
from experiments.images import data
from experiments.records.command import check_settings
from experiments.records.environment import environment
from experiments.records.files import RunError, write_json
from experiments.training.config import Config
from experiments.training.manifestations import memory_bound
from experiments.training.progress import NonFiniteError, read
from experiments.training.steps import init_state, padded_batches, train_step
from experiments.training.task import Task

PyTree = Any
PAPER = {
    "cifar10": {"all": "ResNet18 .932-.935, NODE18 .943-.945", "wrong": "ResNet18 .581-.608, NODE18 .650-.675"},
    "cifar100": {"all": "ResNet18 .759-.768, NODE18 .767-.776", "wrong": "ResNet18 .553-.571, NODE18 .570-.587"},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How many runs, and how they share the device."""

    n_runs: int = 10
    """Runs, by the seeds from the config's own on."""
    lanes: int | None = None
    """Runs side by side in one program; default 1 on a CPU, elsewhere as many as half of the memory allows."""
    run_dir: Path | None = None
    """Folder of the results; default runs/<config>_reliability."""
    beside: Path | None = None
    """Folder of such runs of another network, to compare with."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("n_runs", self.n_runs >= 2, "at least 2"),
            ("lanes", self.lanes is None or self.lanes >= 1, "at least 1"),
        )


# ---------------------------------------------------------------------------------------------------------
# Intraclass correlation
# ---------------------------------------------------------------------------------------------------------


def icc(ratings: np.ndarray, confidence: float = 0.95) -> dict[str, Any]:
    """Intraclass correlations of a one-way random model (Shrout & Fleiss 1979, case 1).

        ICC1  = (BMS - WMS) / (BMS + (k - 1) WMS)
        ICC1k = (BMS - WMS) / BMS

    with BMS and WMS the mean squares between and within subjects; the intervals are those of F = BMS / WMS.

    Args:
      ratings: `[subjects, raters]`, at least 2 of each.
      confidence: of the intervals, in (0, 1).

    Returns:
      `icc1`, `icc1_interval`, `icc1k`, `icc1k_interval`; NaN where all ratings are the same.
    """
    n, k = ratings.shape
    ratings = ratings.astype(np.float64)
    means = ratings.mean(1)
    between = k * np.sum((means - ratings.mean()) ** 2) / (n - 1)
    within = np.sum((ratings - means[:, None]) ** 2) / (n * (k - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        f, quantile = between / within, (1 + confidence) / 2
        low = f / stats.f.ppf(quantile, n - 1, n * (k - 1))
        high = f * stats.f.ppf(quantile, n * (k - 1), n - 1)
        single = lambda f: float(1 - k / (f + k - 1))
        mean = lambda f: float(1 - 1 / f)
        return {
            "icc1": single(f),
            "icc1_interval": [single(low), single(high)],
            "icc1k": mean(f),
            "icc1k_interval": [mean(low), mean(high)],
        }


def report(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """ICC of `[runs, images]` predicted classes, over all images and over those that some run got wrong."""
    wrong = (predictions != labels).any(0)
    parts = {"all": np.ones_like(wrong), "wrong": wrong}
    return {
        "test_accuracy": (predictions == labels).mean(1).tolist(),
        **{name: {"n_images": int(part.sum())} | icc(predictions[:, part].T) for name, part in parts.items()},
    }


def compare(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, n_resamples: int = 1000) -> dict[str, Any]:
    """Differences of the ICC of two sets of runs, ours less theirs, with 95 % intervals over resampled test images.

    Args:
      ours, theirs: predicted classes of the same images, `[runs, images]`.
      labels: `[images]`.
      n_resamples: of the images, with replacement; both sets see the same ones.
    """
    n = len(labels)
    rng = np.random.default_rng(0)
    every, *drawn = [np.arange(n), *(rng.integers(0, n, n) for _ in range(n_resamples))]

    def differences(pick: np.ndarray) -> dict[tuple[str, str], float]:
        one, other = (report(runs[:, pick], labels[pick]) for runs in (ours, theirs))
        return {
            (part, key): one[part][key] - other[part][key] for part in ("all", "wrong") for key in ("icc1", "icc1k")
        }

    resampled = [differences(pick) for pick in drawn]
    found: dict[str, Any] = {"all": {}, "wrong": {}}
    for (part, key), value in differences(every).items():
        low, high = np.quantile([each[part, key] for each in resampled], (0.025, 0.975))
        found[part] |= {key: value, f"{key}_interval": [float(low), float(high)]}
    return found


# ---------------------------------------------------------------------------------------------------------
# Runs side by side
# ---------------------------------------------------------------------------------------------------------


def side_by_side(function: Any, in_axes: tuple[int | None, ...], n: int) -> Any:
    """`jax.vmap`, but for a single lane: batched kernels would turn every convolution into a grouped one."""
    if n > 1:
        return jax.vmap(function, in_axes)

    def single(*args: Any) -> Any:
        here = [
            jax.tree.map(lambda leaf: leaf[0], arg) if axis == 0 else arg
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*here))

    return single


class Programs(NamedTuple):
    """What runs side by side are computed with; every argument and result has a leading axis, a lane a run."""

    start: Any
    orders: Any
    step: Any
    predict: Any


def make_programs(task: Task, n: int) -> Programs:
    """Programs of `n` lanes, compiled at their first call."""
    net = task.nets[0]
    one_image = jnp.zeros((1, *task.images.shape[1:]))
    step = partial(train_step, task.config, net, task.optimizer)

    def classes(variables: PyTree, x: jax.Array) -> jax.Array:
        logits = logits_of(net, variables, data.normalize(x, *task.scaling))
        # What a solver did not finish has no class.
        return jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1), -1)

    return Programs(
        start=jax.jit(side_by_side(partial(init_state, net, task.optimizer, one_image), (0,), n)),
        orders=jax.jit(side_by_side(task.order_of, (0, None), n)),
        step=jax.jit(side_by_side(step, (0, None, None, 0, None, 0), n), donate_argnums=0),
        predict=jax.jit(side_by_side(classes, (0, None), n)),
    )


def lanes_that_fit(task: Task, programs: Any, n: int) -> int:
    """The most lanes of `n`, `n / 2`, ... whose step takes half of the device's memory or less; at least 1.

    Args:
      programs: from a number of lanes to its `Programs`.
    """
    while n > 1:
        made, lanes = programs(n), jax.ShapeDtypeStruct((n,), np.int32)
        state, order = jax.eval_shape(made.start, lanes), jax.eval_shape(made.orders, lanes, np.int32(0))
        step = made.step.lower(state, task.images, task.labels, order, task.scaling, lanes).compile()
        if step.memory_analysis().temp_size_in_bytes <= memory_bound(None):
            break
        n = -(-n // 2)
    return n


def train_runs(task: Task, programs: Programs, seeds: list[int], console: Console) -> np.ndarray:
    """Train one run a seed, all together; their predicted classes of the test images, `[seeds, images]`.

    Raises:
      NonFiniteError: if one of the runs leaves the finite numbers or a solver fails.
    """
    lanes = np.asarray(seeds, np.int32)
    state = programs.start(lanes)
    for epoch in range(task.config.epochs):
        order = programs.orders(lanes, np.int32(epoch))
        for _ in range(task.steps_per_epoch):
            state, metrics = programs.step(state, task.images, task.labels, order, task.scaling, lanes)
        losses = [read(jax.tree.map(lambda leaf, i=i: leaf[i], metrics))[0] for i in range(len(seeds))]
        console.print(f"seeds {seeds}  epoch {epoch + 1:3d}  loss " + " ".join(f"{loss:.4f}" for loss in losses))
    variables = {name: state[name] for name in ("params", "batch_stats")}
    images, labels = task.dataset.x_test, task.dataset.y_test
    parts = [programs.predict(variables, x) for x, _ in padded_batches(images, labels, min(250, len(images)))]
    classes = np.concatenate(jax.device_get(parts), axis=1)[:, : len(images)]
    if (classes < 0).any():
        bad = [seed for seed, row in zip(seeds, classes, strict=True) if (row < 0).any()]
        raise NonFiniteError(f"on the test images of seeds {bad} a solver did not finish; --model.max-steps may help")
    return classes


def logits_of(net: nn.Module, variables: PyTree, x: jax.Array) -> jax.Array:
    """What the network says in evaluation."""
    logits: Any = net.apply(variables, x)
    return logits


def reliability(config: Config, options: Options, folder: Path, console: Console) -> dict[str, Any]:
    """All runs and their report, written into `folder`.

    Raises:
      RunError: for a config with refinement, adaptation or averaged weights, a folder with runs of another config, or
        data that cannot be had.
    """
    for name, none in (("refine_epochs", ()), ("adapt", "none"), ("ema_decay", 0.0)):
        if getattr(config, name) != none:
            raise RunError(f"{name}={getattr(config, name)!r}: expected {none!r} for runs side by side")
    beside = None if options.beside is None else stored_predictions(options.beside)
    stored = folder / "config.json"
    if stored.exists() and Config.from_json(json.loads(stored.read_text())) != config:
        raise RunError(f"{folder} holds runs of another config; --run-dir starts elsewhere")
    write_json(stored, config.to_json())
    task = Task(config, 1, feed="whole")
    seeds = [config.seed + i for i in range(options.n_runs)]
    paths = {seed: folder / f"predictions_{seed}.npy" for seed in seeds}
    missing = [seed for seed in seeds if not paths[seed].exists()]
    programs = lru_cache(partial(make_programs, task))
    lanes = options.lanes
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" or not missing else lanes_that_fit(task, programs, len(missing))
    for i in range(0, len(missing), lanes):
        chunk = missing[i : i + lanes]
        for seed, classes in zip(chunk, train_runs(task, programs(len(chunk)), chunk, console), strict=True):
            # A name of its own until it is whole: what is there counts as finished.
            part = paths[seed].with_suffix(".part.npy")
            np.save(part, classes.astype(np.int16))
            part.replace(paths[seed])
    predictions = np.stack([np.load(paths[seed]) for seed in seeds])
    record = {"config": config.to_json(), "seeds": seeds, "data": task.dataset.source, "environment": environment()}
    record |= report(predictions, task.dataset.y_test)
    if beside is not None:
        record["less"] = {"runs": str(options.beside)} | compare(predictions, beside, task.dataset.y_test)
    write_json(folder / "reliability.json", record)
    return record


def stored_predictions(folder: Path) -> np.ndarray:
    """Predicted classes of all runs in a folder, `[runs, images]`.

    Raises:
      RunError: if there are none.
    """
    paths = [path for path in sorted(folder.glob("predictions_*.npy")) if not path.stem.endswith(".part")]
    if not paths:
        raise RunError(f"{folder} holds no predictions; run experiments.aca.reliability on that network first")
    return np.stack([np.load(path) for path in paths])


def print_report(record: dict[str, Any], console: Console) -> None:
    """Accuracies, and each ICC with its interval beside the paper's."""
    accuracy = np.asarray(record["test_accuracy"])
    console.print(f"{len(accuracy)} runs: test accuracy {accuracy.mean():.4f} +- {accuracy.std(ddof=1):.4f}")
    for part, name in (("all", "all test images"), ("wrong", "images that some run got wrong")):
        values = record[part]
        shown = [
            f"{key.upper().replace('K', 'k')} {values[key]:.3f} ({low:.3f} to {high:.3f})"
            for key in ("icc1", "icc1k")
            for low, high in [values[f"{key}_interval"]]
        ]
        paper = PAPER.get(record["config"]["dataset"], {}).get(part)
        beside = f"; paper, ICC1 at full size: {paper}" if paper else ""
        console.print(f"{name} ({values['n_images']}): {', '.join(shown)}{beside}", soft_wrap=True)
        if "less" in record:
            less = record["less"]
            low, high = less[part]["icc1_interval"]
            said = f"ICC1 less that of {less['runs']}: {less[part]['icc1']:+.3f} ({low:+.3f} to {high:+.3f})"
            console.print(f"  {said}", soft_wrap=True)


def main() -> None:
    """The command line."""
    name, config, options = configs.command_line(Options, "python -m experiments.aca.reliability")
    console = Console(highlight=False)
    folder = options.run_dir or Path("runs") / f"{name}_reliability"
    try:
        print_report(reliability(config, options, folder, console), console)
    except (RunError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {folder}/reliability.json")


if __name__ == "__main__":
    main()
