"""Gradient methods side by side: ours, diffrax, jax.experimental.ode, torchdiffeq and TorchDiffEqPack.

    python -m benchmarks.gradients                       both fields, all peers that are installed
    python -m benchmarks.gradients --cases mlp --repeats 5

Value and gradient of sum(x(1)^2) with respect to x0 and theta, float32, same field and weights, same tolerances
and a first step of 1.0, which forces rejections. TorchDiffEqPack's is 0.999: it takes a step that reaches the end
without looking at its error. diffrax takes our convolution ("plain lax" marks the one variant that does not).

What a tolerance comes to differs from program to program, so each is recorded with its accepted steps and its
error: |gradient - truth| / |truth|, or that of the end state where no gradient is taken; the truth is a solve in
float64 at --truth-tolerance. Times compare programs of like error; the table marks those that are far off, or
whose gradient is not finite because a backward solve ran out of steps.

nfe counts field evaluations of the forward pass. The floor of ACA is nfe * t_f + stages * n_accepted * t_v, with
t_f one jitted field evaluation and t_v one evaluation with its vector-Jacobian product; the ratio is the median of
those of the single turns.
Writes benchmarks/results/gradients_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.ode import odeint

from benchmarks import harness, torch_peers
from benchmarks.torch_peers import Case
from experiments.aca.gradient_costs import distance, flat, true_solution
from experiments.records.command import command_line
from ode_nets.fields import MLP, ResidualUnit
from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, solve
from ode_nets.integrate import Adaptive

Function = Callable[[Any, Any], Any]
Truth = tuple[np.ndarray, np.ndarray]
DIFFRAX_SOLVERS = {"heun_euler": diffrax.Heun, "dopri5": diffrax.Dopri5}
FAR_OFF = 10.0
"""Times the error of `ACA()` from which on a program is no peer of it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    cases: tuple[Case, ...] = ("mlp", "node18")
    """mlp: 64 units, batch 256. node18: 64 channels, 16x16, batch 16."""
    channels: int = 64
    """Units or channels; the batch of mlp is four times as many."""
    schemes: tuple[Literal["heun_euler", "dopri5"], ...] = ("heun_euler", "dopri5")
    """Embedded pairs."""
    tolerances: tuple[float, ...] = (1e-2, 1e-5)
    """rtol = atol."""
    repeats: int = 5
    """Samples of each program."""
    max_steps: int = 1024
    """Bound on trials; buffers of methods without bounded memory have this length."""
    slow_peers: bool = True
    """Measure also what takes many seconds a call, of node18 at the largest tolerance alone."""
    truth_tolerance: float = 1e-8
    """rtol and atol of the solve in float64 that errors are taken against."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/gradients_<platform>.json."""


# ---------------------------------------------------------------------------------------------------------
# The two fields
# ---------------------------------------------------------------------------------------------------------


def make_case(case: Case, channels: int = 64) -> tuple[Any, jax.Array, Any]:
    """The field `f(t, x, theta)`, a state and a theta."""
    key_x, key_theta = jax.random.split(jax.random.key(0))
    if case == "mlp":
        mlp = MLP(channels, (channels,))
        return mlp, jax.random.normal(key_x, (4 * channels, channels)), mlp.init(key_theta)
    unit = ResidualUnit(channels, order="conv-bn-relu", skip_init=False, bias=False)
    field = lambda t, x, theta: unit.apply(theta, x, t)[0]
    return field, jax.random.normal(key_x, (16, 16, 16, channels)), unit.init(key_theta)


def find_truth(case: Case, options: Options) -> Truth:
    """End state and gradient of a case."""
    field, x, theta = make_case(case, options.channels)
    return true_solution(field, x, theta, lambda x: jnp.sum(x**2), options.truth_tolerance)


def plain_convolutions(t: Any, x: jax.Array, theta: Any) -> jax.Array:
    """The node18 field on `lax.conv_general_dilated`, as a diffrax user would write it."""
    for i in (1, 2):
        kernel, bn = theta[f"conv{i}"]["kernel"], theta[f"bn{i}"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * bn["scale"] + bn["bias"])
    return x


# ---------------------------------------------------------------------------------------------------------
# Programs under test: (x, theta) -> ((loss, counts), gradients)
# ---------------------------------------------------------------------------------------------------------


