"""Gradient methods side by side: ours, diffrax, jax.experimental.ode, torchdiffeq and TorchDiffEqPack.

    python -m benchmarks.gradients                       both fields, all peers that are installed
    python -m benchmarks.gradients --cases mlp --repeats 5

Value and gradient of sum(x(1)^2) with respect to x0 and theta, float32, same field, same tolerances and a
first step of 1.0, which forces rejections. diffrax takes our convolution ("plain lax" marks the one variant
that does not). nfe counts field evaluations of the forward pass. The floor of ACA is
nfe * t_f + stages * n_accepted * t_v, with t_f one jitted field evaluation and t_v one evaluation with its
vector-Jacobian product.
Writes benchmarks/results/gradients_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import tyro
from jax.experimental.ode import odeint

from benchmarks import harness
from ode_nets.fields import MLP, ResidualUnit
from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, solve
from ode_nets.integrate import Adaptive
from ode_nets.stepping import n_propagating

Case = Literal["mlp", "node18"]
Function = Callable[[Any, Any], Any]
DIFFRAX_SOLVERS = {"heun_euler": diffrax.Heun, "dopri5": diffrax.Dopri5}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    cases: tuple[Case, ...] = ("mlp", "node18")
    """mlp: 64 units, batch 256. node18: 64 channels, 16x16, batch 16."""
    schemes: tuple[Literal["heun_euler", "dopri5"], ...] = ("heun_euler", "dopri5")
    """Embedded pairs."""
    tolerances: tuple[float, ...] = (1e-2, 1e-5)
    """rtol = atol."""
    repeats: int = 5
    """Samples of each program."""
    max_steps: int = 1024
    """Bound on trials; buffers of methods without bounded memory have this length."""
    slow_peers: bool = True
    """Measure also what takes many seconds a call."""
    out: Path = Path("benchmarks/results")
    """Folder of the JSON record."""


# ---------------------------------------------------------------------------------------------------------
# The two fields
# ---------------------------------------------------------------------------------------------------------


def make_case(case: Case) -> tuple[Any, jax.Array, Any]:
    """The field `f(t, x, theta)`, a state and a theta."""
    key_x, key_theta = jax.random.split(jax.random.key(0))
    if case == "mlp":
        mlp = MLP(64, (64,))
        return mlp, jax.random.normal(key_x, (256, 64)), mlp.init(key_theta)
    unit = ResidualUnit(64, order="conv-bn-relu", skip_init=False, bias=False)
    field = lambda t, x, theta: unit.apply(theta, x, t)[0]
    return field, jax.random.normal(key_x, (16, 16, 16, 64)), unit.init(key_theta)


def plain_convolutions(t: Any, x: jax.Array, theta: Any) -> jax.Array:
    """The node18 field on `lax.conv_general_dilated`, as a diffrax user would write it."""
    for i in (1, 2):
        kernel, bn = theta[f"conv{i}"]["kernel"], theta[f"bn{i}"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
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
            stepsize_controller=controller, adjoint=adjoint, max_steps=max_steps,
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


def torch_peers(case: Case, scheme: str, tol: float) -> dict[str, Callable[[], dict[str, int]]]:
    """PyTorch programs by name; each runs value and gradient once and returns its counts."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch
    import torchdiffeq
    import TorchDiffEqPack

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn = torch.nn

    class Field(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.nfe = 0
            if case == "mlp":
                self.net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
            else:
                layers = []
                for _ in range(2):
                    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
                    layers += [conv, nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU()]
                self.net = nn.Sequential(*layers)

        def forward(self, t: Any, x: Any) -> Any:
            self.nfe += 1
            return self.net(x)

    torch.manual_seed(0)
    field = Field().to(device)
    shape = (256, 64) if case == "mlp" else (16, 64, 16, 16)
    x0 = torch.randn(*shape, device=device)
    times = torch.tensor([0.0, 1.0], device=device)
    method = {"heun_euler": "adaptive_heun", "dopri5": "dopri5"}[scheme]

    def run(integrate: Callable[[Any], Any]) -> Callable[[], dict[str, int]]:
        def once() -> dict[str, int]:
            field.nfe = 0
            field.zero_grad()
            x = x0.clone().requires_grad_(True)
            y = integrate(x)
            forward = field.nfe
            (y**2).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return {"nfe": forward, "nfe_backward": field.nfe - forward}

        return once

    def library(solver: Callable[..., Any]) -> Callable[[Any], Any]:
        options = {"first_step": 1.0}
        return lambda x: solver(field, x, times, rtol=tol, atol=tol, method=method, options=options)[-1]

    pack = {"method": {"heun_euler": "RK12", "dopri5": "Dopri5"}[scheme], "h": 1.0, "t0": 0.0, "t1": 1.0,
            "rtol": tol, "atol": tol, "print_neval": False, "neval_max": 500000}  # fmt: skip

    def odeint_only() -> dict[str, int]:
        field.nfe = 0
        with torch.no_grad():
            library(torchdiffeq.odeint)(x0)
        return {"nfe": field.nfe}

    return {
        "TorchDiffEqPack ACA": run(lambda x: TorchDiffEqPack.odesolve_adjoint(field, x, options=dict(pack))),
        "torchdiffeq odeint": run(library(torchdiffeq.odeint)),
        "torchdiffeq odeint_adjoint": run(library(torchdiffeq.odeint_adjoint)),
        "torchdiffeq odeint, forward only": odeint_only,
    }


# ---------------------------------------------------------------------------------------------------------
# One comparison
# ---------------------------------------------------------------------------------------------------------


def compare(case: Case, scheme: str, tol: float, options: Options) -> dict[str, Any]:
    """All methods on one field, scheme and tolerance: a JSON record."""
    field, x, theta = make_case(case)
    n = options.max_steps
    solver = Adaptive(scheme, tol, tol, first_step=1.0, max_steps=n)
    fast: dict[str, Function] = {
        "ACA()": ours(field, solver, ACA()),
        "ACA(4)": ours(field, solver, ACA(4)),
        "diffrax RecursiveCheckpointAdjoint": diffraxs(
            field, scheme, tol, n, diffrax.RecursiveCheckpointAdjoint()
        ),
        "diffrax BacksolveAdjoint": diffraxs(field, scheme, tol, n, diffrax.BacksolveAdjoint()),
        "Backsolve()": ours(field, solver, Backsolve()),
        "t_f": lambda x, theta: field(0.0, x, theta),
        "t_v": lambda x, theta: jax.vjp(lambda x, theta: field(0.0, x, theta), x, theta)[1](x),
        "forward": lambda x, theta: solve(field, x, theta, solver=solver, gradient=Direct()).x,
    }
    if scheme == "dopri5":
        fast["jax.experimental.ode.odeint"] = jax_odeint(field, tol)
    slow: dict[str, Function] = {}
    if options.slow_peers:
        # Their memory or time grows with the bound on trials, so they get the smallest that suffices.
        short = dataclasses.replace(solver, max_steps=64)
        slow = {
            "Direct(), max_steps=64": ours(field, short, Direct()),
            "Checkpointed(), max_steps=64": ours(field, short, Checkpointed()),
            "diffrax DirectAdjoint, max_steps=64": diffraxs(field, scheme, tol, 64, diffrax.DirectAdjoint()),
        }
        if case == "node18":
            adjoint = diffrax.RecursiveCheckpointAdjoint()
            slow["diffrax RecursiveCheckpointAdjoint, plain lax"] = diffraxs(
                plain_convolutions, scheme, tol, n, adjoint
            )
    results = {name: m.record() for name, m in harness.compare(fast, x, theta, repeats=options.repeats).items()}
    # Only now, so that nothing of this program is known when its compilation is timed.
    counted = jax.device_get(jax.jit(fast["ACA()"])(x, theta)[0][1])
    if counted["n_accepted"] + counted["n_rejected"] > 60:
        slow = {name: f for name, f in slow.items() if "max_steps" not in name}
    if slow:
        repeats = min(2, options.repeats)
        results |= {name: m.record() for name, m in harness.compare(slow, x, theta, repeats=repeats).items()}
    for name, run in torch_peers(case, scheme, tol).items():
        counts: dict[str, int] = {}
        m = harness.measure(
            lambda run=run, counts=counts: counts.update(run()), repeats=options.repeats, compiled=False
        )
        results[name] = m.record() | counts
    results["ACA()"] |= {name: int(value) for name, value in counted.items()}
    stages = n_propagating(solver.tableau)
    floor = (
        counted["nfe"] * results["t_f"]["minimum"]
        + stages * counted["n_accepted"] * results["t_v"]["minimum"]
    )
    floor_ratio = results["ACA()"]["minimum"] / float(floor)
    return {"case": case, "scheme": scheme, "tolerance": tol, "floor_ratio": floor_ratio, "programs": results}


def print_record(record: dict[str, Any]) -> None:
    """One comparison as a table, times relative to `ACA()`."""
    programs = record["programs"]
    reference = programs["ACA()"]
    rows = []
    for name, m in programs.items():
        compile_seconds = None if m["compile"] is None else m["lower"] + m["compile"]
        memory = None if m["temporary_bytes"] is None else m["temporary_bytes"] / 2**20
        rows.append(
            (name, m["minimum"] * 1e3, m["median"] * 1e3, m["minimum"] / reference["minimum"],
             "" if compile_seconds is None else compile_seconds, "" if memory is None else memory,
             m.get("nfe", ""))
        )  # fmt: skip
    title = f"{record['case']}, {record['scheme']}, tolerance {record['tolerance']:g}"
    harness.show(
        title, ("program", "min ms", "median ms", "/ ACA()", "compile s", "temporary MiB", "nfe"), rows
    )
    print(f"ACA() takes {record['floor_ratio']:.3f} of the floor nfe * t_f + stages * n_accepted * t_v")


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    records = []
    for case in options.cases:
        for scheme in options.schemes:
            for tol in options.tolerances:
                records.append(compare(case, scheme, tol, options))
                print_record(records[-1])
                name = f"gradients_{jax.devices()[0].platform}"
                harness.write(options.out / f"{name}.json", name, records)


if __name__ == "__main__":
    main(tyro.cli(Options))
