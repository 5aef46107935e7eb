"""One-step models of a pendulum: which of them have learned an ODE? (ContinuousNet sec. 3, Figs 3, 4a, 4b)

    python -m experiments.continuous_net.pendulum

A network G with 50 hidden units is fitted to one-step pairs of the exact pendulum, sampled at dt_data = 0.01 over
one period, through one step of Euler, Midpoint or RK4 (eq. 15-17), five seeds each, all seeds in one vmapped
program. Then each is run to T = 1 with other steps (Fig. 4a) and in the other schemes (Fig. 4b), beside the
numerical schemes on the true equation. T, the number of pairs and the optimizer's settings are ours: the paper
names none. Errors are norms, whose slopes are 1, 2, 4 (eq. 18 prints the square). Training is in float32, errors
in float64.

Prints the errors, the fitted slopes, the dips and the verdicts of `ode_nets.validity`, and writes pendulum.json,
trajectories.png (Fig. 3) and convergence.png (Fig. 4) into --out.

73 s on two cores. Slopes 1.009, 1.948 and 3.938. At half of its training
step ODE-Net(Euler) is 170 times worse (94 to 1400 over the seeds), Midpoint 1.1 (0.54 to 1.6), RK4 1.0. In RK4 at
its own step ODE-Net(Euler) is 340 times worse, Midpoint 1.1 (0.9 to 1.8); RK4 in Midpoint 1.1 (0.8 to 3.1). The paper
says that Euler's network is much worse in RK4 at any step. Here its error in RK4 is 0.18 at every step, that of the
equation it has learned: at five dt_data that is better than the 0.74 under Euler, at two dt_data the same. All five
of ODE-Net(Euler) are called tied to their solver, all of the others an ODE; no trajectories cross.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments.continuous_net.pendulum_figures import draw_convergence, draw_trajectories
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import MLP, Direct, FixedStep, pad, solve, validity
from ode_nets.problems import pendulum

PyTree = Any
SCHEMES = ("euler", "midpoint", "rk4")
RATIOS = (20, 16, 12.5, 10, 8, 6.25, 5, 4, 3.125, 2.5, 2, 1.5625, 1.25, 1, 0.8, 0.625, 0.5, 0.4, 0.25, 0.125, 0.0625)
"""Steps dt / dt_data that are measured, to the nearest whole number of steps to T."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train and measure."""

    seeds: int = 5
    """Networks a scheme."""
    dt: float = 0.01
    """dt_data, sampling interval of the training pairs."""
    pairs: int = 307
    """Training pairs, one after the other; 307 cover one period."""
    hidden: int = 50
    """Hidden units of G."""
    iterations: int = 8000
    """Of Adam, on all pairs at once."""
    learning_rate: float = 1e-2
    """At the start; decays to zero by a cosine."""
    t1: float = 1.0
    """T, at which errors are measured."""
    shown: float = 8.0
    """End of the trajectories drawn."""
    out: Path | None = None
    """Folder of the results; default runs/pendulum."""
    record: bool = False
    """Write into results/pendulum, which git keeps, instead."""

    def __post_init__(self) -> None:
        counts, sizes = ("seeds", "pairs", "hidden", "iterations"), ("dt", "learning_rate", "t1", "shown")
        check_settings(
            self,
            *((name, getattr(self, name) >= 1, "at least 1") for name in counts),
            *((name, getattr(self, name) > 0, "a number above 0") for name in sizes),
        )
        for name, multiple in (("t1", 5), ("shown", 1)):
            steps = getattr(self, name) / self.dt
            if abs(steps - multiple * round(steps / multiple)) > 1e-6 * steps:
                raise ValueError(
                    f"dt={self.dt} with {name}={getattr(self, name)}: expected a whole number of steps"
                    + f", a multiple of {multiple}" * (multiple > 1)
                )

    @property
    def trained(self) -> int:
        """Steps of training to T."""
        return round(self.t1 / self.dt)

    def counts(self) -> list[int]:
        """Step counts that are measured, rising; those of training, of half and of five times its step among them."""
        n = self.trained
        return sorted({max(1, round(n / ratio)) for ratio in RATIOS} | {n // 5, n, 2 * n})


# ---------------------------------------------------------------------------------------------------------
# The models
# ---------------------------------------------------------------------------------------------------------


def network(t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
    """G(x) = A tanh(W x + b)                                (ContinuousNet eq. 16)."""
    return jnp.tanh(x @ theta["W"] + theta["b"]) @ theta["A"]


def initial(key: jax.Array, hidden: int) -> PyTree:
    """Weights of G, float32."""
    first, last = MLP(size=2, hidden=(hidden,)).init(key)
    weights = {"W": first["kernel"], "b": first["bias"], "A": last["kernel"]}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)


@partial(jax.jit, static_argnums=(0, 1))
def train(options: Options, scheme: FixedStep, keys: jax.Array) -> tuple[PyTree, jax.Array]:
    """Fit one network a key to one step of a scheme; weights and final losses, with a leading axis of keys."""
    x, y = (states.astype(jnp.float32) for states in pendulum.pairs(options.pairs, options.dt))
    optimizer = optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.iterations))

    def loss_of(theta: PyTree) -> jax.Array:
        step = solve(network, x, theta, solver=scheme, gradient=Direct(), t1=options.dt).x
        return jnp.mean(jnp.sum((step - y) ** 2, axis=-1))  # eq. 17

    def one(key: jax.Array) -> tuple[PyTree, jax.Array]:
        def body(_: int, carry: Any) -> Any:
            theta, state = carry
            updates, state = optimizer.update(jax.grad(loss_of)(theta), state)
            return optax.apply_updates(theta, updates), state

        theta = initial(key, options.hidden)
        theta, _ = jax.lax.fori_loop(0, options.iterations, body, (theta, optimizer.init(theta)))
        return jax.tree.map(jnp.float64, theta), loss_of(theta)

    return jax.vmap(one)(keys)