def ours(field: Any, solver: Adaptive, gradient: Any) -> Function:
    """This library under one gradient method."""

    def loss(x: jax.Array, theta: Any) -> Any:
        s = solve(field, x, theta, solver=solver, gradient=gradient)
        return jnp.sum(s.x**2), {"nfe": s.nfe, "n_accepted": s.n_accepted, "n_rejected": s.n_rejected}

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def diffraxs(field: Any, scheme: str, tol: float, max_steps: int, adjoint: Any) -> Function:
    """diffrax under one adjoint."""
    controller = diffrax.PIDController(rtol=tol, atol=tol)

    def loss(x: jax.Array, theta: Any) -> Any:
        s = diffrax.diffeqsolve(
            diffrax.ODETerm(field), DIFFRAX_SOLVERS[scheme](), 0.0, 1.0, 1.0, x, theta,
            stepsize_controller=controller, adjoint=adjoint, max_steps=max_steps, throw=False,
        )  # fmt: skip
        counts = {"n_accepted": s.stats["num_accepted_steps"], "n_rejected": s.stats["num_rejected_steps"]}
        return jnp.sum(s.ys**2), counts

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def jax_odeint(field: Any, tol: float) -> Function:
    """JAX's own Dormand-Prince solver with its continuous adjoint."""

    def loss(x: jax.Array, theta: Any) -> Any:
        ts = jnp.array([0.0, 1.0])
        y = odeint(lambda y, t, theta: field(t, y, theta), x, ts, theta, rtol=tol, atol=tol)
        return jnp.sum(y[-1] ** 2), {}

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


# ---------------------------------------------------------------------------------------------------------
# One comparison
# ---------------------------------------------------------------------------------------------------------


def describe(name: str, output: Any, truth: Truth) -> dict[str, Any]:
    """Counts and error of one of our own or diffrax's programs, from what it returned."""
    if name in ("t_f", "t_v"):
        return {}
    if name == "forward":
        return {"state_error": distance(flat(output), truth[0])}
    (_, counts), gradient = jax.device_get(output)
    error = distance(flat(gradient), truth[1])
    counted = {key: int(count) for key, count in counts.items()}
    return counted | {"gradient_error": error if np.isfinite(error) else None}


def measure_torch(
    case: Case, scheme: str, tol: float, slow: bool, repeats: int, x: jax.Array, theta: Any, truth: Truth
) -> dict[str, dict[str, Any]]:
    """The PyTorch programs that are installed; the one that takes minutes only if `slow`."""
    records = {}
    for name, run in torch_peers.torch_programs(case, scheme, tol, x, theta).items():
        if name == "torchdiffeq odeint_adjoint" and not slow:
            continue
        m = harness.measure(run, repeats=repeats, compiled=False)
        ran: torch_peers.Ran = m.output
        errors = {"state_error": distance(flat(torch_peers.state_of(case, ran)), truth[0])}
        if ran.theta_bar:
            errors["gradient_error"] = distance(flat(torch_peers.gradient_of(case, ran)), truth[1])
        records[name] = m.record() | ran.counts | errors
    return records


