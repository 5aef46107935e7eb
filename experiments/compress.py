"""Compress the network of a run without data: fewer coefficients, another basis, fewer or cheaper steps.

    python -m experiments.compress runs/digits                        the cheapest that loses at most 1 point
    python -m experiments.compress runs/digits --max-drop 0
    python -m experiments.compress runs/digits --basis legendre --n-basis 2 --scheme rk4_38 --n-steps 2
    python -m experiments.compress runs/digits --int8 --onnx          kernels in eight bits; an ONNX file beside it

theta(t) is projected onto each basis of each size, and each projection evaluated under each (scheme, N_t)
that costs no more than the trained network, on the run's validation images. The front of accuracy against
field evaluations goes into RUN_DIR/compressed as front.csv, front.json and front.png. The one chosen becomes
a run folder of its own, which evaluate_solvers reads like any other: its manifest.json names its parent. In it are
model.jaxexport, its inference function from uint8 images to logits, which needs jax alone, model.safetensors, its
variables by name, and with --onnx model.onnx; each with its digest beside it, for sha256sum --check. With --int8 the
kernels are rounded to eight bits, one scale a channel and coefficient, in all of them but model.onnx, which holds the
rounded ones in float32. The test images are read once, for the one chosen.

Polynomials up to one degree have one projection, whichever basis writes them: of Legendre and Chebyshev the
first is tried by default.

Each manifestation is a compilation and a pass over the validation images: a minute for the digits on two cores.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import tyro
from rich.console import Console

from experiments.images import data
from experiments.records import fronts, pictures
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import (
    RunError,
    absolute,
    check_place,
    check_writable,
    expand,
    in_bucket,
    place,
    read_manifest,
    results_in,
    write_json,
)
from experiments.records.progress import told
from experiments.records.swaps import Row
from experiments.training import exported
from experiments.training.architecture import BASES, BasisName, basis_name
from experiments.training.config import Config
from experiments.training.fingerprint import data_of_run
from experiments.training.manifestations import (
    Restat,
    default_steps,
    evaluate_grid,
    loaded,
    make_batches,
    restat_of,
)
from experiments.training.run import Run
from ode_nets import remanifest
from ode_nets.integrate import FixedStep
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import SCHEMES

PyTree = Any
CHOICE = ("basis", "n_basis", "scheme", "n_steps")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try and to choose; one value each of basis, n-basis, scheme and n-steps decides outright."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, on this machine or as gs://BUCKET/FOLDER."""
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
    int8: bool = False
    """Round kernels to eight bits."""
    onnx: bool = False
    """Write model.onnx as well, which needs the extra `onnx`."""
    out: Path | None = None
    """Folder of the compressed run; default RUN_DIR/compressed/<what was chosen>, of a run in a bucket below runs/."""
    data_dir: Path | None = None
    """Folder that the data lies in now; default where the run found it."""
    accept_new_data: bool = False
    """Compress by data that is not that of the run."""
    overwrite: bool = False
    """Replace a compressed run that is there already."""

    def __post_init__(self) -> None:
        expand(self, "run_dir", to=place)
        expand(self, "out")
        check_settings(
            self,
            ("basis", bool(self.basis), f"some of {', '.join(BASES)}"),
            ("n_basis", all(m >= 1 for m in self.n_basis), "numbers of at least 1"),
            ("scheme", bool(self.scheme) and set(self.scheme) <= set(SCHEMES), f"some of {', '.join(SCHEMES)}"),
            ("n_steps", all(n >= 1 for n in self.n_steps), "numbers of at least 1"),
            ("max_drop", 0 <= self.max_drop <= 100, "points between 0 and 100"),
        )

    @property
    def decides(self) -> bool:
        """Whether one candidate alone is asked for."""
        return all(len(values) == 1 for values in (self.basis, self.n_basis, self.scheme, self.n_steps))


# ---------------------------------------------------------------------------------------------------------
# Where it goes
# ---------------------------------------------------------------------------------------------------------


def target(options: Options, chosen: Row) -> Path:
    """The folder of the compressed run."""
    if options.out:
        return options.out
    name = "-".join(str(chosen[key]) for key in CHOICE)
    return results_in(options.run_dir, "compressed") / (name + "-int8" * options.int8)


def check_target(options: Options, step: int) -> None:
    """See, before anything is computed, whether the compressed run of a checkpoint can be written.

    Raises:
      RunError: for a folder that is in use, or in which nothing can be written.
    """
    choice = known_choice(options, step)
    if options.out or choice:
        check_free(target(options, choice or {}), options)
        check_writable(target(options, choice or {}), "--out writes elsewhere")
    copy = "the front goes there; copy the run to where it can be written"
    check_writable(results_in(options.run_dir, "compressed"), copy)


