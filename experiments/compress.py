"""Compress the network of a run without data: fewer coefficients, another basis, fewer or cheaper steps.

    python -m experiments.compress runs/digits                        the cheapest that loses at most 1 point
    python -m experiments.compress runs/digits --max-drop 0
    python -m experiments.compress runs/digits --basis legendre --n-basis 2 --scheme rk4_38 --n-steps 2

theta(t) is projected onto each basis of each size, and each projection evaluated under each (scheme, N_t)
that costs no more than the trained network, on the run's validation images. The front of accuracy against
field evaluations goes into RUN_DIR/compressed as front.csv, front.json and front.png. The one chosen becomes
a run folder of its own, which evaluate_solvers reads like any other: its manifest.json names its parent, and
model.jaxexport is its inference function, from uint8 images to logits, which needs jax alone, and
model.jaxexport.sha256 its digest, for sha256sum --check. The test images are read once, for the one chosen.

Polynomials up to one degree have one projection, whichever basis writes them: of Legendre and Chebyshev the
first is tried by default.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.images import data
from experiments.records import pictures
from experiments.records.command import command_line
from experiments.records.digests import write_digest
from experiments.records.environment import environment
from experiments.records.files import RunError, expand, read_manifest, write_json
from experiments.records.progress import told
from experiments.records.swaps import Row, outcome
from experiments.records.tables import show
from experiments.training.architecture import BASES, BasisName, basis_name
from experiments.training.config import Config
from experiments.training.fingerprint import data_of_run
from experiments.training.manifestations import default_steps, evaluate_grid, loaded, make_batches, restated
from experiments.training.run import Run
from ode_nets import remanifest
from ode_nets.integrate import FixedStep
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import SCHEMES

PyTree = Any
EXPORTED = "model.jaxexport"
CHECK = """
import hashlib, sys
sys.modules["ode_nets"] = sys.modules["flax"] = None  # whatever imports them now fails
import numpy as np
from jax import export
with open(sys.argv[1], "rb") as file, open(sys.argv[1] + ".sha256") as digest:
    content = file.read()
    if hashlib.sha256(content).hexdigest() != digest.read().split()[0]:
        sys.exit("it differs from its SHA-256 digest")