def compare(case: Case, scheme: str, tol: float, options: Options, truth: Truth) -> dict[str, Any]:
    """All methods on one field, scheme and tolerance: a JSON record."""
    field, x, theta = make_case(case, options.channels)
    n = options.max_steps
    solver = Adaptive(scheme, tol, tol, first_step=1.0, max_steps=n)
    fast: dict[str, Function] = {
        "ACA()": ours(field, solver, ACA()),
        "ACA(4)": ours(field, solver, ACA(4)),
        "ACA(None)": ours(field, solver, ACA(None)),
        "diffrax RecursiveCheckpointAdjoint": diffraxs(field, scheme, tol, n, diffrax.RecursiveCheckpointAdjoint()),
        "t_f": lambda x, theta: field(0.0, x, theta),
        "t_v": lambda x, theta: jax.vjp(lambda x, theta: field(0.0, x, theta), x, theta)[1](x),
        "forward": lambda x, theta: solve(field, x, theta, solver=solver, gradient=Direct()).x,
    }
    if scheme == "dopri5":
        fast["jax.experimental.ode.odeint"] = jax_odeint(field, tol)
    slow: dict[str, Function] = {}
    # At small tolerances their time grows from seconds to minutes and their place does not change.
    takes_slow = options.slow_peers and (case == "mlp" or tol == max(options.tolerances))
    if takes_slow:
        # Their memory or time grows with the bound on trials, so they get the smallest that suffices.
        short = dataclasses.replace(solver, max_steps=64)
        slow = {
            "Backsolve()": ours(field, solver, Backsolve()),
            "diffrax BacksolveAdjoint": diffraxs(field, scheme, tol, n, diffrax.BacksolveAdjoint()),
            "Direct(), max_steps=64": ours(field, short, Direct()),
            "Checkpointed(), max_steps=64": ours(field, short, Checkpointed()),
            "diffrax DirectAdjoint, max_steps=64": diffraxs(field, scheme, tol, 64, diffrax.DirectAdjoint()),
        }
        if case == "node18":
            adjoint = diffrax.RecursiveCheckpointAdjoint()
            slow["diffrax RecursiveCheckpointAdjoint, plain lax"] = diffraxs(
                plain_convolutions, scheme, tol, n, adjoint
            )

    def recorded(taken: dict[str, harness.Measurement]) -> dict[str, dict[str, Any]]:
        return {name: m.record() | describe(name, m.output, truth) for name, m in taken.items()}

    # Samples long enough that those of t_f and t_v, some milliseconds a call, are as steady as those of ACA.
    taken = harness.compare(fast, x, theta, repeats=options.repeats, min_seconds=0.2)
    results = recorded(taken)
    aca = results["ACA()"]
    if aca["n_accepted"] + aca["n_rejected"] > 60:
        slow = {name: f for name, f in slow.items() if "max_steps" not in name}
    if slow:
        results |= recorded(harness.compare(slow, x, theta, repeats=min(2, options.repeats)))
    results |= measure_torch(case, scheme, tol, takes_slow, options.repeats, x, theta, truth)
    n_vjp = solver.scheme.n_evaluations * aca["n_accepted"]
    # Turn by turn, so that the machine's load at the time is in both.
    ratios = [
        whole / (aca["nfe"] * t_f + n_vjp * t_v)
        for whole, t_f, t_v in zip(*(taken[name].samples for name in ("ACA()", "t_f", "t_v")), strict=True)
    ]
    floor = {"floor_ratio": statistics.median(ratios), "floor_ratios": ratios}
    return {"case": case, "scheme": scheme, "tolerance": tol} | floor | {"programs": results}


def print_record(record: dict[str, Any]) -> None:
    """One comparison as a table, times relative to `ACA()`."""
    programs = record["programs"]
    reference = programs["ACA()"]
    errors = {"gradient_error": reference["gradient_error"], "state_error": programs["forward"]["state_error"]}
    rows = []
    for name, m in programs.items():
        compile_seconds = None if m["compile"] is None else m["lower"] + m["compile"]
        memory = None if m["temporary_bytes"] is None else m["temporary_bytes"] / 2**20
        kind = next((kind for kind in errors if kind in m), None)
        error = ""
        if kind is not None:
            far = m[kind] is None or m[kind] > FAR_OFF * errors[kind]
            error = ("not finite" if m[kind] is None else f"{m[kind]:.1e}") + ("!" if far else " ")
        rows.append(
            (name, m["minimum"] * 1e3, m["median"] * 1e3, m["minimum"] / reference["minimum"],
             "" if compile_seconds is None else compile_seconds, "" if memory is None else memory,
             m.get("nfe", ""), m.get("n_accepted", ""), error)
        )  # fmt: skip
    title = f"{record['case']}, {record['scheme']}, tolerance {record['tolerance']:g}"
    columns = ("program", "min ms", "median", "/ ACA()", "compile s", "MiB", "nfe", "steps", "error ")
    harness.show(title, columns, rows)
    print(f"error: of the gradient, or of the end state where none is taken; !: {FAR_OFF:g} times ACA()'s or forward's")
    print(f"ACA() takes {record['floor_ratio']:.3f} of the floor nfe * t_f + stages * n_accepted * t_v")


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    records = []
    for case in options.cases:
        truth = find_truth(case, options)
        for scheme in options.schemes:
            for tol in options.tolerances:
                records.append(compare(case, scheme, tol, options, truth))
                print_record(records[-1])
                harness.write(options.out or harness.default_path("gradients"), "gradients", records)


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.gradients", __doc__))
