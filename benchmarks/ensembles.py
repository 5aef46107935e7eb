"""Ensembles: Lorenz trajectories under `vmap`, ours against diffrax, gradsolve and jax.experimental.ode.

    python -m benchmarks.ensembles
    python -m benchmarks.ensembles --lanes 128 --rtols 1e-6 --samples 5 --checkpoints None 64 --out /tmp/ensembles.json

sigma = 10, beta = 8/3, x(0) = (1, 0, 0), rho = linspace(0, 21, lanes), t in [0, 1], Tsit5, atol = rtol / 1000,
float64, written as a user would:

- forward: the loss sum(x(1)^2) of each lane, jit(vmap(loss))
- gradient: loss and derivative with respect to rho, jit(vmap(value_and_grad(loss)))
- ts: the same of the loss summed over 50 times; ours interpolates them as diffrax does, and lands on them where it
  says "clip"

diffrax runs with the number of checkpoints that is fastest at --tuning-lanes, found apart for each rtol and mode.
gradsolve's replay repeats a sequence of steps recorded at the same rho; recording it, on the host and outside of jit,
is timed apart. odeint is Dormand and Prince's pair with the continuous adjoint, whose way back from t = 1 loses the
trajectory: without ts its gradients are far off.

All programs of one number of lanes and one tolerance take turns, whatever their mode. Programs for which --samples
calls take more than --budget-seconds give fewer samples, never less than three. Each is recorded with its
differences from a tight solve, on 128 of the lanes at most: the largest over the lanes, relative to the largest
value or derivative. Ratios are of medians and stand beside their targets; nothing is asserted.

The first command takes more than half an hour on two cores, the second two to three minutes.
Writes benchmarks/results/ensembles_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.ode import odeint

from benchmarks import harness
from experiments.records.command import command_line
from ode_nets import ACA, Adaptive, GradientMethod, solve

Mode = Literal["forward", "gradient", "ts"]
Loss = Callable[[jax.Array], jax.Array]
Program = Callable[[jax.Array], Any]
X0 = (1.0, 0.0, 0.0)
TIMES: Mapping[Mode, np.ndarray | None] = {"forward": None, "gradient": None, "ts": np.linspace(0.02, 1.0, 50)}
"""What each mode asks for; None is the end."""
FEWEST_SAMPLES = 3
CHECKED_LANES = 128
BOUNDS: Mapping[str, Any] = {"rtol": 1e-6, "lanes": 2048, "modes": ("forward", "gradient"), "max_steps": (256, 65536)}
"""Where the bound on trials is varied: at this tolerance, up to so many lanes, in these modes, to these numbers."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    lanes: tuple[int, ...] = (1, 128, 2048, 16384)
    """Trajectories side by side."""
    rtols: tuple[float, ...] = (1e-3, 1e-6, 1e-8)
    """Relative tolerances; the absolute ones are a thousandth."""
    modes: tuple[Mode, ...] = ("forward", "gradient", "ts")
    """What is computed."""
    samples: int = 15
    """Samples of each program, three at least."""
    budget_seconds: float = 10.0
    """Of each program, from which on it gives fewer samples."""
    checkpoints: tuple[int | None, ...] = (None, 16, 64, 256)
    """Of diffrax's adjoint, the fastest of which is compared; None leaves it to diffrax."""
    tuning_lanes: int = 128
    """Where the fastest is found."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/ensembles_<platform>.json."""


# ---------------------------------------------------------------------------------------------------------
# The losses of one lane, and programs of them
# ---------------------------------------------------------------------------------------------------------


def lorenz(t: Any, x: jax.Array, rho: jax.Array) -> jax.Array:
    """The field."""
    return jnp.stack([10.0 * (x[1] - x[0]), rho * x[0] - x[1] - x[0] * x[2], x[0] * x[1] - 8.0 / 3.0 * x[2]])


def rhos(lanes: int) -> jax.Array:
    """The parameter of each lane."""
    return jnp.linspace(0.0, 21.0, lanes)


def ours(rtol: float, ts: np.ndarray | None, gradient: GradientMethod | None = None, **settings: Any) -> Loss:
    """This library, with further settings of its solver."""
    solver = Adaptive("tsit5", rtol, 1e-3 * rtol, **settings)

    def loss(rho: jax.Array) -> jax.Array:
        return jnp.sum(solve(lorenz, jnp.array(X0), rho, solver=solver, gradient=gradient or ACA(), ts=ts).x ** 2)

    return loss


