"""What each gradient method costs and how right it is: ACA Table 1 and the lecture's table, measured.

    python -m experiments.aca.gradient_report
    python -m experiments.aca.gradient_report --problem node18 --scheme heun_euler --rtol 1e-2 --atol 1e-2
    python -m experiments.aca.gradient_report --module my_package.my_model:make

Every method differentiates the same solve with respect to the initial state and to theta. Measured beside
what the papers predict:

- field evaluations and vector-Jacobian products (vjps) of both passes, counted on the host as the compiled
  programs make them
- temporary memory, from the analysis of the compiled program
- seconds of a value and gradient
- error of the gradient, relative to the ODE's own (float64, tight tolerance) and to that of `Direct`

With s stages, N_t accepted steps, m tries a step, N_r accepted steps on the adjoint's way back, and
N_f = |x| + A_f, a state and the activations that one field evaluation keeps (lecture), ACA Table 1 says

    evaluations     naive 2 s N_t m       adjoint s (N_t + N_r) m     ACA s N_t (m + 1)
    memory          naive s N_f N_t m     adjoint s N_f               ACA s N_f + N_t |x|

where a vjp counts once together with the evaluation it is made at, as in the paper. The paper's naive method
differentiates through the search for step sizes too; `Direct` takes them as constants: it searches first, and takes
the accepted steps once more to differentiate them, s N_t (m + 1) evaluations forward and s N_t vjps, with room for
`max_steps` steps. `Checkpointed` is ANODE's; its formulas are ours.

The lecture's example, Euler on a state of 64 x 64 x 32 and a batch of 32 (16 MiB a step in float32), is
compiled and analysed under every method, but not run.

`--module` names a function without arguments that returns `(field, x0, theta, loss)`: a pure
field(t, x, theta), a state, a pytree of floating-point arrays or a weight function, and
loss(x(t1)) -> scalar. From Python: `experiments.aca.gradient_costs.report(field, x0, theta, loss, solver)`.

Two and a half minutes on two cores that do nothing else, most of them compilation; what is compiled is said.
Writes gradient_report.json, gradient_report.png and memory.png into --out.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.aca.gradient_costs import METHODS, Loss, PyTree, Row, Solver, formulas, n_bytes, report
from experiments.records.command import check_settings, command_line
from experiments.records.environment import environment
from experiments.records.files import destination, write_json
from experiments.records.pictures import plain_ticks
from experiments.records.progress import told
from experiments.records.tables import show
from ode_nets import MLP, SCHEMES, Adaptive, FixedStep, ResidualUnit, solve
from ode_nets.integrate import Field
from ode_nets.problems import van_der_pol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    problem: Literal["mlp", "node18", "van_der_pol"] = "mlp"
    """A perceptron of 16-64-16 units, the field of NODE18, or the van der Pol oscillator."""
    module: str | None = None
    """package.module:function that returns (field, x0, theta, loss), in place of a problem."""
    batch: int = 16
    """Samples of mlp and of node18."""
    channels: int = 16
    """Of node18; its image is 16 x 16."""
    t1: float | None = None
    """End time; default 1, of mlp 5 and of the oscillator 10."""
    scheme: str = "dopri5"
    """Runge-Kutta scheme; an embedded one unless --n-steps is given."""
    rtol: float = 1e-5
    atol: float = 1e-5
    first_step: float | None = None
    """Size of the first trial; a large one forces a search (default: Hairer's estimate)."""
    n_steps: int | None = None
    """Fixed steps in place of adaptive ones."""
    truth_tolerance: float | None = 1e-9
    """rtol and atol of the float64 truth; None leaves it out."""
    repeats: int = 5
    """Timings of each program."""
    lecture_steps: tuple[int, ...] = (10, 100, 1000)
    """Euler steps of the lecture's example; none leaves it out."""
    seed: int = 0
    out: Path | None = None
    """Folder of the results; default runs/gradient_report."""
    record: bool = False
    """Write into results/gradient_report, which git keeps, instead."""

    def __post_init__(self) -> None:
        embedded = [name for name, tableau in SCHEMES.items() if self.n_steps or tableau.b_error]
        check_settings(
            self,
            ("module", self.module is None or self.module.count(":") == 1, "package.module:function"),
            ("scheme", self.scheme in embedded, f"one of {', '.join(embedded)}"),
            ("repeats", self.repeats >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("channels", self.channels >= 1, "at least 1"),
            ("lecture_steps", min(self.lecture_steps, default=1) >= 1, "numbers of at least 1"),
        )

    def solver(self) -> Solver:
        """The solver that was asked for."""
        if self.n_steps is not None:
            return FixedStep(self.scheme, self.n_steps)
        return Adaptive(self.scheme, self.rtol, self.atol, self.first_step)


# ---------------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------------


def problem_of(options: Options) -> tuple[Field, PyTree, PyTree, Loss]:
    """Field, initial state, theta and loss."""
    if options.module is not None:
        name, function = options.module.split(":")
        sys.path.insert(0, os.getcwd())
        try:
            return getattr(importlib.import_module(name), function)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"module={options.module!r}: {error}") from error
    key_x, key_theta = jax.random.split(jax.random.key(options.seed))
    mean_square = lambda x: jnp.mean(x**2)
    if options.problem == "van_der_pol":
        return van_der_pol.field, jnp.array(van_der_pol.START), jnp.array(van_der_pol.MU), mean_square
    if options.problem == "mlp":
        mlp = MLP(size=16, hidden=(64,))
        # Weights as large as training makes them, so that the solve takes some twenty steps.
        theta = jax.tree.map(lambda leaf: 4 * leaf, mlp.init(key_theta))
        return mlp, jax.random.normal(key_x, (options.batch, 16)), theta, mean_square
    unit = ResidualUnit(options.channels, order="conv-bn-relu", skip_init=False, bias=False)
    x0 = jax.nn.relu(jax.random.normal(key_x, (options.batch, 16, 16, options.channels)))
    return lambda t, x, theta: unit.apply(theta, x, t)[0], x0, unit.init(key_theta), mean_square


def end_time(options: Options) -> float:
    """Where the solve ends."""
    if options.t1 is not None:
        return options.t1
    return 1.0 if options.module else {"mlp": 5.0, "node18": 1.0, "van_der_pol": 10.0}[options.problem]


def lecture(steps: tuple[int, ...]) -> list[Row]:
    """Memory of Euler steps on the lecture's state: a row a method and number of steps, compiled and not run."""
    unit = ResidualUnit(32, order="conv-bn-relu", skip_init=False, bias=False)
    field = lambda t, x, theta: unit.apply(theta, x, t)[0]
    x0 = jax.ShapeDtypeStruct((32, 64, 64, 32), jnp.float32)
    theta = jax.eval_shape(unit.init, jax.random.key(0))
    kept = jax.eval_shape(lambda x, theta: jax.vjp(lambda *a: field(0.0, *a), x, theta)[1], x0, theta)
    state, rows = x0.size * x0.dtype.itemsize, []
    # What a vjp keeps holds the state and the kernels that it was given.
    activations = n_bytes(kept) - state - n_bytes(theta)
    for n in told(steps, lambda n: f"lecture: compiling {n} Euler steps by every method"):
        sizes = {"stages": 1, "n_accepted": n, "n_rejected": 0, "n_accepted_back": n, "n_rejected_back": 0}
        sizes |= {"state_bytes": state, "activation_bytes": activations}
        for name, method in METHODS.items():

            def value(x0: jax.Array, theta: PyTree, n: int = n, method: Any = method) -> jax.Array:
                x1 = solve(field, x0, theta, solver=FixedStep("euler", n), gradient=method).x
                return jnp.mean(x1**2)

            program = jax.jit(jax.grad(value, (0, 1))).lower(x0, theta).compile()
            measured = int(program.memory_analysis().temp_size_in_bytes)
            rows.append({"method": name, "n_steps": n, "temporary_bytes": measured, **formulas(method, sizes)})
    return rows


# ---------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------


def readable(size: float) -> str:
    """Bytes with a binary prefix."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def print_tables(title: str, costs: dict[str, Any], memory: list[Row], console: Console) -> None:
    """Measured numbers, with the papers' in parentheses."""
    sizes = costs["sizes"]
    console.print(
        f"{title}: N_t = {sizes['n_accepted']} steps and {sizes['n_rejected']} rejected, "
        f"back {sizes['n_accepted_back']} and {sizes['n_rejected_back']}; s = {sizes['stages']} stages; "
        f"|x| = {readable(sizes['state_bytes'])}, A_f = {readable(sizes['activation_bytes'])}, "
        f"|theta| = {readable(sizes['theta_bytes'])}"
    )
    table = Table(title="measured, and in parentheses what ACA Table 1 says", title_justify="left")
    columns = ("forward", "back", "vjps", "memory", "", "ms", "error", "from Direct's")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in costs["rows"]:
        errors = [row["error"], row["difference_from_direct"]]
        table.add_row(
            row["method"] if row["result"] == "SUCCESS" else f"{row['method']} ({row['result']})",
            f"{row['forward_evaluations']} ({row['formula_forward']})",
            str(row["backward_evaluations"]),
            f"{row['backward_vjps']} ({row['formula_vjps']})",
            readable(row["temporary_bytes"]),
            f"({readable(row['formula_bytes'])})",
            f"{1e3 * row['seconds']:.3g}",
            *("" if error is None else f"{error:.1e}" for error in errors),
        )
    show(table, console)
    console.print("forward, back: field evaluations of either pass; vjps: of the backward pass")
    if not memory:
        return
    table = Table(title="lecture: 64 x 64 x 32, batch 32, Euler; memory (formula), not run", title_justify="left")
    table.add_column("")
    steps = list(dict.fromkeys(row["n_steps"] for row in memory))
    for n in steps:
        table.add_column(f"N = {n}", justify="right")
    for name in dict.fromkeys(row["method"] for row in memory):
        cells = [
            f"{readable(row['temporary_bytes'])} ({readable(row['formula_bytes'])})"
            for row in memory
            if row["method"] == name
        ]
        table.add_row(name, *cells)
    show(table, console)


def draw(title: str, costs: dict[str, Any]) -> Figure:
    """Four panels, a method a line; black ticks are the formulas of ACA Table 1."""
    from matplotlib.figure import Figure

    rows = costs["rows"][::-1]
    y = range(len(rows))
    column = lambda key: [row[key] for row in rows]
    figure = Figure(figsize=(11, 1.5 + 0.25 * len(rows)))
    figure.subplots_adjust(left=0.13, right=0.985, wspace=0.09, bottom=0.2, top=0.82)
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(1.5, 1.1, 1, 1.1))
    evaluations, memory, seconds, errors = panels
    left = [0] * len(rows)
    passes = (
        ("forward_evaluations", "forward", "#6baed6"),
        ("backward_vjps", "vjps", "#08519c"),
        ("backward_evaluations", "evaluated again", "#c6dbef"),
    )
    for key, label, color in passes:
        evaluations.barh(y, column(key), 0.65, left=left, color=color, label=label)
        left = [a + b for a, b in zip(left, column(key), strict=True)]
    tick = {"marker": "|", "ls": "", "color": "black", "ms": 15, "mew": 1.6}
    formula = [row["formula_forward"] + row["formula_vjps"] for row in rows]
    evaluations.plot(formula, y, **tick, label="formula")
    largest = max(column("temporary_bytes") + column("formula_bytes"))
    power = max(i for i in range(4) if i == 0 or largest >= 1024**i)
    in_unit = lambda key: [value / 1024**power for value in column(key)]
    memory.barh(y, in_unit("temporary_bytes"), 0.65, color="#fdae6b", label="compiled program")
    memory.plot(in_unit("formula_bytes"), y, **tick, label="formula")
    seconds.barh(y, [1e3 * value for value in column("seconds")], 0.65, color="#bdbdbd")
    compared = [(row["difference_from_direct"], i) for i, row in enumerate(rows) if row["difference_from_direct"]]
    if all(column("error")):
        errors.plot(column("error"), y, "o", color="#a63603", label="from the ODE's own")
    if compared:
        errors.plot(*zip(*compared, strict=True), "D", color="#238b45", mfc="none", label="from Direct's")
    errors.set_xscale("log")
    errors.margins(x=0.15)
    titles = (
        "field evaluations and vjps",
        f"memory [{('B', 'KiB', 'MiB', 'GiB')[power]}]",
        "value and gradient [ms]",
        "error of the gradient",
    )
    for axes, text, columns in zip(panels, titles, (4, 2, 0, 2), strict=True):
        axes.set_title(text, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        if columns:
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=columns, frameon=False, fontsize=8,
                columnspacing=1.2, handlelength=1.2, handletextpad=0.5,
            )  # fmt: skip
    evaluations.set_yticks(y, column("method"))
    figure.suptitle(title, fontsize=10, y=0.985)
    return figure