function = export.deserialize(bytearray(content))
with np.load(sys.argv[2]) as file:
    print(np.abs(np.asarray(function.call(file["images"])) - file["logits"]).max())
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try and to choose; one value each of basis, n-basis, scheme and n-steps decides outright."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which of its checkpoints."""
    basis: tuple[BasisName, ...] = ("piecewise_constant", "piecewise_linear", "legendre")
    """Bases to project onto."""
    n_basis: tuple[int, ...] = ()
    """Numbers of coefficients; default: the run's own, halved again and again."""
    scheme: tuple[str, ...] = ("euler", "midpoint", "rk4", "rk4_38")
    """Runge-Kutta schemes."""
    n_steps: tuple[int, ...] = ()
    """Steps a block; default: a range up to the run's own."""
    max_drop: float = 1.0
    """Points of validation accuracy that may be lost."""
    out: Path | None = None
    """Folder of the compressed run; default RUN_DIR/compressed/<what was chosen>."""
    data_dir: Path | None = None
    """Folder that the data lies in now; default where the run found it."""
    accept_new_data: bool = False
    """Compress by data that is not that of the run."""
    overwrite: bool = False
    """Replace a compressed run that is there already."""

    def __post_init__(self) -> None:
        expand(self, "run_dir", "out")
        for name, good, allowed in (
            ("basis", bool(self.basis), f"some of {', '.join(BASES)}"),
            ("n_basis", all(m >= 1 for m in self.n_basis), "numbers of at least 1"),
            (
                "scheme",
                bool(self.scheme) and set(self.scheme) <= set(SCHEMES),
                f"some of {', '.join(SCHEMES)}",
            ),
            ("n_steps", all(n >= 1 for n in self.n_steps), "numbers of at least 1"),
            ("max_drop", 0 <= self.max_drop <= 100, "points between 0 and 100"),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")

    @property
    def decides(self) -> bool:
        """Whether one candidate alone is asked for."""
        return all(len(values) == 1 for values in (self.basis, self.n_basis, self.scheme, self.n_steps))


# ---------------------------------------------------------------------------------------------------------
# Candidates
# ---------------------------------------------------------------------------------------------------------


def candidates(net: nn.Module, options: Options) -> dict[tuple[str, int], list[Manifestation]]:
    """For each (basis, M) the manifestations to try, the trained one first; M = 1 is tried in one basis."""
    if basis_name(net.basis) not in BASES:
        raise RunError(f"net.basis={net.basis!r}: expected one of {', '.join(BASES)}; project onto one of them first")
    own_solver = Manifestation.of(net.solver)
    budget = remanifest.nfe(net.solver)
    sizes = options.n_basis or sorted({-(-net.basis.n_basis // 2**k) for k in range(16)})
    steps = options.n_steps or [n for n in default_steps(net.solver.n_steps) if n <= net.solver.n_steps]
    grid = [
        Manifestation(scheme, n)
        for scheme in options.scheme
        for n in steps
        if options.n_steps or remanifest.nfe(FixedStep(scheme, n)) <= budget
    ]
    bases = [(name, m) for k, name in enumerate(options.basis) for m in sorted(sizes, reverse=True) if m > 1 or k == 0]
    own_basis = (basis_name(net.basis), net.basis.n_basis)
    found: dict[tuple[str, int], list[Manifestation]] = {own_basis: [own_solver]}
    found |= {basis: [] for basis in bases if basis != own_basis}
    for basis in bases:
        found[basis] += [solver for solver in grid if solver not in found[basis]]
    return found


def evaluate_candidates(
    net: nn.Module,
    variables: PyTree,
    dataset: data.Dataset,
    grids: dict[tuple[str, int], list[Manifestation]],
) -> list[Row]:
    """One row a candidate, on the validation images; one compiled program a (basis, M)."""
    batches, n_images = make_batches(dataset, "validation")
    rows = []
    for (name, m), grid in told(grids.items(), lambda pair: "{}, M = {}".format(*pair[0])):
        smaller, projected = remanifest.project(net, variables, BASES[name](m))
        evaluated, _ = evaluate_grid(smaller, projected, grid, batches, n_images)
        size = {"basis": name, "n_basis": m, "n_parameters": remanifest.n_parameters(projected)}
        rows += [size | row for row in evaluated]
    return rows


def front_of(rows: list[Row]) -> list[Row]:
    """The rows that no other beats in field evaluations and accuracy; of equals, that of fewest parameters.

    Rows under which an image diverged are left out.
    """
    by_size = sorted((row for row in rows if not row["diverged"]), key=lambda row: row["n_parameters"])
    return [by_size[i] for i in remanifest.pareto_front([(row["nfe"], row["accuracy"]) for row in by_size])]


def choose(rows: list[Row], options: Options) -> Row:
    """The cheapest row that loses at most `max_drop` points against the first, the trained network.

    Cheapest in field evaluations, then in parameters, then the most accurate. The one row asked for, if
    `options` name one alone.

    Raises:
      RunError: if every row loses more.
    """
    if options.decides:
        wanted = (*options.basis, *options.n_basis, *options.scheme, *options.n_steps)
        names = ("basis", "n_basis", "scheme", "n_steps")
        return next(row for row in rows if tuple(row[name] for name in names) == wanted)
    trained, others = rows[0], [row for row in rows[1:] if not row["diverged"]]
    good = [row for row in others if row["accuracy"] >= trained["accuracy"] - options.max_drop / 100 - 1e-9]
    if not good:
        least = min((trained["accuracy"] - row["accuracy"] for row in others), default=1.0)
        raise RunError(f"every candidate loses at least {100 * least:.2f} points: raise --max-drop or try others")
    return min(good, key=lambda row: (row["nfe"], row["n_parameters"], -row["accuracy"]))


# ---------------------------------------------------------------------------------------------------------
# The one chosen, as a run folder and as an exported function
# ---------------------------------------------------------------------------------------------------------


def compressed(config: Config, chosen: Row) -> Config:
    """The setting of the network that was chosen; its kernels evolve on the grid that they were trained on."""
    changes: dict[str, Any] = {name: chosen[name] for name in ("basis", "n_basis", "scheme", "n_steps")}
    model: Any = config.model
    if getattr(model, "evolution", "none") != "none":
        changes["evolution_steps"] = model.evolution_steps or model.n_steps
    return dataclasses.replace(config, refine_epochs=(), model=dataclasses.replace(model, **changes))


def save(
    out: Path,
    parent: Path,
    config: Config,
    variables: PyTree,
    notes: dict[str, Any],
    chosen: Row,
    overwrite: bool,
) -> None:
    """Write the compressed network as a run: checkpoint and manifest.json."""
    record = read_manifest(parent) or {}
    run = Run.start(out, compressed(config, chosen), resume=False, overwrite=overwrite, data=notes["data"])
    try:
        run.save("latest", notes["step"], variables, {"level": 0, "best": chosen["accuracy"], "seconds": 0.0})
        run.update(
            parent={
                "run": os.path.relpath(parent.absolute(), out.absolute()),
                "step": notes["step"],
                "config": record.get("config"),
                "environment": record.get("environment"),
                "results": record.get("results"),
            }
        )
    finally:
        run.close()


def evaluate_test(net: nn.Module, variables: PyTree, dataset: data.Dataset, chosen: Row) -> dict[str, Any]:
    """Results on the test images, as `train` writes them."""
    batches, n_images = make_batches(dataset, "test")
    (row,), _ = evaluate_grid(net, variables, [Manifestation(chosen["scheme"], chosen["n_steps"])], batches, n_images)
    return {
        "test_loss": row["loss"],
        "test_accuracy": row["accuracy"],
        "n_test": n_images,
        "validation_accuracy": chosen["accuracy"],
        "n_parameters": chosen["n_parameters"],
        "nfe": chosen["nfe"],
        "data": dataset.source,
    }


def export(out: Path, net: nn.Module, variables: PyTree, dataset: data.Dataset) -> float:
    """Write the inference function and run it in a process of its own that can import no `ode_nets`.

    Returns:
      The largest difference of its logits from those of the network here.

    Raises:
      RunError: if it does not run there or differs.
    """
    images = dataset.x_test[: min(32, len(dataset.x_test))]
    preprocess = partial(data.normalize, mean=dataset.mean, std=dataset.std)
    exported = remanifest.export_inference(net, variables, images.shape[1:], preprocess=preprocess, dtype="uint8")
    (out / EXPORTED).write_bytes(exported)
    write_digest(out / EXPORTED)
    logits = np.asarray(jax.jit(net.apply)(variables, preprocess(images)))
    sample = out / "sample.npz"
    np.savez(sample, images=images, logits=logits)
    command = [sys.executable, "-c", CHECK, str((out / EXPORTED).absolute()), str(sample.absolute())]
    try:
        process = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
    finally:
        sample.unlink()
    if process.returncode != 0:
        raise RunError(f"{out / EXPORTED} does not run without ode_nets:\n{process.stderr.strip()}")
    difference = float(process.stdout)
    if not difference <= 1e-3 * np.abs(logits).max():
        raise RunError(f"{out / EXPORTED} gives logits that differ by {difference}")
    return difference


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def print_front(front: list[Row], trained: Row, chosen: Row, console: Console) -> None:
    """The front, with the trained network and the one chosen."""
    table = Table(title="Validation accuracy against field evaluations: the front", title_justify="left")
    for name in ("basis", "M", "parameters", "scheme", "N_t", "NFE", "accuracy %, loss", ""):
        table.add_column(name, justify="left" if name in ("basis", "scheme", "") else "right")
    extra = [row for row in (chosen, trained) if row not in front]
    for row in sorted(front + extra, key=lambda row: (row["nfe"], row["accuracy"])):
        what = " ".join(name for name, one in (("trained", trained), ("chosen", chosen)) if row is one)
        numbers = (str(row["nfe"]), outcome(row))
        size = (row["basis"], str(row["n_basis"]), f"{row['n_parameters']:,}")
        table.add_row(*size, row["scheme"], str(row["n_steps"]), *numbers, what)
    show(table, console)


# ---------------------------------------------------------------------------------------------------------
# From a run to its compressed self
# ---------------------------------------------------------------------------------------------------------


def compress(options: Options, console: Console) -> Path:
    """Evaluate, choose, save, test and export; the folder of the compressed run.

    Raises:
      RunError: for a run that cannot be compressed, no candidate within `max_drop`, or a folder in use.
    """
    config, net, variables, notes = loaded(options.run_dir, options.checkpoint, "basis")
    dataset = data_of_run(config, notes["data"], options.accept_new_data, options.data_dir)
    variables, statistics = restated(net, variables, dataset)
    rows = evaluate_candidates(net, variables, dataset, candidates(net, options))
    front, folder = front_of(rows), options.run_dir / "compressed"
    chosen = choose(rows, options)
    print_front(front, rows[0], chosen, console)
    write_json(
        folder / "front.json",
        {
            "run": str(options.run_dir), "checkpoint": options.checkpoint, "step": notes["step"],
            "seed": config.seed, "split": "validation", "statistics": statistics, "n_images": len(dataset.x_validation),
            "trained": rows[0], "chosen": chosen, "front": front, "rows": rows, "environment": environment(),
        },
    )  # fmt: skip
    with (folder / "front.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pictures.draw_front(rows, front, chosen).savefig(folder / "front.png", dpi=150)

    name = f"{chosen['basis']}-{chosen['n_basis']}-{chosen['scheme']}-{chosen['n_steps']}"
    out = options.out or folder / name
    small, projected = remanifest.project(net, variables, BASES[chosen["basis"]](chosen["n_basis"]))
    small = small.clone(solver=FixedStep(chosen["scheme"], chosen["n_steps"]))
    save(out, options.run_dir, config, projected, notes, chosen, options.overwrite)
    results = evaluate_test(small, projected, dataset, chosen)
    difference = export(out, small, projected, dataset)
    Run(out).update(status="finished", results=results | {"exported": EXPORTED, "export_difference": difference})
    parent = (read_manifest(options.run_dir) or {}).get("results", {})
    before = f" (before: {100 * parent['test_accuracy']:.2f} %)" if "test_accuracy" in parent else ""
    accuracy = 100 * results["test_accuracy"]
    console.print(
        f"chosen: {name}, {chosen['nfe']} of {rows[0]['nfe']} field evaluations, {chosen['n_parameters']:,} "
        f"of {rows[0]['n_parameters']:,} parameters; test accuracy {accuracy:.2f} %{before}\n"
        f"{out / EXPORTED} runs without ode_nets; its logits differ by {difference:.1e}\n"
        f"written: {folder}/front.csv, front.json, front.png; compressed run in {out}",
        soft_wrap=True,
    )
    return out


def main() -> None:
    """The command line."""
    try:
        options = command_line(Options, "python -m experiments.compress", __doc__)
        compress(options, Console(highlight=False))
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
