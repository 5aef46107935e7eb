"""Steps that the continuous adjoint needs where weights jump: the claim N_t >= 3 M of ContinuousNet sec. 5.2.

    python -m experiments.continuous_net.adjoint_steps

The paper says that gradients of the adjoint method were sensitive to the number of steps, and that networks trained
with it to a high accuracy only with N_t >= 3 M, three steps an interval of the weights; it gives no numbers. Measured
here is the gradient, not what training makes of it: how far Backsolve's is from that of the steps themselves
(Checkpointed), relative to it, in x(0) and all coefficients, in float64, against N_t / M.

    dx/dt = eps R(x, theta(t)),  0 <= t <= 1,  theta constant on each of M intervals,  eps = strength * M

R is a perceptron. An interval is crossed with the same strength whatever M is, as where M = N_t = eps is a ResNet;
where eps is fixed instead, the strength of an interval falls as 1 / M, and the same error needs fewer steps an
interval the more intervals there are. Coefficients are smooth in depth (points of one curve) or rough (a draw each),
of the same size.

Weights are read in two ways. `own` is this library's: a stage at the end of a step reads the interval of its step, on
the way back too. `clock` is what a solver does that knows nothing of intervals and hands a time to floor(M t): the
last stage of RK4 there, and the first one back, read the interval after.

What the table shows for each: the fewest steps an interval from which on the median of the seeds stays within 10, 1
and 0.1 %. Within 1 %, RK4 that reads its own interval needs one step where eps / M = 0.5 and three where it is 2 (six
and four of M = 8): the paper's number holds for intervals as strong as that, smooth or rough. By floor(M t) the error
falls by order 2 in place of 4, and 2 and then 4 to 24 steps are needed; Euler needs more than 32.

Four minutes on two cores that had other work to do. Writes adjoint_steps.json and adjoint_steps.png into --out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.pictures import plain_ticks
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import MLP, Backsolve, BasisExpansion, Checkpointed, FixedStep, PiecewiseConstant, solve
from ode_nets.gradients import GradientMethod

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
Row = dict[str, Any]
READINGS = (("rk4", "own"), ("rk4", "clock"), ("euler", "own"))
KINDS = ("smooth", "rough")
WITHIN = (0.1, 0.01, 0.001)
"""Errors that steps are counted for."""
NET = MLP(size=8, hidden=(16,))
MAX_STEPS = 1024


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    n_basis: tuple[int, ...] = (2, 4, 8)
    """Intervals M."""
    per_interval: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    """N_t / M, rising."""
    strengths: tuple[float, ...] = (0.5, 2.0)
    """eps / M, above 0."""
    gain: float = 2.0
    """Factor of the weights of both layers, above 0."""
    seeds: int = 9
    """Networks and batches, over whose errors medians are taken."""
    batch: int = 16
    """Samples."""
    out: Path | None = None
    """Folder of the results; default runs/adjoint_steps."""
    record: bool = False
    """Write into results/adjoint_steps, which git keeps, instead."""

    def __post_init__(self) -> None:
        steps = self.per_interval
        check_settings(
            self,
            ("n_basis", bool(self.n_basis) and min(self.n_basis) >= 1, "numbers of at least 1"),
            ("per_interval", min(steps, default=0) >= 1 and steps == tuple(sorted(set(steps))), "rising, from 1 on"),
            ("strengths", min(self.strengths, default=0) > 0, "numbers above 0"),
            ("gain", self.gain > 0, "a number above 0"),
            ("seeds", self.seeds >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
        )
        if (most := max(steps) * max(self.n_basis)) > MAX_STEPS:
            raise ValueError(f"per_interval={steps} of n_basis={self.n_basis}: {most} steps, at most {MAX_STEPS}")


def coefficients(key: jax.Array, kind: str, n_basis: int, gain: float) -> PyTree:
    """Weights of each interval, leaves `[n_basis, ...]`, float64.

    Smooth ones are points of theta(t) = A cos(pi t) + B sin(pi t) with two draws A and B, and so of the size of a draw.
    """
    draw = lambda key: jax.tree.map(lambda leaf: gain * leaf.astype(jnp.float64), NET.init(key))
    if kind == "rough":
        return jax.vmap(draw)(jax.random.split(key, n_basis))
    middle = jnp.pi * (jnp.arange(n_basis) + 0.5) / n_basis
    a, b = (draw(each) for each in jax.random.split(key))
    outer = lambda t, leaf: t.reshape(-1, *[1] * leaf.ndim) * leaf
    return jax.tree.map(lambda a, b: outer(jnp.cos(middle), a) + outer(jnp.sin(middle), b), a, b)


def gradient_of(scheme: str, reading: str, n_basis: int, method: GradientMethod) -> Callable[..., jax.Array]:
    """A compiled function of (x0 `[seeds, batch, size]`, coefficients, eps, N_t): gradients `[seeds, n]`."""

    def own(x0: jax.Array, theta: PyTree, eps: Any, solver: FixedStep) -> jax.Array:
        weights = BasisExpansion(PiecewiseConstant(n_basis), theta)
        return solve(lambda t, x, theta: eps * NET(t, x, theta), x0, weights, solver=solver, gradient=method).x

    def clock(x0: jax.Array, theta: PyTree, eps: Any, solver: FixedStep) -> jax.Array:
        def field(t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
            k = jnp.clip(jnp.floor(n_basis * t).astype(jnp.int32), 0, n_basis - 1)
            return eps * NET(t, x, jax.tree.map(lambda leaf: leaf[k], theta))

        return solve(field, x0, theta, solver=solver, gradient=method).x

    end = {"own": own, "clock": clock}[reading]

    def one(x0: jax.Array, theta: PyTree, eps: Any, n_steps: Any) -> jax.Array:
        solver = FixedStep(scheme, n_steps, max_steps=MAX_STEPS)
        loss = lambda x0, theta: jnp.mean(jnp.square(end(x0, theta, eps, solver)))
        gradient = jax.grad(loss, (0, 1))(x0, theta)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    return jax.jit(jax.vmap(one, (0, 0, None, None)))


def measure(options: Options) -> list[Row]:
    """A row a scheme, reading, M, kind of coefficients, strength and number of steps; in float64."""
    keys = jax.random.split(jax.random.key(0), options.seeds)
    x0 = jax.vmap(lambda key: jax.random.normal(key, (options.batch, NET.size), jnp.float64))(keys)
    rows = []
    for scheme, reading, n_basis in told(
        [(*how, m) for m in options.n_basis for how in READINGS],
        lambda of: f"{of[0]}, weights read by {of[1]}, M = {of[2]}",
    ):
        steps_own, adjoint = (gradient_of(scheme, reading, n_basis, m) for m in (Checkpointed(), Backsolve()))
        for kind in KINDS:
            draw = lambda key, kind=kind, m=n_basis: coefficients(key, kind, m, options.gain)
            theta = jax.vmap(draw)(keys)
            for strength in options.strengths:
                for ratio in options.per_interval:
                    arguments = (x0, theta, strength * n_basis, jnp.int32(ratio * n_basis))
                    of_steps, of_adjoint = (np.asarray(program(*arguments)) for program in (steps_own, adjoint))
                    apart = np.linalg.norm(of_adjoint - of_steps, axis=1) / np.linalg.norm(of_steps, axis=1)
                    rows.append(
                        {
                            "scheme": scheme,
                            "reading": reading,
                            "n_basis": n_basis,
                            "kind": kind,
                            "strength": strength,
                            "per_interval": ratio,
                            "error": float(np.median(apart)),
                            "errors": apart.tolist(),
                        }
                    )
    return rows


def fewest(rows: Sequence[Row], within: float) -> int | None:
    """The fewest steps an interval from which on the error stays within a bound; `None` where it never does."""
    found = None
    for row in sorted(rows, key=lambda row: row["per_interval"], reverse=True):
        if not row["error"] <= within:
            break
        found = row["per_interval"]
    return found


def needed(rows: Sequence[Row]) -> list[Row]:
    """The fewest steps an interval, a row a scheme, reading, strength, kind and M."""
    names = ("scheme", "reading", "strength", "kind", "n_basis")
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True)) | {f"{100 * bound:g} %": fewest(of, bound) for bound in WITHIN}
        for key, of in found.items()
    ]


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def print_table(record: dict[str, Any], console: Console) -> None:
    """Steps an interval that the adjoint needs, of every M in one cell."""
    largest = max(record["settings"]["per_interval"])
    counts = record["settings"]["n_basis"]
    title = f"N_t / M that Backsolve needs, for M = {', '.join(map(str, counts))}"
    table = Table(title=title, title_justify="left")
    for column in ("scheme", "weights by", "coefficients"):
        table.add_column(column)
    for column in ("eps / M", *(f"within {100 * bound:g} %" for bound in WITHIN)):
        table.add_column(column, justify="right")
    keys = ("scheme", "reading", "kind", "strength")
    said = lambda value: f">{largest}" if value is None else str(value)
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in record["needed"]):
        of = [row for row in record["needed"] if tuple(row[name] for name in keys) == key]
        cells = [", ".join(said(row[f"{100 * bound:g} %"]) for row in of) for bound in WITHIN]
        table.add_row(*key[:3], f"{key[3]:g}", *cells)
    show(table, console)


def draw(record: dict[str, Any]) -> Figure:
    """Errors against N_t / M: a panel a scheme and reading (across) and a strength (down)."""
    from matplotlib.figure import Figure

    rows, strengths = record["rows"], record["settings"]["strengths"]
    titles = {"own": "a step reads its own interval", "clock": "weights by floor(M t)"}
    figure = Figure(figsize=(11, 0.9 + 2.7 * len(strengths)), layout="constrained")
    panels = figure.subplots(len(strengths), len(READINGS), sharex=True, sharey=True, squeeze=False)
    for down, strength in zip(panels, strengths, strict=True):
        for axes, (scheme, reading) in zip(down, READINGS, strict=True):
            for k, n_basis in enumerate(record["settings"]["n_basis"]):
                for kind, style in zip(KINDS, ("-", "--"), strict=True):
                    wanted = (scheme, reading, strength, n_basis, kind)
                    names = ("scheme", "reading", "strength", "n_basis", "kind")
                    of = [row for row in rows if tuple(row[name] for name in names) == wanted]
                    label = f"M = {n_basis}, {kind}"
                    points = ([row["per_interval"] for row in of], [row["error"] for row in of])
                    axes.loglog(*points, color=f"C{k}", ls=style, marker="o", ms=3, lw=1.2, label=label)
            axes.axvline(3, color="0.4", lw=0.9, ls=":")
            axes.set_xscale("log", base=2)
            axes.set_title(f"{scheme}, eps / M = {strength:g}: {titles[reading]}", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        down[0].set_ylabel("Backsolve against Checkpointed")
    for axes in panels[-1]:
        axes.set_xlabel("steps an interval, $N_t$ / M (dotted: 3)")
        plain_ticks(axes.xaxis)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    return figure


def run(options: Options) -> dict[str, Any]:
    """The record."""
    with jax.enable_x64(True):
        rows = measure(options)
    settings = dataclasses.asdict(options) | {"out": None if options.out is None else str(options.out)}
    return {"settings": settings, "environment": environment(), "needed": needed(rows), "rows": rows}


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.continuous_net.adjoint_steps", __doc__)
        out = destination("adjoint_steps", options.out, options.record)
    except ValueError as error:
        sys.exit(f"error: {error}")
    record = run(options)
    print_table(record, console)
    write_json(out / "adjoint_steps.json", record)
    draw(record).savefig(out / "adjoint_steps.png", dpi=120)
    print(f"written: {out}/adjoint_steps.json, adjoint_steps.png")


if __name__ == "__main__":
    main()