# ---------------------------------------------------------------------------------------------------------
# Errors at T
# ---------------------------------------------------------------------------------------------------------


def start() -> jax.Array:
    """The initial state, a batch of one."""
    return jnp.array([[pendulum.START, 0.0]])


@jax.jit
def errors_of(thetas: PyTree, solver: Any, t1: jax.Array) -> jax.Array:
    """E(dt) of each network: the distance from the exact state at t1, `[seeds]`; one program for all solvers."""

    def one(theta: PyTree) -> jax.Array:
        end = solve(network, start(), theta, solver=solver, gradient=Direct(), t1=t1)
        return jnp.linalg.norm(end.x[0] - pendulum.solution(t1))

    return jax.vmap(one)(thetas)


def all_errors(options: Options, thetas: dict[str, PyTree], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """By "trained>run", errors `[seeds, n_counts]`."""
    t1 = jnp.float64(options.t1)
    return {
        f"{trained}>{scheme}": np.stack([errors_of(theta, pad(FixedStep(scheme, n), 4), t1) for n in counts], axis=-1)
        for trained, theta in told(thetas.items(), lambda pair: f"errors of ODE-Net({pair[0]})")
        for scheme in SCHEMES
    }


def numerical(options: Options, counts: Sequence[int]) -> validity.Convergence:
    """The schemes on the true equation."""
    subject = validity.of_field(
        pendulum.field, pendulum.GRAVITY, start(), FixedStep("euler", counts[-1]), t1=options.t1
    )
    truth = pendulum.solution(options.t1)[None]
    return validity.convergence(subject.run, SCHEMES, counts, truth=truth, span=options.t1)


def verdicts(options: Options, thetas: dict[str, PyTree], trained: int) -> list[dict[str, Any]]:
    """The report of `validity.examine` on every network, from 16 phases of the orbit it has seen."""
    phases, rows = jnp.arange(16) / 16 * pendulum.period(), []
    x0, truth = pendulum.solution(phases), pendulum.solution(phases + options.t1)
    for scheme, stacked in told(thetas.items(), lambda pair: f"examining ODE-Net({pair[0]})"):
        for seed in range(options.seeds):
            theta = jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked)
            subject = validity.of_field(network, theta, x0, FixedStep(scheme, trained), t1=options.t1)
            report = validity.examine(subject, truth=truth)
            said = {"verdict": report.verdict, "sentence": report.sentence}
            found = report.crossings[0].count if report.crossings else None
            rows.append({"trained": scheme, "seed": seed, "crossings": found} | said)
    return rows


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def summary(errors: dict[str, np.ndarray], counts: Sequence[int], trained: int) -> list[dict[str, Any]]:
    """Error at the training step, and ratios to it of the errors at half of it and in the other schemes.

    Also the ratio of the errors under RK4 and under the scheme of training at five times the step.
    """
    at, half, coarse = (counts.index(n) for n in (trained, 2 * trained, trained // 5))
    rows = []
    for scheme in SCHEMES:
        own = errors[f"{scheme}>{scheme}"]
        swaps = {other: errors[f"{scheme}>{other}"][:, at] / own[:, at] for other in SCHEMES if other != scheme}
        rows.append(
            {
                "trained": scheme,
                "error": own[:, at].tolist(),
                "at_half": (own[:, half] / own[:, at]).tolist(),
                "rk4_at_5_steps": (errors[f"{scheme}>rk4"][:, coarse] / own[:, coarse]).tolist(),
                "swapped_at_own_step": {other: ratio.tolist() for other, ratio in swaps.items()},
            }
        )
    return rows


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.2g} ({min(values):.2g}-{max(values):.2g})"


def print_tables(record: dict[str, Any], console: Console) -> None:
    """Slopes, dips, substitutions and verdicts."""
    table = Table(title="numerical schemes: fitted slopes of E(dt)", title_justify="left")
    for column in ("scheme", "slope", "from dt", "to dt"):
        table.add_column(column, justify="right")
    for scheme, slope in record["slopes"].items():
        table.add_row(scheme, f"{slope['order']:.3f}", f"{slope['from']:.4g}", f"{slope['to']:.4g}")
    show(table, console)
    title = f"ODE-Nets: E(dt_data), and ratios to it; median (range) of {record['settings']['seeds']} seeds"
    table = Table(title=title, title_justify="left")
    for column in ("trained with", "E(dt_data)", "at dt_data / 2", *(f"in {scheme}" for scheme in SCHEMES)):
        table.add_column(column, justify="left" if column == "trained with" else "right")
    table.add_column("RK4's at 5 dt_data, to own", justify="right")
    for row in record["summary"]:
        swaps = row["swapped_at_own_step"]
        cells = [spread(swaps[scheme]) if scheme in swaps else "" for scheme in SCHEMES]
        coarse = spread(row["rk4_at_5_steps"])
        table.add_row(row["trained"], spread(row["error"]), spread(row["at_half"]), *cells, coarse)
    show(table, console)
    for row in record["verdicts"]:
        if row["seed"] == 0:
            crossed = f"; {row['crossings']} crossings among 16 phases"
            console.print(f"ODE-Net({row['trained']}), seed 0: {row['sentence']}{crossed}", soft_wrap=True)
    for scheme in SCHEMES:
        kinds = [row["verdict"] for row in record["verdicts"] if row["trained"] == scheme]
        console.print(f"ODE-Net({scheme}): " + ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds)))


