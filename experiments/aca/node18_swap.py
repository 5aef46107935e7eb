"""Evaluate one trained NODE18 under fixed and adaptive solvers of every order (ACA Tables 2, 6 and 7).

    python -m experiments.aca.node18_swap runs/node18_cifar10
    python -m experiments.aca.node18_swap runs/node18_small --images 1000    five minutes on two cores

Prints the increase of the test error over the solver that the run was trained with, in percentage points and in the
paper's layout, with the paper's figures beside: those of Table 7 for a network trained with an adaptive solver, those
of Table 6 (one Euler step, the paper's ResNet18) for one trained with fixed steps. For the former, Table 2 follows:
the errors themselves at stepsize 0.2 and tolerance 1e-2, beside the paper's of the same data set. Writes
RUN_DIR/swap/node18.json. Adaptive steps follow the error of a whole batch of test images. RK2 is the explicit
midpoint rule, RK23 is Bogacki-Shampine, RK45 is Dormand-Prince.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import RunError, expand, write_json
from experiments.records.progress import told, working
from experiments.records.tables import show
from experiments.training.fingerprint import data_of_run
from experiments.training.manifestations import Batches, evaluate_grid, make_batches, score
from experiments.training.progress import failures
from experiments.training.run import load_run
from ode_nets.gradients import Direct
from ode_nets.integrate import Adaptive
from ode_nets.nn import NODE18
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import get_tableau

PyTree = Any
Row = dict[str, Any]
FIXED = {"Euler": "euler", "RK2": "midpoint", "RK4": "rk4"}
ADAPTIVE = {"HeunEuler": "heun_euler", "RK23": "bosh3", "RK45": "dopri5"}
STEPSIZES, TOLERANCES = (1.0, 0.5, 0.2, 0.1), (1e-1, 1e-2, 1e-3)
TABLE_6 = {
    "Euler": (0.0, 1.14, 3.62, 4.84),
    "RK2": (7.69, 6.43, 6.38, 6.43),
    "RK4": (5.69, 6.31, 6.30, 6.47),
    "HeunEuler": (5.32, 6.33, 6.42),
    "RK23": (6.03, 6.31, 6.44),
    "RK45": (6.30, 6.47, 6.46),
}
TABLE_7 = {
    "Euler": (8.31, 1.57, 0.67, 0.57),
    "RK2": (6.61, 0.57, 0.42, 0.39),
    "RK4": (1.09, 0.48, 0.39, 0.37),
    "HeunEuler": (1.29, 0.0, 0.18),
    "RK23": (0.46, 0.07, 0.40),
    "RK45": (1.75, 0.44, 0.16),
}
# Test errors in percent at tolerance 1e-2 and stepsize 0.2, trained with HeunEuler at 1e-2.
TABLE_2 = {
    "cifar10": {"HeunEuler": 4.85, "RK23": 4.92, "RK45": 5.29, "Euler": 5.52, "RK2": 5.27, "RK4": 5.24},
    "cifar100": {"HeunEuler": 22.66, "RK23": 24.13, "RK45": 23.56, "Euler": 24.44, "RK2": 24.44, "RK4": 24.43},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which of its checkpoints."""
    split: Literal["test", "validation"] = "test"
    """Images to evaluate on."""
    images: int | None = None
    """The first so many of them alone; all of them by default."""
    stepsizes: tuple[float, ...] = STEPSIZES
    """Of the fixed solvers; 1 / stepsize must be an integer."""
    tolerances: tuple[float, ...] = TOLERANCES
    """rtol = atol of the adaptive solvers."""
    data_dir: Path | None = None
    """Folder that the data lies in now; default where the run found it."""
    accept_new_data: bool = False
    """Evaluate on data that is not that of the run."""

    def __post_init__(self) -> None:
        expand(self, "run_dir")
        divides = lambda h: 0 < h <= 1 and abs(1 / h - round(1 / h)) < 1e-6
        check_settings(
            self,
            ("stepsizes", all(map(divides, self.stepsizes)), "numbers that divide 1"),
            ("images", self.images is None or self.images >= 1, "at least 1"),
            ("tolerances", min(self.tolerances, default=0) > 0, "one or more above 0"),
        )


@partial(jax.jit, static_argnames=("net", "scheme", "max_steps"))
def score_adaptive(
    net: nn.Module,
    scheme: str,
    max_steps: int,
    variables: PyTree,
    x: jax.Array,
    y: jax.Array,
    rtol: jax.Array,
    atol: jax.Array,
) -> tuple[PyTree, PyTree]:
    """Sums over a batch under adaptive steps, and the counts of each block; one program for all tolerances."""
    solver = Adaptive(get_tableau(scheme), rtol, atol, max_steps=max_steps)
    logits, changed = net.clone(solver=solver, gradient=Direct()).apply(variables, x, mutable=["solution"])
    return score(logits, y), changed["solution"]


def evaluate_adaptive(net: nn.Module, variables: PyTree, solver: Adaptive, batches: Batches, n_images: int) -> Row:
    """Accuracy, loss and mean counts of a forward pass under one adaptive solver.

    Raises:
      RunError: if a solver did not reach its end on some batch; says which block's.
    """
    start, sums, counts = time.perf_counter(), [], []
    tolerances = jnp.float32(solver.rtol), jnp.float32(solver.atol)
    for x, y in batches():
        scores, solution = score_adaptive(net, solver.scheme.name, solver.max_steps, variables, x, y, *tolerances)
        sums.append(scores)
        counts.append(solution)
    sums, counts = jax.device_get((sums, counts))
    for solution in counts:
        if failed := failures({name: block["result"] for name, block in solution.items()}):
            raise RunError(f"{solver.scheme.name} at {solver.rtol:g}: {failed}; the weights are too stiff for it")
    mean = lambda key: sum(int(block[key]) for s in counts for block in s.values()) / len(counts)
    return {
        "scheme": solver.scheme.name,
        "tolerance": float(solver.rtol),
        "atol": float(solver.atol),
        "accuracy": sum(int(s["hits"]) for s in sums) / n_images,
        "loss": sum(float(s["loss"]) for s in sums) / n_images,
        "nfe": mean("nfe"),
        "n_rejected": mean("n_rejected"),
        "seconds": time.perf_counter() - start,
    }


