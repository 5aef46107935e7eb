"""When is a trained network an ODE? Grids of training solvers, and the adaptation of the step (Ott secs 4 and 5).

    python -m experiments.ott grid spheres2             Figs 1-4, 17-19: a network a (scheme, steps, seed)
    python -m experiments.ott adapt landscape           Figs 5 and 6: algorithm 1, and the variant that settles
    python -m experiments.ott tolerance spheres2        Figs 20 and 21: adaptive solvers, tolerance for step
    python -m experiments.ott.figures                   table 1 and all pictures of what has been run

Tasks: spheres2, spheres3, spheres10, spheres900, landscape, mnist, cifar10. Without further settings a command is
the paper's: app. A's iterations and rates, five seeds, Euler and RK4 at 1 to 256 steps (MNIST: Euler to 64, RK4 to
32; CIFAR-10: to 64 and 16). The seeds of a row are trained side by side in one program, the same one for every
number of steps. Each row is written when it is there, and a command given again goes on with the next.

A row passes where no solver of equal or smaller error loses more than 0.1 of accuracy on the test set, averaged over
the seeds that trained: those above the middle between the largest class and the best accuracy of the grid, and three
standard errors above the largest class. Rows where no seed trained say nothing about the critical step. The paper
compares Euler with midpoint at the same steps alone; the steps critical by that are written beside. Writes
<what>_<task>.json and .npz into --out. Updates that are left out, as their gradient was not finite, are counted by
seed and said.

A grid in full takes two cores hours (spheres2, landscape) or days (images). Reduced, the same for every row, and on
one core each (records and pictures in results/ott, where `--record` puts them). All but `grid spheres2` and
`adapt spheres2` were measured with `--initial uniform`:

    python -m experiments.ott grid landscape --iterations 3000 --learning-rate 5e-3                       51 min
        critical step of Euler at 16 to 32 field evaluations (paper 33-65), 88.9 % (79.0)
    python -m experiments.ott adapt landscape --iterations 3000 --learning-rate 5e-3 --max-steps 256       5 min
        43.3 field evaluations, 88.9 % (paper 43.3, 76.5); 45.8 with the code's revert; ours 54.7, 88.0 %
    python -m experiments.ott grid spheres2 --iterations 1500 --learning-rate 1e-3 --rk4 1 2 4 8 16 32        27 min
        all five seeds train in each of the 15 rows, to 96.5 to 100 %; critical step of Euler at 32 to 64 (65-129),
        RK4's at 4 to 8
    python -m experiments.ott adapt spheres2 --iterations 1500 --learning-rate 1e-3 --max-steps 256 \
        --preset code                                                                                     11 min
        59.1 field evaluations (100.5), 99.7 % (98.9); with the code's revert 53.2, 98.1 %; ours 62.9, 99.7 %
    python -m experiments.ott grid spheres3 --iterations 600 --learning-rate 2e-3 --euler 1 4 16 64 128 \
        --rk4 1 4 16                                                                                      10 min
        critical step of Euler at 16 to 64 field evaluations, RK4's at 4 to 64; one to three of five seeds train
    python -m experiments.ott grid spheres10 --iterations 600 --learning-rate 2e-3 --euler 1 4 16 64 \
        --rk4 1 4 16                                                                                      19 min
        Euler with 4 steps is tied, finer ones have not trained; RK4's critical step at 4 to 64
    python -m experiments.ott tolerance spheres2 --iterations 1000 --learning-rate 1e-3                   10 min
        at finer tolerances the networks of 1, 0.1, 0.01, 1e-3 and 1e-4 lose 31, 36, 21, 13 and 0.1 points under
        Fehlberg2(1), 39, 21, 6, 0 and 0 under Dopri5
    python -m experiments.ott grid mnist --n-train 10000 --n-test 100 --batch-size 16 --iterations 100 \
        --learning-rate 1e-2 --seeds 2 --euler 1 2 4 8 16 --rk4                                           24 min
        too short to be tied: after 100 of 7,020 iterations, 79 %, no row loses more than 4 points (paper 9-16)
    python -m experiments.ott grid cifar10 --n-train 10000 --n-test 100 --batch-size 16 --iterations 100 --seeds 2 \
        --euler 1 4 16 32 --rk4                                                                          104 min
        the same: after 100 of 7,800 iterations, 37 %, no row loses more than 6 points (paper 17-33)
    python -m experiments.ott grid spheres900 --iterations 100 --learning-rate 5e-3 --batch-size 32 --n-test 200 \
        --seeds 2 --euler 1 4 16 --rk4 1 4                                                                 7 min
        no seed trains, nor in 300 iterations at 3e-2 with 1 and 4 steps: nothing is said of 900 dimensions

Where the time of images goes (`python -m benchmarks.ott`): into the products of the middle convolution, four of them a
step: forward, again in the backward pass, and both gradients. At a batch of 16 these are 8.3 GFLOP a step of MNIST and
19 of CIFAR-10; a convolution does them at 80 to 90 GFLOP in a CPU second, where a product of 1024 x 1024 matrices does
125, so that neither loops nor lanes nor room for steps cost much, and only fewer products help. In tiles
(`experiments.ott.tiles`) there are a quarter as many. CPU seconds of MNIST, one seed, measured beside other programs: a
step with its gradients takes 0.106 as a convolution and 0.055 in tiles, a field evaluation alone 0.026 and 0.010,
compilation 3.6. When the rows above were measured, tests did 12 evaluations for each 7 that they needed, as every
scheme was padded to four stages. `--pool 2` has a quarter of the pixels.

Not run; estimated at 25 minutes a controller, which lengthens a step by a tenth every 50 iterations:

    python -m experiments.ott adapt mnist --n-train 10000 --n-test 200 --batch-size 16 --iterations 150 \
        --learning-rate 1e-2 --seeds 2 --max-steps 32

`--rk4` without numbers leaves RK4 out. `--data-dir` names a folder with prepared images.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from experiments.ott import figures, programs
from experiments.ott.programs import CHECK_EVERY, Preset, check_cost, skips, warning
from experiments.ott.tasks import LAYERS, TASKS, Task
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination
from experiments.records.rows import Row, Rows
from ode_nets import ACA, FixedStep, make_problem, validity
from ode_nets.remanifest import Manifestation

PyTree = Any
Arrays = dict[str, np.ndarray]
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Of the training step, to test with (Ott sec. 4.1)."""
CONTROLLERS = {
    "algorithm 1": lambda most: validity.step_adaptation(most, revert=False),
    "with revert (code)": lambda most: validity.step_adaptation(most),
    "settled (ours)": lambda most: validity.settled_step_adaptation(most),
}
SCHEMES = ("euler", "midpoint", "rk4")
IMAGES = ("mnist", "cifar10")
LEFT_OUT = ("euler", "rk4", "tolerances", "out", "record", "overwrite", "data_dir")
"""Settings that change no row, but say which there are, or where."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    what: Annotated[Literal["grid", "adapt", "tolerance"], tyro.conf.Positional]
    """Which experiment."""
    task: Annotated[str, tyro.conf.Positional]
    """Which data set and network."""
    euler: tuple[int, ...] | None = None
    """Training steps of Euler; default the paper's."""
    rk4: tuple[int, ...] | None = None
    """Training steps of RK4; default the paper's."""
    tolerances: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    """Training tolerances."""
    seeds: int = 5
    """Networks a row, side by side."""
    iterations: int | None = None
    """Default the paper's; rounded up to a multiple of 50."""
    learning_rate: float | None = None
    """Default the paper's."""
    batch_size: int | None = None
    """Default the paper's."""
    n_train: int | None = None
    """Training samples; default all."""
    n_test: int | None = None
    """Test samples; default all."""
    pool: int = 1
    """Average images over squares of so many pixels a side, which makes a field evaluation pool^2 times as fast."""
    initial: Literal["kaiming", "uniform"] = "kaiming"
    """Initial weights, `kaiming_layer` or `uniform_layer`; the paper's code has the former."""
    preset: Preset = "paper"
    """How the adaptation begins and is checked: by the paper's text, Hairer's step at a tolerance of 1e-3 and midpoint
    at Euler's step; by its code, Hairer's step without the tolerance and midpoint at sqrt(h / 50) where finer."""
    max_steps: int = 500
    """Most steps of the adaptation."""
    data_dir: str | None = None
    """Where prepared TFDS sets lie."""
    out: Path | None = None
    """Folder of the results; default runs/ott."""
    record: bool = False
    """Write into results/ott, which git keeps, instead."""
    overwrite: bool = False
    """Start anew where there are rows of other settings."""

    def __post_init__(self) -> None:
        check_settings(self, ("task", self.task in TASKS, f"one of {', '.join(TASKS)}"))
        sizes = ("seeds", "iterations", "learning_rate", "batch_size", "n_train", "n_test", "max_steps")
        given = {name: getattr(self, name) for name in sizes if getattr(self, name) is not None}
        size = TASKS[self.task].shape[0]
        pools = self.pool == 1 or (self.pool > 1 and self.task in IMAGES and size % self.pool == 0)
        check_settings(
            self,
            *((name, value > 0, "a number above 0") for name, value in given.items()),
            *((name, min(getattr(self, name) or (1,)) >= 1, "steps of at least 1") for name in ("euler", "rk4")),
            ("pool", pools, f"1, or of images a divisor of their {size} pixels"),
            ("tolerances", all(value > 0 for value in self.tolerances), "numbers above 0"),
        )

    def reduced(self) -> Task:
        """The task with the settings that were given."""
        names = ("iterations", "learning_rate", "batch_size", "euler", "rk4")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        task = TASKS[self.task]
        shape = (*(side // self.pool for side in task.shape[:2]), *task.shape[2:]) if self.pool > 1 else task.shape
        field = dataclasses.replace(task.field, layer=LAYERS[self.initial])
        return dataclasses.replace(task, shape=shape, field=field, **given)

    def rows(self) -> Rows:
        """What has been measured with these settings."""
        task, paper = self.reduced(), TASKS[self.task]
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in LEFT_OUT}
        names = ("iterations", "learning_rate", "batch_size")
        head = {
            "settings": settings,
            "used": {name: getattr(task, name) for name in names} | {"iterations": len(calls(task)) * CHECK_EVERY},
            "paper": {name: getattr(paper, name) for name in (*names, "critical", "accuracy", "adapted")},
            "environment": environment(),
        }
        folder = destination("ott", self.out, self.record)
        return Rows.open(folder / f"{self.what}_{self.task}.json", head, self.overwrite)


def calls(task: Task) -> range:
    """Calls of a training program that do `CHECK_EVERY` iterations each."""
    return range(-(-task.iterations // CHECK_EVERY))


# ---------------------------------------------------------------------------------------------------------
# Grid: train at fixed steps, test at others
# ---------------------------------------------------------------------------------------------------------


def grid_row(options: Options, task: Task, scheme: str, n_steps: int, train: Any, test: Any) -> tuple[Row, Arrays]:
    """Train all seeds of a row, and test them under other solvers."""
    began, longest = time.perf_counter(), max((*task.euler, *task.rk4))
    step = programs.training(task, scheme, longest, own=False)
    state = programs.begin(task, jax.random.split(jax.random.key(1), options.seeds))
    for _ in calls(task):
        state = step(state, *train, n_steps)
    params, skipped = jax.block_until_ready(state)["params"], skips(state)
    trained = time.perf_counter() - began
    schemes = SCHEMES if scheme == "euler" else ("rk4",)
    counts = sorted({max(1, round(n_steps / factor)) for factor in FACTORS})
    tested = {f"{s} {n}": programs.accuracies(task, params, test, FixedStep(s, n)) for s in schemes for n in counts}
    row: Row = {"scheme": scheme, "n_steps": n_steps, "test": tested, "train_seconds": trained}
    arrays: Arrays = {}
    if int(np.prod(task.shape)) == 2 and scheme == "euler":
        arrays[f"{scheme} {n_steps}"], row["crossings"] = polygons(task, params, test[0], n_steps)
    row["said"] = f"accuracies {np.round(tested[f'{scheme} {n_steps}'], 3)}{warning(skipped)}"
    return row | {"skipped": skipped, "seconds": time.perf_counter() - began}, arrays


def polygons(task: Task, params: PyTree, x: Any, n_steps: int) -> tuple[np.ndarray, list[int]]:
    """Trajectories of 48 test points under Euler and each seed, `[seeds, 48, n_steps + 1, 2]`, and their crossings.

    Straight lines are what Euler's steps are; between those of higher orders the chords alone would cross.
    In float64: where an attractor has merged trajectories, rounding leaves it to chance whether they cross.
    """
    found, counts = [], []
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), tree)
        for seed in range(len(jax.tree.leaves(params)[0])):
            theta = double(jax.tree.map(lambda leaf, seed=seed: leaf[seed], params["field"]))
            problem, solver = make_problem(task.field, double(x[:48]), theta), FixedStep("euler", n_steps)
            found.append(validity.trajectories(problem, solver)[0].astype(np.float32))
            counts.append(validity.crossings(problem, solver, n_samples=48, substeps=1).count)
    return np.stack(found), counts


def judge(rows: Sequence[Row], chance: float, n_test: int) -> None:
    """Add to each row which seeds trained, their mean accuracies, and the exchange test on those.

    Args:
      rows: of a grid.
      chance, n_test: the share of the largest class among the test samples, and their number.
    """
    own = lambda row: np.array(row["test"][f"{row['scheme']} {row['n_steps']}"])
    noise = np.sqrt(chance * (1 - chance) / n_test)
    least = max((chance + max(own(row).max() for row in rows)) / 2, chance + 3 * noise)
    for row in rows:
        good = own(row) >= least
        row |= {"trained": good.tolist(), "accuracy": None, "spread": None, "loss": None, "passed": None}
        row |= {"worst": None, "gap": None, "passed_gap": None}
        if not good.any():
            continue
        mean = {key: float(np.array(values)[good].mean()) for key, values in row["test"].items()}
        quality = {Manifestation(key.split()[0], int(key.split()[1])): value for key, value in mean.items()}
        trained, accuracy = Manifestation(row["scheme"], row["n_steps"]), validity.Quality(quality, "accuracy")
        found = validity.exchange(accuracy, trained)
        worst = [found.worst.scheme, found.worst.n_steps]
        row |= {"accuracy": found.own, "loss": found.loss, "passed": found.passed, "worst": worst}
        row["spread"] = float(own(row)[good].std())
        if row["scheme"] == "euler":
            row["gap"] = found.own - quality[Manifestation("midpoint", row["n_steps"])]
            row["passed_gap"] = bool(abs(row["gap"]) <= found.tolerance)


def critical(rows: Sequence[Row], scheme: str, column: str = "passed") -> list[int | None]:
    """Field evaluations that bracket the critical training step: the finest that failed, the coarsest that passed.

    Of the rows with a verdict: where no seed trained there is no model to judge.
    """
    stages = {"euler": 1, "rk4": 4}[scheme]
    judged = [row for row in rows if row["scheme"] == scheme and row[column] is not None]
    passed = {row["n_steps"]: bool(row[column]) for row in judged}
    good, bad = validity.critical_training_step(passed) if passed else (np.nan, np.nan)
    return [None if np.isnan(h) else round(stages / h) for h in (bad, good)]


def grid(options: Options, task: Task, rows: Rows, console: Console) -> dict[str, Any]:
    """All rows, and the critical steps."""
    train, test = task.load(0, options.n_train, options.n_test, options.data_dir)
    rows.arrays.update(x=np.asarray(test[0][:1000]), y=np.asarray(test[1][:1000]))
    for scheme, counts in (("euler", task.euler), ("rk4", task.rk4)):
        for n in counts:
            measure = partial(grid_row, options, task, scheme, n, train, test)
            rows.fill(f"{scheme} {n}", measure, console)
    measured = list(rows.rows.values())
    judge(measured, float(np.bincount(np.asarray(test[1])).max() / len(test[1])), len(test[1]))
    brackets = {scheme: critical(measured, scheme) for scheme in ("euler", "rk4")}
    brackets["euler, midpoint alone"] = critical(measured, "euler", "passed_gap")
    console.print(f"{task.name}: critical field evaluations {brackets}, the paper's {task.critical}")
    return {"critical_nfe": brackets}


# ---------------------------------------------------------------------------------------------------------
# Adaptation of the step
# ---------------------------------------------------------------------------------------------------------


def adapt_row(options: Options, task: Task, controller: Any, train: Any, test: Any) -> tuple[Row, Arrays]:
    """Train all seeds with Euler under a controller, each seed with a step of its own."""
    began, update = time.perf_counter(), jax.jit(jax.vmap(controller.update))
    step, gap = programs.training(task, "euler", options.max_steps, own=True), programs.gap(task, options.preset)
    state = programs.begin(task, jax.random.split(jax.random.key(1), options.seeds))
    first = train[0][: task.batch_size]
    tolerance = None if options.preset == "code" else 1e-3
    hairer = lambda theta: validity.first_step(make_problem(task.field, first, theta), "euler", tolerance)
    h0 = jax.jit(jax.vmap(hairer))(state["params"]["field"])
    control, course, checks = jax.vmap(controller.init)(h0), [], np.zeros(options.seeds)
    some = (test[0][:1000], test[1][:1000])
    for call in calls(task):
        if call:
            checks += check_cost(control.value, options.preset)
            control = update(gap(state, *train, control.value), control)
            if bool(control.on_trial.any()):
                checks += check_cost(control.value, options.preset) * np.asarray(control.on_trial)
                trial = update(gap(state, *train, control.value), control)
                control = jax.tree.map(lambda new, old, on=control.on_trial: jnp.where(on, new, old), trial, control)
        n = validity.steps_of(control.value)
        state = step(state, *train, n)
        if call % 2 or call == calls(task)[-1]:
            at = {"iteration": (call + 1) * CHECK_EVERY, "n_steps": np.asarray(n).tolist()}
            course.append(at | accuracies_at(task, state["params"], some, n))
    final = accuracies_at(task, state["params"], test, n)
    iterations, nfe, skipped = len(calls(task)) * CHECK_EVERY, np.asarray(state["nfe"], float), skips(state)
    counts = {name: np.asarray(getattr(control, name)).tolist() for name in ("n_shrunk", "n_reverted", "checks")}
    said = f"steps {np.asarray(n)}, accuracy {np.round(final['euler'], 3)}, halved {counts['n_shrunk']} times"
    row: Row = counts | {
        "said": said + warning(skipped),
        "skipped": skipped,
        "n_steps": np.asarray(n).tolist(),
        "accuracy": final["euler"],
        "loss": (np.array(final["euler"]) - np.minimum(final["midpoint"], final["rk4"])).tolist(),
        "nfe_per_iteration": ((nfe + checks) / iterations).tolist(),
        "nfe_of_checks": (checks / iterations).tolist(),
        "first_h": np.asarray(h0).tolist(),
        "course": course,
        "compilations": step._cache_size(),
        "seconds": time.perf_counter() - began,
    }
    return row, {}


def accuracies_at(task: Task, params: PyTree, test: Any, n: Any) -> dict[str, list[float]]:
    """Test accuracy of each seed at a number of steps of its own, by scheme."""
    return {scheme: programs.accuracies(task, params, test, FixedStep(scheme, 1), n) for scheme in SCHEMES}


def adapt(options: Options, task: Task, rows: Rows, console: Console) -> dict[str, Any]:
    """All controllers on one task."""
    train, test = task.load(0, options.n_train, options.n_test, options.data_dir)
    for name, make in CONTROLLERS.items():
        rows.fill(name, partial(adapt_row, options, task, make(options.max_steps), train, test), console)
    return {}


# ---------------------------------------------------------------------------------------------------------
# Adaptive solvers
# ---------------------------------------------------------------------------------------------------------


def tolerance_row(options: Options, task: Task, scheme: str, value: float, train: Any, test: Any) -> tuple[Row, Arrays]:
    """Train all seeds with an adaptive scheme at one tolerance, test them at others."""
    began, step = time.perf_counter(), programs.tolerance_training(task, scheme, ACA(None))
    state = programs.begin(task, jax.random.split(jax.random.key(1), options.seeds))
    for _ in calls(task):
        state = step(state, *train, value)
    # Float32 has no digits for less than 1e-6.
    values = [factor * value for factor in (10.0, 1.0, 0.1, 0.01, 0.001) if factor * value >= 0.99e-6]
    tested = {f"{v:.3g}": programs.accuracies_within(task, state["params"], test, scheme, v) for v in values}
    means = {key: round(float(np.mean(accuracy)), 3) for key, accuracy in tested.items()}
    nfe = np.asarray(state["nfe"]) / (len(calls(task)) * CHECK_EVERY)
    skipped = skips(state)
    said = f"accuracy by test tolerance {means}, nfe {nfe.mean():.1f}{warning(skipped)}"
    row = {"scheme": scheme, "tolerance": value, "test": tested, "nfe": nfe.tolist(), "said": said}
    return row | {"skipped": skipped, "seconds": time.perf_counter() - began}, {}


def tolerance(options: Options, task: Task, rows: Rows, console: Console) -> dict[str, Any]:
    """Fehlberg2(1) and Dopri5 at all tolerances."""
    train, test = task.load(0, options.n_train, options.n_test, options.data_dir)
    for scheme in ("fehlberg21", "dopri5"):
        for value in options.tolerances:
            measure = partial(tolerance_row, options, task, scheme, value, train, test)
            rows.fill(f"{scheme} {value:g}", measure, console)
    return {}


def main() -> None:
    """The command line."""
    console, began = Console(highlight=False, soft_wrap=True), time.perf_counter()
    try:
        options = command_line(Options, "python -m experiments.ott", __doc__)
        task = options.reduced()
        rows, run = options.rows(), {"grid": grid, "adapt": adapt, "tolerance": tolerance}[options.what]
        rows.write(run(options, task, rows, console))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"{time.perf_counter() - began:.0f} s; written: {rows.path}")
    figures.draw_all(rows.path.parent, console)


if __name__ == "__main__":
    main()