def draw_memory(rows: list[Row]) -> Figure:
    """Memory against the number of steps of the lecture's example; lines are the formulas."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.9), layout="constrained")
    axes = figure.subplots()
    sizes = (9, 9, 5, 5, 7, 7, 7)
    for k, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        chosen = [row for row in rows if row["method"] == name]
        n = [row["n_steps"] for row in chosen]
        color, style = f"C{k}", {"ms": sizes[k % 7], "mew": 1.6, "mfc": "none", "label": name}
        axes.loglog(n, [row["formula_bytes"] / 2**30 for row in chosen], color=color, lw=1, alpha=0.7)
        measured = [row["temporary_bytes"] / 2**30 for row in chosen]
        axes.loglog(n, measured, "os^Dv<>"[k % 7], color=color, **style)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set_xlabel("Euler steps N")
    axes.set_ylabel("temporary memory [GiB]")
    axes.set_title("state 64 x 64 x 32, batch 32, float32\nmarks: compiled program, lines: formula", fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure


def main() -> None:
    """The command line."""
    console = Console(highlight=False)
    try:
        options = command_line(Options, "python -m experiments.aca.gradient_report", __doc__)
        out = destination("gradient_report", options.out, options.record)
        field, x0, theta, loss = problem_of(options)
        extra = {"truth_tolerance": options.truth_tolerance, "repeats": options.repeats}
        costs = report(field, x0, theta, loss, options.solver(), t1=end_time(options), **extra)
        memory = lecture(options.lecture_steps)
    except ValueError as error:
        sys.exit(f"error: {error}")
    how = f"{options.n_steps} steps" if options.n_steps else f"rtol = {options.rtol:g}, atol = {options.atol:g}"
    title = f"{options.module or options.problem}, {options.scheme}, {how}"
    print_tables(title, costs, memory, console)
    record = {
        "settings": {**dataclasses.asdict(options), "out": str(out)},
        "environment": environment(),
        **costs,
        "lecture": memory,
    }
    write_json(out / "gradient_report.json", record)
    draw(title, costs).savefig(out / "gradient_report.png", dpi=120)
    if memory:
        draw_memory(memory).savefig(out / "memory.png", dpi=120)
    print(f"written: {out}/gradient_report.json and pictures")


if __name__ == "__main__":
    main()