def curves(options: Options, thetas: dict[str, PyTree]) -> dict[float, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Times and states of seed 0 at dt_data and at half of it, for Fig. 3."""
    found = {}
    first = {scheme: jax.tree.map(lambda leaf: leaf[0], stacked) for scheme, stacked in thetas.items()}
    for factor in (1, 2):
        n = factor * round(options.shown / options.dt)
        t = np.linspace(0, options.shown, n + 1)
        found[options.dt / factor] = (t, {"exact": np.asarray(pendulum.solution(jnp.asarray(t)))})
        for name, field, theta, scheme in (
            ("numerical Euler", pendulum.field, pendulum.GRAVITY, "euler"),
            ("ODE-Net(Euler)", network, first["euler"], "euler"),
            ("ODE-Net(RK4)", network, first["rk4"], "rk4"),
        ):
            solver = FixedStep(scheme, n)
            states = solve(field, start()[0], theta, solver=solver, gradient=Direct(), t1=options.shown, ts=t).x
            found[options.dt / factor][1][name] = np.asarray(states)
    return found


def run(options: Options) -> tuple[dict[str, Any], dict[str, PyTree], dict[str, np.ndarray]]:
    """Train and measure; the record, the networks and their errors."""
    began = time.perf_counter()
    trained, counts = options.trained, options.counts()
    keys = jax.random.split(jax.random.key(0), options.seeds)
    fitted = {
        scheme: train(options, FixedStep(scheme, 1), keys)
        for scheme in told(SCHEMES, lambda scheme: f"training {options.seeds} networks by {scheme}")
    }
    thetas = {scheme: theta for scheme, (theta, _) in fitted.items()}
    errors, exact = all_errors(options, thetas, counts), numerical(options, counts)
    slopes = {
        scheme: {"order": slope.order, "from": exact.h[slope.first], "to": exact.h[slope.last]}
        for scheme, slope in exact.slopes.items()
    }
    record = {
        "settings": dataclasses.asdict(options) | {"out": None if options.out is None else str(options.out)},
        "environment": environment(),
        "n_steps": counts,
        "ratios": [trained / n for n in counts],
        "slopes": slopes,
        "numerical": {scheme: values.tolist() for scheme, values in exact.errors.items()},
        "one_step_loss": {scheme: loss.tolist() for scheme, (_, loss) in fitted.items()},
        "errors": {key: values.tolist() for key, values in errors.items()},
        "summary": summary(errors, counts, trained),
        "verdicts": verdicts(options, thetas, trained),
    }
    return record | {"seconds": time.perf_counter() - began}, thetas, errors


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.continuous_net.pendulum", __doc__)
        out = destination("pendulum", options.out, options.record)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with jax.enable_x64(True):
        record, thetas, errors = run(options)
        print_tables(record, console)
        write_json(out / "pendulum.json", record)
        draw_trajectories(curves(options, thetas)).savefig(out / "trajectories.png", dpi=110)
        picture = draw_convergence(record["ratios"], errors, record["numerical"])
        picture.savefig(out / "convergence.png", dpi=110)
    print(f"{record['seconds']:.0f} s; written: {out}/pendulum.json, trajectories.png, convergence.png")


if __name__ == "__main__":
    main()
