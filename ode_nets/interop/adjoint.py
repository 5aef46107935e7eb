"""The adaptive checkpoint adjoint as an adjoint of diffrax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.interop.recording import Record, Recorder, RecorderState, begin
from ode_nets.interop.replay import Inputs, Replay, Residuals, Rows
from ode_nets.interop.scheme import explicit

PyTree = Any


class AdaptiveCheckpointAdjoint(diffrax.AbstractAdjoint):
    """The adaptive checkpoint adjoint (ACA algorithm 2, app. A) as an adjoint of diffrax.

        diffrax.diffeqsolve(..., adjoint=ode_nets.interop.diffrax.AdaptiveCheckpointAdjoint())

    The forward pass is diffrax's own and keeps the times of accepted steps and, of their states,
    `checkpoints`. The backward pass replays each accepted step with its recorded times and takes one local
    vector-Jacobian product: no rejected trial, no step size search and, unless asked times `ts` are to be
    interpolated, no stage that only serves the error. The gradient is that of
    `diffrax.RecursiveCheckpointAdjoint` to rounding, wherever the controller, as all of diffrax's do, takes
    the error that it looks at for a constant. It covers `y0`, `args`, arrays inside or closed over by the
    vector field and by `SaveAt(fn=...)`, `t0`, `t1`, `dt0` and `SaveAt(ts=...)`.

    Any `diffrax.AbstractERK` or `diffrax.Euler`, any step size controller, any term without Brownian motion,
    and `SaveAt` with `t0`, `t1`, `ts`, `steps`, `fn` and `subs` in any combination.

    Args:
      checkpoints: S, how many states are kept at once, bytes(y0) each. While at most S steps are accepted
        nothing is computed twice; at most one more forward pass while n_accepted <= S^2 / 4. `None` keeps
        `max_steps` of them. Times of steps take 16 bytes * max_steps besides.

    Under `jax.vmap` diffrax's loop copies what is recorded at every step, so that `max_steps` costs time there: give no
    more than are needed, or solve with `ode_nets.solve`, whose loop does not copy, under `DiffraxScheme`.

    Reverse mode only; `diffrax.ForwardMode` and `diffrax.DirectAdjoint` have the other. Without
    differentiation nothing is kept, and diffrax does all that it can.

    Raises:
      ValueError: at trace time, for less than one checkpoint and, where it is differentiated, for what it
        cannot do: other solvers, stochastic terms, events, `max_steps=None`, `SaveAt(dense, solver_state,
        controller_state)`, states of solver and controller passed in, complex numbers, derivatives with
        respect to the controller.
    """

    checkpoints: int | None = 32

    def __check_init__(self) -> None:
        n = self.checkpoints
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"checkpoints={self.checkpoints}: expected None or at least 1")

    def loop(
        self,
        *,
        args: PyTree,
        terms: diffrax.AbstractTerm,
        solver: diffrax.AbstractSolver,
        stepsize_controller: diffrax.AbstractStepSizeController,
        event: Any,
        saveat: diffrax.SaveAt,
        t0: jax.Array,
        t1: jax.Array,
        dt0: jax.Array | None,
        max_steps: int | None,
        throw: bool,
        init_state: Any,
        passed_solver_state: bool,
        passed_controller_state: bool,
        progress_meter: diffrax.AbstractProgressMeter,
    ) -> Any:
        """What `diffrax.diffeqsolve` calls."""
        y0 = init_state.y

        def check() -> None:
            _refuse_solver(solver)
            _refuse_request(event, saveat, max_steps, passed_solver_state, passed_controller_state)
            _refuse_arrays(terms, y0, args)

        try:
            check()
        except ValueError as refusal:
            # Only derivatives are refused: diffrax's own loop does all of it.
            given = {
                "args": args,
                "terms": terms,
                "solver": solver,
                "stepsize_controller": stepsize_controller,
                "event": event,
                "saveat": saveat,
                "t0": t0,
                "t1": t1,
                "dt0": dt0,
                "init_state": init_state,
                "progress_meter": progress_meter,
            }
            rest = {
                "max_steps": max_steps,
                "throw": throw,
                "passed_solver_state": passed_solver_state,
                "passed_controller_state": passed_controller_state,
            }
            # What functions have closed over may be differentiated, too, and turns into leaves.
            run = eqx.filter_closure_convert(lambda given: plain_adjoint(solver).loop(**given, **rest), given)
            return _constant(_pass(_reverse_only((run, given)), str(refusal)), lambda leaf: not _is_inexact(leaf))
        is_sub = lambda leaf: isinstance(leaf, diffrax.SubSaveAt)
        subs, structure = jax.tree.flatten(saveat.subs, is_leaf=is_sub)
        plain = diffrax.SubSaveAt(t1=True).fn
        convert = lambda fn: eqx.filter_closure_convert(fn, t0, y0, args)
        inputs = Inputs(
            y0=y0,
            args=args,
            terms=_open(terms, t0, y0, args),
            saves=tuple(None if sub.fn is plain else convert(sub.fn) for sub in subs),
            times=(t0, t1) if dt0 is None else (t0, t1, dt0),
            ts=tuple(sub.ts for sub in subs),
        )
        # What else it holds are constants, or functions of the inputs that the backward pass knows.
        init_state = eqx.tree_at(lambda state: state.y, _constant(init_state, _is_inexact), None)
        assert max_steps is not None
        solve = Solve(
            solver=solver,
            rows=tuple(Rows(bool(sub.t0), bool(sub.t1), int(sub.steps)) for sub in subs),
            structure=structure,
            init_state=init_state,
            max_steps=max_steps,
            slots=max_steps if self.checkpoints is None else min(self.checkpoints, max_steps),
            progress_meter=progress_meter,
        )
        # Integers that leave a custom_vjp count as differentiated, and primitives of Equinox that diffrax
        # applies to them have no derivative.
        arguments = _reverse_only((inputs, stepsize_controller))
        return _constant(_solve(arguments, solve), lambda leaf: not _is_inexact(leaf))


class Solve(eqx.Module):
    """What one call of diffrax's loop is given, its `Inputs` and its controller apart."""

    solver: diffrax.AbstractSolver
    rows: tuple[Rows, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    init_state: Any
    max_steps: int
    slots: int
    progress_meter: diffrax.AbstractProgressMeter

    def run(
        self, inputs: Inputs, controller: diffrax.AbstractStepSizeController, slots: int, moving: bool
    ) -> tuple[Any, Record | None]:
        """diffrax's own loop, recorded if there are slots for states."""
        t0, t1, *rest = inputs.times
        dt0 = rest[0] if rest else None
        state = eqx.tree_at(lambda s: s.y, self.init_state, inputs.y0, is_leaf=lambda leaf: leaf is None)
        recording = slots > 0

        def first(t0: jax.Array, t1: jax.Array, dt0: jax.Array | None = None) -> Any:
            order = self.solver.error_order(inputs.terms)
            func = self.solver.func
            end, state = controller.init(inputs.terms, t0, t1, inputs.y0, dt0, inputs.args, func, order)
            return jnp.minimum(end, t1), state

        if recording:
            own = state.controller_state
            start = begin(inputs.y0, own, inputs.times, self.max_steps, slots, first if moving else None)
            state = eqx.tree_at(lambda s: s.controller_state, state, start)
            controller = Recorder(controller, t1)
        final, stats = diffrax.ForwardMode().loop(
            args=inputs.args,
            terms=inputs.terms,
            solver=self.solver,
            stepsize_controller=controller,
            event=None,
            saveat=self._saveat(inputs),
            t0=t0,
            t1=t1,
            dt0=dt0,
            max_steps=self.max_steps,
            throw=False,
            init_state=state,
            passed_solver_state=False,
            passed_controller_state=False,
            progress_meter=self.progress_meter,
        )
        if not recording:
            return (final, stats), None
        recorded: RecorderState = final.controller_state
        final = eqx.tree_at(lambda s: s.controller_state, final, recorded.controller)
        return (final, stats), recorded.record

    def saved(self, state: Any) -> list[tuple[jax.Array, PyTree]]:
        """`(ts, ys)` of each `SubSaveAt`, from the state of a loop or its cotangent."""
        return [(save.ts, save.ys) for save in self.structure.flatten_up_to(state.save_state)]

    def _saveat(self, inputs: Inputs) -> diffrax.SaveAt:
        subs = [
            diffrax.SubSaveAt(t0=rows.t0, t1=rows.t1, steps=rows.steps, ts=ts, **({} if fn is None else {"fn": fn}))
            for rows, ts, fn in zip(self.rows, inputs.ts, inputs.saves, strict=True)
        ]
        return diffrax.SaveAt(subs=jax.tree.unflatten(self.structure, subs))


def plain_adjoint(solver: diffrax.AbstractSolver) -> diffrax.AbstractAdjoint:
    """diffrax's loop for solves that are not differentiated by it; its `ForwardMode` fails for a `HalfSolver`."""
    wrapped = isinstance(solver, diffrax.HalfSolver)
    return diffrax.RecursiveCheckpointAdjoint() if wrapped else diffrax.ForwardMode()


@eqx.filter_custom_vjp
def _pass(arguments: tuple[Any, dict[str, Any]], refusal: str) -> Any:
    run, given = arguments
    return run(given)


@_pass.def_fwd
def _refused(perturbed: Any, arguments: Any, refusal: str) -> Any:
    raise ValueError(refusal)


@_pass.def_bwd
def _never(residuals: Any, cotangent: Any, perturbed: Any, arguments: Any, refusal: str) -> Any:
    raise ValueError(refusal)


def _reverse_only(tree: PyTree) -> PyTree:
    """The same arrays, which refuse forward mode by name."""
    inexact, rest = eqx.partition(tree, _is_inexact)
    return eqx.combine(refuse_forward_mode(inexact, "AdaptiveCheckpointAdjoint(...)"), rest)


@eqx.filter_custom_vjp
def _solve(arguments: tuple[Inputs, Any], solve: Solve) -> Any:
    inputs, controller = arguments
    return solve.run(inputs, controller, 0, False)[0]


@_solve.def_fwd
def _forward(perturbed: Any, arguments: tuple[Inputs, Any], solve: Solve) -> Any:
    inputs, controller = arguments
    if any(jax.tree.leaves(perturbed[1])):
        raise ValueError(
            "stepsize_controller holds an array that is differentiated: AdaptiveCheckpointAdjoint takes it "
            "for a constant; wrap it in jax.lax.stop_gradient, or use diffrax.RecursiveCheckpointAdjoint()"
        )
    output, record = solve.run(inputs, controller, solve.slots, any(jax.tree.leaves(perturbed[0].times)))
    final, _ = output
    assert record is not None
    return output, Residuals(record, final.y, solve.saved(final))


@_solve.def_bwd
def _backward(residuals: Residuals, cotangent: Any, perturbed: Any, arguments: tuple[Inputs, Any], solve: Solve) -> Any:
    inputs, controller = arguments
    ct_state, _ = cotangent
    replay = Replay(solve.solver, solve.rows, inputs, perturbed[0], residuals, solve.saved(ct_state))
    empty = jax.tree.map(lambda _: None, eqx.filter(controller, _is_inexact))
    return replay.run(), empty


class _Open(diffrax.AbstractTerm):
    """A term whose arrays, those that its functions closed over included, are leaves."""

    field: Any
    control: Any
    product: Any

    def vf(self, t: Any, y: PyTree, args: PyTree) -> PyTree:
        return self.field(t, y, args)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> PyTree:
        return self.control(t0, t1)

    def prod(self, vf: PyTree, control: PyTree) -> PyTree:
        return self.product(vf, control)


def _open(terms: diffrax.AbstractTerm, t0: jax.Array, y0: PyTree, args: PyTree) -> _Open:
    field = eqx.filter_closure_convert(terms.vf, t0, y0, args)
    control = eqx.filter_closure_convert(terms.contr, t0, t0)
    shapes = (eqx.filter_eval_shape(field, t0, y0, args), eqx.filter_eval_shape(control, t0, t0))
    return _Open(field, control, eqx.filter_closure_convert(terms.prod, *shapes))


def _refuse_solver(solver: diffrax.AbstractSolver) -> None:
    if explicit(solver) is not None:
        return
    raise ValueError(
        f"solver={type(solver).__name__}: AdaptiveCheckpointAdjoint replays explicit Runge-Kutta steps, of "
        "diffrax.Euler and of every diffrax.AbstractERK that takes its steps as diffrax does (Heun, "
        "Midpoint, Ralston, Bosh3, Tsit5, Dopri5, Dopri8); for implicit, semi-implicit, stochastic, "
        "multi-term, reversible and wrapped solvers use diffrax.RecursiveCheckpointAdjoint()"
    )


def _refuse_request(
    event: Any,
    saveat: diffrax.SaveAt,
    max_steps: int | None,
    passed_solver_state: bool,
    passed_controller_state: bool,
) -> None:
    instead = "use diffrax.RecursiveCheckpointAdjoint()"
    refused = {
        "event": (event is not None, f"leave it out, or {instead}"),
        "SaveAt(dense=True)": (saveat.dense, f"ask for the times needed with SaveAt(ts=...), or {instead}"),
        "SaveAt(solver_state=True)": (saveat.solver_state, f"leave it out, or {instead}"),
        "SaveAt(controller_state=True)": (saveat.controller_state, f"leave it out, or {instead}"),
        "solver_state": (passed_solver_state, f"leave it out, or {instead}"),
        "controller_state": (passed_controller_state, f"leave it out, or {instead}"),
        "max_steps=None": (
            max_steps is None,
            "the times of all steps are recorded, 16 bytes a step, and need a bound: give a generous "
            "max_steps, e.g. 2**20, or use diffrax.RecursiveCheckpointAdjoint(checkpoints=...)",
        ),
    }
    for name, (given, advice) in refused.items():
        if given:
            raise ValueError(f"AdaptiveCheckpointAdjoint cannot do {name}: {advice}")


def _refuse_arrays(terms: diffrax.AbstractTerm, y0: PyTree, args: PyTree) -> None:
    is_path = lambda leaf: isinstance(leaf, diffrax.AbstractBrownianPath)
    if any(map(is_path, jax.tree.leaves(terms, is_leaf=is_path))):
        raise ValueError(
            "AdaptiveCheckpointAdjoint cannot do stochastic terms: use diffrax.RecursiveCheckpointAdjoint()"
        )
    for name, tree in (("terms", terms), ("y0", y0), ("args", args)):
        for leaf in jax.tree.leaves(tree):
            if eqx.is_array(leaf) and jnp.iscomplexobj(leaf):
                raise ValueError(
                    f"{name} holds an array of dtype {leaf.dtype}: AdaptiveCheckpointAdjoint takes real "
                    "numbers only; split it into real and imaginary parts"
                )


def _is_inexact(leaf: Any) -> bool:
    return eqx.is_inexact_array(leaf)


def _constant(tree: PyTree, chosen: Callable[[Any], bool]) -> PyTree:
    stop = lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) and chosen(leaf) else leaf
    return jax.tree.map(stop, tree)