def diffraxs(
    rtol: float, ts: np.ndarray | None, checkpoints: int | None = None, scheme: Any = None, max_steps: int = 4096
) -> Loss:
    """diffrax with its checkpointed adjoint; like ours, it does not raise where a solve fails."""
    controller = diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol)
    adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints=checkpoints)

    def loss(rho: jax.Array) -> jax.Array:
        saveat = diffrax.SaveAt(t1=True) if ts is None else diffrax.SaveAt(ts=jnp.asarray(ts))
        s = diffrax.diffeqsolve(
            diffrax.ODETerm(lorenz), scheme or diffrax.Tsit5(), 0.0, 1.0, None, jnp.array(X0), rho, saveat=saveat,
            stepsize_controller=controller, adjoint=adjoint, max_steps=max_steps, throw=False,
        )  # fmt: skip
        return jnp.sum(s.ys**2)

    return loss


def jax_odeint(rtol: float, ts: np.ndarray | None) -> Loss:
    """JAX's own solver."""
    field = lambda x, t, rho: lorenz(t, x, rho)

    def loss(rho: jax.Array) -> jax.Array:
        times = jnp.array([0.0, 1.0] if ts is None else [0.0, *ts])
        return jnp.sum(odeint(field, jnp.array(X0), times, rho, rtol=rtol, atol=1e-3 * rtol)[1:] ** 2)

    return loss


def mapped(mode: Mode, loss: Loss) -> Program:
    """All lanes."""
    return jax.vmap(loss if mode == "forward" else jax.value_and_grad(loss))


class GradsolveLorenz:
    """The field as gradsolve takes it; its name is none of those that have a kernel of their own."""

    name, dim, t0, t1, is_stiff = "ensembles_lorenz", 3, 0.0, 1.0, False

    def f_jax(self, t: Any, y: jax.Array, p: jax.Array) -> jax.Array:
        return lorenz(t, y, p[0])