def swap(options: Options) -> dict[str, Any]:
    """All solvers of the tables and the trained one, as a record that is also written into the run's folder.

    Raises:
      RunError: if the run trained no NODE18.
    """
    config, net, variables, notes = load_run(options.run_dir, options.checkpoint)
    if not isinstance(net, NODE18):
        raise RunError(f"the run in {options.run_dir} trained a {type(net).__name__}: expected a NODE18")
    batches, n_images = make_batches(
        data_of_run(config, notes["data"], options.accept_new_data, options.data_dir), options.split, options.images
    )

    # All fixed solvers are one program, every embedded pair is one more.
    grid = [Manifestation(scheme, round(1 / h)) for scheme in FIXED.values() for h in options.stepsizes]
    own = Manifestation.of(net.solver)
    if not own.adaptive and own not in grid:
        grid.append(own)
    with working(f"{len(grid)} fixed solvers in one program"):
        rows, _ = evaluate_grid(net, variables, grid, batches, n_images)
    trained = net.solver
    adaptive = isinstance(trained, Adaptive)
    max_steps = trained.max_steps if adaptive else 4096
    pairs = [
        Adaptive(get_tableau(scheme), tolerance, tolerance, max_steps=max_steps)
        for scheme in ADAPTIVE.values()
        for tolerance in options.tolerances
    ]
    if adaptive and trained not in pairs:
        pairs.append(trained)
    rows += [evaluate_adaptive(net, variables, pair, batches, n_images) for pair in told(pairs)]
    grid_of = {"tolerance": trained.rtol, "atol": trained.atol} if adaptive else {"n_steps": own.n_steps}
    key = {"scheme": own.scheme} | grid_of
    own_row = next(row for row in rows if key.items() <= row.items())
    for row in rows:
        row["error_increase"] = 100 * (own_row["accuracy"] - row["accuracy"])
    record = {
        "run": str(options.run_dir),
        "checkpoint": options.checkpoint,
        "step": notes["step"],
        "dataset": config.dataset,
        "split": options.split,
        "n_images": n_images,
        "trained": key,
        "error": 100 * (1 - own_row["accuracy"]),
        "environment": environment(),
        "rows": rows,
    }
    write_json(options.run_dir / "swap" / "node18.json", record)
    return record


def print_tables(record: dict[str, Any], console: Console) -> None:
    """Increases of the error in the layout of Tables 6 and 7, the paper's figures in brackets."""
    adaptive = "tolerance" in record["trained"]
    paper, number = (TABLE_7, 7) if adaptive else (TABLE_6, 6)
    trained = " ".join(f"{value}" for value in record["trained"].values())
    console.print(
        f"trained with {trained}: error {record['error']:.2f} % on {record['n_images']} {record['split']} images. "
        f"Increase of the error in points, in brackets the paper's Table {number} (CIFAR-10, full size)",
        soft_wrap=True,
    )
    for title, schemes, columns, of, name in (
        ("stepsize", FIXED, STEPSIZES, lambda row: 1 / row["n_steps"], "n_steps"),
        ("rtol = atol", ADAPTIVE, TOLERANCES, lambda row: row["tolerance"], "tolerance"),
    ):
        rows = {(row["scheme"], round(of(row), 9)): row for row in record["rows"] if name in row}
        shown = sorted({at for _, at in rows}, reverse=True)
        table = Table(title_justify="left")
        table.add_column(title)
        for at in shown:
            table.add_column(f"{at:g}", justify="right")
        for label, scheme in schemes.items():
            cells = []
            for at in shown:
                row = rows.get((scheme, at))
                theirs = f" ({paper[label][columns.index(at)]:+.2f})" if at in columns else ""
                cells.append("" if row is None else f"{row['error_increase']:+.2f}{theirs}")
            table.add_row(label, *cells)
        show(table, console)
    if adaptive:
        print_table_2(record, console)


def print_table_2(record: dict[str, Any], console: Console) -> None:
    """Errors in the layout of Table 2, as far as its solvers were evaluated, the paper's figures in brackets."""
    rows = {(row["scheme"], row.get("n_steps", row.get("tolerance"))): row for row in record["rows"]}
    table = Table(title="Table 2: error in percent, tolerance 1e-2 and stepsize 0.2", title_justify="left")
    cells = []
    for label, scheme in (ADAPTIVE | FIXED).items():
        table.add_column(label, justify="right")
        row = rows.get((scheme, 1e-2 if label in ADAPTIVE else 5))
        theirs = TABLE_2.get(record["dataset"], {}).get(label)
        beside = "" if theirs is None else f" ({theirs:.2f})"
        cells.append("" if row is None else f"{100 * (1 - row['accuracy']):.2f}{beside}")
    table.add_row(*cells)
    show(table, console)


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.node18_swap", __doc__)
        print_tables(swap(options), console)
    except (RunError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"written: {options.run_dir / 'swap' / 'node18.json'}")


if __name__ == "__main__":
    main()