def check_free(out: Path, options: Options) -> None:
    """See whether a compressed run may go into a folder.

    Raises:
      RunError: if it may not.
    """
    check_place(out)
    run = absolute(options.run_dir)
    if absolute(out) in (run, *run.parents):
        raise RunError(f"{out} holds the run that is compressed: --out writes elsewhere")
    if not options.overwrite and out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is there already: --overwrite replaces it, --out writes elsewhere")
    if (out / "metrics.jsonl").exists():
        raise RunError(f"{out} holds a run that was trained, not compressed: --out writes elsewhere")


def known_choice(options: Options, step: int) -> Row | None:
    """What will be chosen, where that is known: the one asked for, or that of an earlier search for the same."""
    if options.decides:
        values = (*options.basis, *options.n_basis, *options.scheme, *options.n_steps)
        return dict(zip(CHOICE, values, strict=True))
    try:
        before = json.loads((results_in(options.run_dir, "compressed") / "front.json").read_text())
        same = (before["searched"], before["step"]) == (searched(options), step)
        return dict(before["chosen"]) if same else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def searched(options: Options) -> dict[str, Any]:
    """The options that a choice depends on, as JSON has them."""
    names = ("checkpoint", "basis", "n_basis", "scheme", "n_steps", "max_drop")
    found: dict[str, Any] = json.loads(json.dumps({name: getattr(options, name) for name in names}))
    return found


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
    restat: Restat | None = None,
) -> list[Row]:
    """One row a candidate, on the validation images; one compiled program a (basis, M)."""
    batches, n_images = make_batches(dataset, "validation")
    rows = []
    for (name, m), grid in told(grids.items(), lambda pair: "{}, M = {}".format(*pair[0])):
        smaller, projected = remanifest.project(net, variables, BASES[name](m))
        evaluated, _ = evaluate_grid(smaller, projected, grid, batches, n_images, restat=restat)
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
        return next(row for row in rows if tuple(row[name] for name in CHOICE) == wanted)
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
    changes: dict[str, Any] = {name: chosen[name] for name in CHOICE}
    model: Any = config.model
    if getattr(model, "evolution", "none") != "none":
        changes["evolution_steps"] = model.evolution_steps or model.n_steps
    # What is compressed is the average, where one was kept.
    return dataclasses.replace(config, refine_epochs=(), ema_decay=0.0, model=dataclasses.replace(model, **changes))


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
                "run": str(parent) if in_bucket(parent) else os.path.relpath(parent.absolute(), out.absolute()),
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


# ---------------------------------------------------------------------------------------------------------
# From a run to its compressed self
# ---------------------------------------------------------------------------------------------------------


def compress(options: Options, console: Console) -> Path:
    """Evaluate, choose, save, test and export; the folder of the compressed run.

    Raises:
      RunError: for a run that cannot be compressed, no candidate within `max_drop`, or a folder in use.
    """
    config, net, variables, notes = loaded(options.run_dir, options.checkpoint, "basis")
    if options.onnx:
        exported.require_onnx()
    check_target(options, notes["step"])
    dataset = data_of_run(config, notes["data"], options.accept_new_data, options.data_dir)
    restat = restat_of(net, variables, dataset)
    rows = evaluate_candidates(net, variables, dataset, candidates(net, options), restat)
    front, folder = front_of(rows), results_in(options.run_dir, "compressed")
    chosen = choose(rows, options)
    fronts.print_front(front, rows[0], chosen, console)
    write_json(
        folder / "front.json",
        {
            "run": str(options.run_dir), "checkpoint": options.checkpoint, "step": notes["step"],
            "seed": config.seed, "split": "validation", "statistics": restat.sentence if restat else "",
            "n_images": len(dataset.x_validation),
            "searched": searched(options), "trained": rows[0], "chosen": chosen, "front": front, "rows": rows,
            "environment": environment(),
        },
    )  # fmt: skip
    with (folder / "front.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pictures.draw_front(rows, front, chosen).savefig(folder / "front.png", dpi=150)

    small, projected = remanifest.project(net, variables, BASES[chosen["basis"]](chosen["n_basis"]))
    small = small.clone(solver=FixedStep(chosen["scheme"], chosen["n_steps"]))
    if restat is not None:
        projected = restat(small, projected)
    served = remanifest.quantize(projected) if options.int8 else projected
    whole = remanifest.dequantize(served)
    out = target(options, chosen)
    check_free(out, options)
    save(out, options.run_dir, config, whole, notes, chosen, options.overwrite)
    results = evaluate_test(small, whole, dataset, chosen)
    if options.int8:
        results["test_accuracy_before_int8"] = evaluate_test(small, projected, dataset, chosen)["test_accuracy"]
    results |= {
        "exported": exported.EXPORTED,
        "export_difference": exported.write_function(out, small, served, dataset),
    }
    exported.write_tensors(out, served)
    if options.onnx:
        results["onnx_difference"] = exported.write_onnx(out, small, served, dataset)
    written = [exported.EXPORTED, exported.TENSORS, *[exported.ONNX] * options.onnx]
    results["bytes"] = {name: (out / name).stat().st_size for name in written}
    Run(out).update(status="finished", results=results)
    fronts.print_results(out, rows[0], chosen, results, read_manifest(options.run_dir) or {}, console)
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