def gradsolves(modes: tuple[Mode, ...], rho: jax.Array, rtol: float) -> tuple[dict[Mode, Program], dict[str, Any]]:
    """gradsolve's replays by mode, and what recording the steps took, the replays' being recorded at these `rho`."""
    import gradsolve

    # One problem for all recordings: it is by this object that gradsolve knows what it has compiled.
    at = GradsolveLorenz(), np.tile(np.array(X0), (len(rho), 1)), np.asarray(rho)[:, None]
    settings = {"engine": "tsit5_replay", "fused": False, "rtol": rtol, "atol": 1e-3 * rtol}

    def record(ts: np.ndarray | None = None) -> Callable[[jax.Array], jax.Array]:
        return gradsolve.grad_closure(*at, saveat=ts, **settings)

    def program(mode: Mode, replay: Callable[[jax.Array], jax.Array]) -> Program:
        def total(rho: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = jnp.sum(jnp.square(replay(rho[:, None])).reshape(len(rho), -1), axis=1)
            return jnp.sum(losses), losses

        def both(rho: jax.Array) -> tuple[jax.Array, jax.Array]:
            # Lanes do not meet, so that the gradient of the sum holds the derivative of each.
            (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(rho)
            return losses, gradient

        return both if mode != "forward" else lambda rho: total(rho)[1]

    began = time.perf_counter()
    replay = record()
    once = {"first_call": time.perf_counter() - began, "version": gradsolve.__version__}
    recording = harness.measure(record, repeats=FEWEST_SAMPLES, compiled=False).record() | once
    replays = {mode: replay if TIMES[mode] is None else record(TIMES[mode]) for mode in modes}
    return {mode: program(mode, replay) for mode, replay in replays.items()}, recording


# ---------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------


class CompiledOnce:
    """A program that compiles the first time that `harness.compare` asks for it and not again."""

    def __init__(self, program: Program):
        self._jitted, self._lowered, self._compiled = jax.jit(program), None, None

    def lower(self, *args: Any) -> CompiledOnce:
        self._lowered = self._lowered or self._jitted.lower(*args)
        return self

    def compile(self) -> Any:
        self._compiled = self._compiled or self._lowered.compile()
        return self._compiled


def compare(
    programs: Mapping[Any, Program], rho: jax.Array, samples: int, budget: float
) -> dict[Any, harness.Measurement]:
    """Measurements by the same keys; the fast ones go round again, for as many samples as they may have."""
    once: dict[Any, Any] = {key: CompiledOnce(program) for key, program in programs.items()}
    found = harness.compare(once, rho, repeats=FEWEST_SAMPLES)
    counts = {key: min(samples, int(budget / (m.median * m.calls))) for key, m in found.items()}
    again = {key: once[key] for key, count in counts.items() if count > FEWEST_SAMPLES}
    longer = harness.compare(again, rho, repeats=counts) if again else {}
    # What compiling took is known from the first round alone.
    static = ("lower_seconds", "compile_seconds")
    known = {key: {name: getattr(m, name) for name in static} for key, m in found.items()}
    return {key: dataclasses.replace(longer.get(key, m), **known[key]) for key, m in found.items()}


def tune(options: Options, rtol: float) -> dict[Mode, dict[str, Any]]:
    """diffrax's checkpoints that are fastest in each mode, and the medians of all that were tried."""
    tuned: dict[Mode, dict[str, Any]] = {}
    for mode in (mode for mode in options.modes if mode != "forward"):
        tried = {n: mapped(mode, diffraxs(rtol, TIMES[mode], n)) for n in options.checkpoints}
        found = compare(tried, rhos(options.tuning_lanes), options.samples, options.budget_seconds)
        medians = {n: m.median for n, m in found.items()}
        tuned[mode] = {"checkpoints": min(medians, key=lambda n: medians[n]), "medians": medians}
    return tuned


def contestants(mode: Mode, lanes: int, rtol: float, checkpoints: int | None) -> dict[str, Loss]:
    """Losses by the name of who computes them."""
    ts = TIMES[mode]
    losses = {"ours": ours(rtol, ts)}
    if mode == "ts":
        losses["ours, clip"] = ours(rtol, ts, outputs="clip")
    if mode == "gradient":
        losses["ours, ACA(None), max_steps=256"] = ours(rtol, ts, ACA(None), max_steps=256)
    if rtol == BOUNDS["rtol"] and lanes <= BOUNDS["lanes"] and mode in BOUNDS["modes"]:
        losses |= {f"ours, max_steps={n}": ours(rtol, ts, max_steps=n) for n in BOUNDS["max_steps"]}
    return losses | {"diffrax": diffraxs(rtol, ts, checkpoints), "odeint": jax_odeint(rtol, ts)}


def references(modes: tuple[Mode, ...], rho: jax.Array) -> dict[Mode, Any]:
    """What programs should give, from another scheme at a tight tolerance."""
    tight = {mode: diffraxs(1e-10, TIMES[mode], None, diffrax.Dopri8(), 1 << 16) for mode in modes}
    return {mode: jax.jit(mapped(mode, loss))(rho) for mode, loss in tight.items()}


def differences(output: Any, reference: Any, stride: int) -> dict[str, float | None]:
    """Largest difference over every `stride`-th lane by the largest reference; None where it is not finite."""
    found: dict[str, float | None] = {}
    for name, a, b in zip(("value", "gradient"), jax.tree.leaves(output), jax.tree.leaves(reference), strict=False):
        difference = float(jnp.max(jnp.abs(a[::stride] - b)) / jnp.max(jnp.abs(b)))
        found[f"{name}_difference"] = difference if np.isfinite(difference) else None
    return found


def measure_case(options: Options, lanes: int, rtol: float, tuned: Mapping[Mode, Any]) -> dict[str, Any]:
    """All programs of one number of lanes and one tolerance: a JSON record."""
    rho, stride = rhos(lanes), -(-lanes // CHECKED_LANES)
    programs: dict[tuple[Mode, str], Program] = {}
    for mode in options.modes:
        losses = contestants(mode, lanes, rtol, tuned.get(mode, {}).get("checkpoints"))
        programs |= {(mode, name): mapped(mode, loss) for name, loss in losses.items()}
    case: dict[str, Any] = {"lanes": lanes, "rtol": rtol, "left_out": {}}
    if importlib.util.find_spec("gradsolve"):
        replays, case["gradsolve_recording"] = gradsolves(options.modes, rho, rtol)
        programs |= {(mode, "gradsolve replay"): program for mode, program in replays.items()}
    else:
        case["left_out"]["gradsolve replay"] = "gradsolve is not installed"
    taken = compare(programs, rho, options.samples, options.budget_seconds)
    truths = references(options.modes, rho[::stride])
    case["modes"] = {mode: {} for mode in options.modes}
    for (mode, name), m in taken.items():
        case["modes"][mode][name] = m.record() | differences(m.output, truths[mode], stride)
    return case


# ---------------------------------------------------------------------------------------------------------
# Ratios and tables
# ---------------------------------------------------------------------------------------------------------


def ratios_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the case comes to, with the target where there is one."""
    modes, lanes = case["modes"], case["lanes"]
    found: list[dict[str, Any]] = []

    def add(text: str, above: tuple[Mode, str], below: tuple[Mode, str], target: str = "") -> None:
        a, b = (modes.get(mode, {}).get(name) for mode, name in (above, below))
        if a and b:
            ratio = a["median"] / b["median"]
            found.append({"ratio": text, "lanes": lanes, "rtol": case["rtol"], "value": ratio, "target": target})

    faster = {128: "at least 5", 2048: "at least 3"}.get(lanes, "")
    add("forward: diffrax / ours", ("forward", "diffrax"), ("forward", "ours"))
    add("gradient: diffrax / ours", ("gradient", "diffrax"), ("gradient", "ours"), faster)
    add("gradient: gradsolve replay / ours", ("gradient", "gradsolve replay"), ("gradient", "ours"), "at least 1")
    add("ours: gradient / forward", ("gradient", "ours"), ("forward", "ours"), "at most 6")
    for name in ("ours", "ours, clip"):
        for peer in ("diffrax", "gradsolve replay"):
            add(f"ts: {peer} / {name}", ("ts", peer), ("ts", name))
    small, large = (f"ours, max_steps={n}" for n in BOUNDS["max_steps"])
    for mode in BOUNDS["modes"]:
        add(f"{mode}: max_steps 65536 / 256", (mode, large), (mode, small), "at most 1.1")
    return found


def print_case(case: Mapping[str, Any]) -> None:
    """One case as a table, times relative to ours."""
    rows: list[tuple[Any, ...]] = []
    for mode, programs in case["modes"].items():
        for name, m in programs.items():
            errors = ["" if e is None else f"{e:.1e}" for e in (m["value_difference"], m.get("gradient_difference"))]
            memory = "" if m["temporary_bytes"] is None else m["temporary_bytes"] / 2**20
            spent = (m["median"] * 1e3, m["minimum"] * 1e3, m["median"] / programs["ours"]["median"])
            rows.append((f"{mode}: {name}", *spent, m["n_samples"], m["lower"] + m["compile"], memory, *errors))
    columns = ("program", "median ms", "min", "/ ours", "samples", "compile s", "MiB", "value off by", "gradient")
    harness.show(f"{case['lanes']} lanes, rtol {case['rtol']:g}", columns, rows)
    if recording := case.get("gradsolve_recording"):
        print(f"gradsolve records in {recording['median'] * 1e3:.3g} ms, at first in {recording['first_call']:.3g} s")
    for name, reason in case["left_out"].items():
        print(f"{name} is left out: {reason}")


def main() -> None:
    """Measure, print, and write the record after every case."""
    options = command_line(Options, "python -m benchmarks.ensembles", __doc__)
    # Not for a while only: gradsolve switches to float64 wherever it is imported, and the record says what holds.
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    settings = {key: value for key, value in dataclasses.asdict(options).items() if key != "out"}
    results: dict[str, Any] = {"settings": settings, "tuned": {}, "cases": [], "ratios": []}
    for rtol in options.rtols:
        tuned = results["tuned"][f"{rtol:g}"] = tune(options, rtol)
        print(f"rtol {rtol:g}: diffrax's checkpoints are", {mode: t["checkpoints"] for mode, t in tuned.items()})
        for lanes in options.lanes:
            case = measure_case(options, lanes, rtol, tuned)
            print_case(case)
            results["cases"].append(case)
            results["ratios"] += ratios_of(case)
            # KiB on Linux; that of the whole process until then.
            results["ru_maxrss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            results["seconds"] = time.perf_counter() - began
            path = harness.write(options.out or harness.default_path("ensembles"), "ensembles", results)
    rows = [[r["ratio"], r["lanes"], f"{r['rtol']:g}", r["value"], r["target"]] for r in results["ratios"]]
    harness.show("ratios of medians and their targets", ["", "lanes", "rtol", "ratio", "target"], sorted(rows))
    print(f"the process took {results['ru_maxrss'] / 2**10:.0f} MiB at its peak; written to {path}")


if __name__ == "__main__":
    main()
