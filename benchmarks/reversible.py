"""Gradients without stored states beside those with them: memory and time of many steps.

    python -m benchmarks.reversible                      both fields
    python -m benchmarks.reversible --cases mlp --repeats 3

Value and gradient of sum(x(1)^2) with respect to x0 and theta, float32, equal steps of the coupled midpoint scheme:
`Reversible()` undoes them, `ACA()`, `ACA(None)` and `Checkpointed()` keep states of them. Below, the same of the
midpoint scheme itself, which takes half the evaluations and cannot be undone, ours and diffrax's
`RecursiveCheckpointAdjoint`.

Each program is recorded with seconds a call, temporary bytes of the compiled program (`memory_analysis()`), and the
largest difference of its gradient from that of `Checkpointed()` on the same scheme, over its largest entry. That of
`Reversible()` is the rounding of the states that come back: coupling^-n_steps times that of one.
Writes benchmarks/results/reversible_<platform>.json and, beside it, the picture of memory against seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.gradients import make_case
from benchmarks.torch_peers import Case
from experiments.aca.gradient_costs import flat
from experiments.records.command import command_line
from experiments.records.pictures import plain_ticks
from ode_nets import ACA, Checkpointed, Coupled, FixedStep, Reversible, solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = Callable[[Any, Any], Any]
COUPLED, PLAIN = "coupled midpoint", "midpoint"
REFERENCE = "Checkpointed()"
PEER = "diffrax RecursiveCheckpointAdjoint"
MARKERS = {"Reversible()": "D", "ACA()": "o", "ACA(None)": "s", REFERENCE: "x", PEER: "^"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    cases: tuple[Case, ...] = ("node18", "mlp")
    """node18: 16 channels, 16x16, batch 16, 100 steps. mlp: 16 units, batch 64, 10,000 steps."""
    channels: int = 16
    """Units or channels; the batch of mlp is four times as many."""
    node18_steps: int = 100
    """Steps of the node18 field."""
    mlp_steps: int = 10_000
    """Steps of the mlp field."""
    coupling: float = 0.999
    """lambda of the coupled scheme."""
    repeats: int = 5
    """Samples of each program."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/reversible_<platform>.json."""


# ---------------------------------------------------------------------------------------------------------
# Programs under test: (x, theta) -> (loss, gradients)
# ---------------------------------------------------------------------------------------------------------


def ours(field: Any, scheme: Any, n_steps: int, gradient: Any) -> Function:
    """This library under one gradient method."""

    def loss(x: jax.Array, theta: Any) -> jax.Array:
        return jnp.sum(solve(field, x, theta, solver=FixedStep(scheme, n_steps), gradient=gradient).x ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1))


def diffraxs(field: Any, n_steps: int) -> Function:
    """diffrax with its default adjoint and its default number of checkpoints."""

    def loss(x: jax.Array, theta: Any) -> jax.Array:
        s = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Midpoint(), 0.0, 1.0, None, x, theta,
            stepsize_controller=diffrax.StepTo(jnp.linspace(0.0, 1.0, n_steps + 1)),
            adjoint=diffrax.RecursiveCheckpointAdjoint(), max_steps=n_steps, throw=False,
        )  # fmt: skip
        return jnp.sum(s.ys**2)

    return jax.value_and_grad(loss, argnums=(0, 1))


def programs(field: Any, n_steps: int, coupling: float) -> dict[str, dict[str, Function]]:
    """All of them, by scheme."""
    methods = {"ACA()": ACA(), "ACA(None)": ACA(None), REFERENCE: Checkpointed()}
    coupled = Coupled("midpoint", coupling)
    return {
        COUPLED: {
            name: ours(field, coupled, n_steps, method)
            for name, method in ({"Reversible()": Reversible()} | methods).items()
        },
        PLAIN: {name: ours(field, "midpoint", n_steps, method) for name, method in methods.items()}
        | {PEER: diffraxs(field, n_steps)},
    }


# ---------------------------------------------------------------------------------------------------------
# One comparison
# ---------------------------------------------------------------------------------------------------------


def compare(case: Case, options: Options) -> dict[str, Any]:
    """All methods on one field: a JSON record."""
    field, x, theta = make_case(case, options.channels)
    n_steps = options.node18_steps if case == "node18" else options.mlp_steps
    by_scheme = programs(field, n_steps, options.coupling)
    every = {f"{name}, {scheme}": run for scheme, runs in by_scheme.items() for name, run in runs.items()}
    taken = harness.compare(every, x, theta, repeats=options.repeats)
    records = {}
    for scheme, runs in by_scheme.items():
        expected = flat(taken[f"{REFERENCE}, {scheme}"].output[1])
        for name in runs:
            measured = taken[f"{name}, {scheme}"]
            off = float(np.abs(flat(measured.output[1]) - expected).max() / np.abs(expected).max())
            records[f"{name}, {scheme}"] = measured.record() | {"scheme": scheme, "difference": off}
    state = x.size * x.dtype.itemsize
    return {"case": case, "n_steps": n_steps, "state_bytes": state, "coupling": options.coupling, "programs": records}


def print_record(record: dict[str, Any]) -> None:
    """One comparison as a table."""
    rows = [
        (name, m["median"], m["compile"], m["temporary_bytes"] / 2**20, f"{m['difference']:.1e}")
        for name, m in record["programs"].items()
    ]
    title = f"{record['case']}, {record['n_steps']} steps, a state of {record['state_bytes'] / 2**20:.3g} MiB"
    harness.show(title, ("program", "median s", "compile s", "MiB", "difference"), rows)


def draw(records: list[dict[str, Any]]) -> Figure:
    """Memory against seconds, a panel a field and a color a scheme."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(records), 4), layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    colors = {COUPLED: "C0", PLAIN: "C1"}
    for axes, record in zip(panels, records, strict=True):
        for name, m in record["programs"].items():
            # Hollow, since two that store the same lie upon each other.
            method = name.rsplit(", ", 1)[0]
            style = {"marker": MARKERS[method], "color": colors[m["scheme"]], "mfc": "none", "ms": 8, "ls": ""}
            axes.plot(m["median"], m["temporary_bytes"] / 2**20, **style, label=f"{method}, {m['scheme']}")
        axes.set(xscale="log", yscale="log", xlabel="seconds", title=f"{record['case']}, {record['n_steps']:,} steps")
        axes.margins(0.15)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            plain_ticks(axis)
    panels[0].set_ylabel("temporary memory [MiB]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def main(options: Options) -> None:
    """Measure, print, and write the record and the picture."""
    records = []
    for case in options.cases:
        records.append(compare(case, options))
        print_record(records[-1])
        path = harness.write(options.out or harness.default_path("reversible"), "reversible", records)
        draw(records).savefig(path.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.reversible", __doc__))
