"""One report on one model: does it behave as an ODE, or is it tied to its solver?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.tableaus import get_tableau
from ode_nets.validity.convergence import Convergence, Dip, convergence, distance, find_dip
from ode_nets.validity.crossings import Crossings, crossings
from ode_nets.validity.exchange import Exchange, Measure, exchange
from ode_nets.validity.subjects import Subject, accepted_steps, own_grid

Verdict = Literal["ode", "tied", "undecided", "not finite"]
Row = dict[str, float | int | str]
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Step counts that are measured, in units of the trained one: Ott's, and two finer."""
TOLERANCES = (1.0, 0.1, 0.01)
"""Tolerances at which a model of an adaptive solver is measured, in units of the trained one (Ott Figs 20, 21)."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured, and what it means.

    Attributes:
      verdict: `"ode"`, `"tied"`, `"undecided"` (no solver measured is fine enough to tell), or `"not finite"`.
      sentence: the verdict in words, with the step.
      trained: scheme and steps of training; of an adaptive solver, the steps it accepted.
      rows: one dict a manifestation: scheme, n_steps, h, error, with labels accuracy and loss, and the rtol of
        adaptive ones, whose n_steps were accepted.
      convergence: errors and slopes, against the truth or the finest manifestation.
      dip: of the error to the truth, or of the loss, at the training step; `None` without either.
      exchange: the solver-exchange test; `None` where outputs are not finite.
      crossings: of each problem that the model solves, under its own steps; `None` where they are not finite.
    """

    verdict: Verdict
    sentence: str
    trained: tuple[str, int]
    rows: list[Row]
    convergence: Convergence | None
    dip: Dip | None
    exchange: Exchange | None
    crossings: list[Crossings] | None


def examine(
    subject: Subject,
    *,
    labels: jax.Array | None = None,
    truth: jax.Array | None = None,
    schemes: Sequence[str] = ("euler", "midpoint", "rk4"),
    factors: Sequence[float] = FACTORS,
    tolerance: float | None = None,
    n_samples: int = 32,
) -> Report:
    """Run the convergence study, the solver-exchange test and the search for crossings on one model.

    Quality is accuracy where `labels` are given (outputs are logits), the error where a `truth` is, and
    otherwise how far outputs are from those of the finest manifestation.

    Args:
      subject: from `of_model` or `of_field`.
      labels: int `[batch]`.
      truth: outputs of a perfect model, `[batch, ...]`.
      schemes: tableaus to exchange for the trained one, which is added where it is missing.
      factors: step counts, in units of the trained one, which is always measured.
      tolerance: of the exchange test; `None` for 0.1 of accuracy, a factor 3 of error, 5 % of disagreement.
      n_samples: trajectories to look for crossings in; 0 leaves them out.

    A model of an adaptive solver is also measured at a tenth and a hundredth of its tolerances.

    Returns:
      `Report`. A model whose outputs are not finite is reported as such and nothing is raised.

    Raises:
      ValueError: for labels and truth together, or of other shapes than the outputs.

    Cost: one compilation and a forward pass a manifestation, and the crossings.
    """
    if labels is not None and truth is not None:
        raise ValueError("labels and truth are both given: expected one measure of quality, or none")
    grid = own_grid(subject)
    own = subject.run(subject.solver)
    for name, given, wanted in (("labels", labels, own.shape[:1]), ("truth", truth, own.shape)):
        if given is not None and np.shape(given) != wanted:
            raise ValueError(f"{name} has shape {np.shape(given)}: expected {wanted} of outputs {own.shape}")
    trained = (grid.scheme, grid.n_steps)
    if not bool(jnp.isfinite(own).all()):
        return _not_finite("not finite", trained, "the outputs as trained", "so nothing can be compared")
    tried = _tried(subject, grid, schemes)
    counts = sorted({grid.n_steps, *(max(1, round(f * grid.n_steps)) for f in factors)})
    outputs = {(scheme, n): subject.run(FixedStep(scheme, n)) for scheme in tried for n in counts}
    finest, measure = (tried[-1], counts[-1]), _measure(labels, truth)
    if measure == "disagreement" and not bool(jnp.isfinite(outputs[finest]).all()):
        where = f"the outputs under {finest[0]} with {finest[1]} steps, of smaller error,"
        return _not_finite("tied", trained, where, f"those under {trained[0]} with {trained[1]} steps do not")
    reference = outputs[finest] if truth is None else truth
    scale = max(distance(reference, jnp.zeros_like(reference)), 1e-30)

    def row(key: tuple[str, int], out: jax.Array) -> Row:
        return _row(key, out, distance(out, reference), scale, subject.span, labels)

    rows, own_row = [row(key, out) for key, out in outputs.items()], row(trained, own)
    rows += [row(key, out) | {"rtol": rtol} for key, rtol, out in _adaptive_outputs(subject)]
    name = {"accuracy": "accuracy", "error": "error", "disagreement": "relative_error"}[measure]
    quality = {(str(row["scheme"]), int(row["n_steps"])): float(row[name]) for row in rows}
    test = exchange(quality, trained, float(own_row[name]), measure=measure, tolerance=tolerance, span=subject.span)
    study = convergence(
        lambda solver: outputs[solver.scheme, solver.n_steps], tried, counts, truth=reference, span=subject.span
    )
    dip = _dip(rows, trained, {"accuracy": "loss", "error": "error"}.get(measure))
    found = None
    if n_samples:
        found = [crossings(problem, grid, n_samples=n_samples) for problem in subject.problems(grid)]
    verdict, sentence = judge(test, trained, subject.span)
    return Report(verdict, sentence, trained, rows, study, dip, test, found)


def judge(test: Exchange, trained: tuple[str, int], span: float = 1.0) -> tuple[Verdict, str]:
    """The verdict of an exchange test, and a sentence that says it."""
    what = {
        "accuracy": f"loses {100 * max(test.loss, 0.0):.1f} points of accuracy",
        "error": f"multiplies the error by {test.loss:.3g}",
        "disagreement": f"is {100 * test.loss:.1f} % away from the flow's outputs",
    }[test.measure]
    who = f"{test.worst[0]} with {test.worst[1]} steps {what}"
    if not test.passed:
        return "tied", f"tied to its solver, {trained[0]} with {trained[1]} steps: {who}"
    if not test.converged_enough or math.isnan(test.critical_step):
        return "undecided", f"undecided: the finest solvers do not agree yet; {who}. Raise factors"
    own = span / trained[1]
    above = "" if own <= test.critical_step * (1 + 1e-9) else f" (its own, {own:.4g}, is larger)"
    return "ode", f"behaves as an ODE for steps below h* = {test.critical_step:.4g}{above}: {who} at worst"


def _not_finite(verdict: Verdict, trained: tuple[str, int], what: str, so: str) -> Report:
    name = "tied to its solver" if verdict == "tied" else verdict
    sentence = f"{name}: {what} hold NaN or infinity, {so}"
    return Report(verdict, sentence, trained, [], None, None, None, None)


def _measure(labels: Any, truth: Any) -> Measure:
    if labels is not None:
        return "accuracy"
    return "disagreement" if truth is None else "error"


def _tried(subject: Subject, grid: FixedStep, schemes: Sequence[str]) -> tuple[str, ...]:
    """Schemes from low to high order, so that the last is the one to trust.

    An adaptive solver's own is tried on a fixed grid only where no other has its order.
    """
    orders = [get_tableau(scheme).order for scheme in schemes]
    needed = not isinstance(subject.solver, Adaptive) or max(orders, default=0) < grid.tableau.order
    tried = dict.fromkeys((*((grid.scheme,) if needed else ()), *schemes))
    return tuple(sorted(tried, key=lambda scheme: get_tableau(scheme).order))


def _adaptive_outputs(subject: Subject) -> list[tuple[tuple[str, int], float, jax.Array]]:
    """An adaptive solver at its tolerance and smaller ones: scheme and accepted steps, tolerance, outputs."""
    solver = subject.solver
    if not isinstance(solver, Adaptive):
        return []
    # Beyond rounding a smaller tolerance asks for what no step can give.
    least = 4 * float(jnp.finfo(jnp.result_type(float)).eps)
    factors = [f for f in TOLERANCES if f == 1 or f * solver.rtol >= least]
    found = []
    for f, n in zip(factors, accepted_steps(subject, solver, factors), strict=True):
        at = dataclasses.replace(solver, rtol=f * solver.rtol, atol=f * solver.atol)
        found.append(((solver.scheme, n), float(at.rtol), subject.run(at)))
    return found


def _row(
    key: tuple[str, int], out: jax.Array, error: float, scale: float, span: float, labels: jax.Array | None
) -> Row:
    row: Row = {
        "scheme": key[0],
        "n_steps": key[1],
        "h": span / key[1],
        "error": error,
        "relative_error": error / scale,
    }
    if labels is not None:
        logs = jax.nn.log_softmax(out)[jnp.arange(len(labels)), labels]
        hits = jnp.argmax(out, -1) == labels
        finite = bool(jnp.isfinite(out).all())
        row["accuracy"] = float(jnp.mean(hits & jnp.isfinite(out).all(-1)))
        row["loss"] = float(-jnp.mean(logs)) if finite else math.inf
    return row


def _dip(rows: list[Row], trained: tuple[str, int], column: str | None) -> Dip | None:
    if column is None:
        return None
    own = sorted((int(row["n_steps"]), float(row[column])) for row in rows if row["scheme"] == trained[0])
    n, values = [n for n, _ in own], [value for _, value in own]
    if trained[1] not in n or n[-1] == trained[1]:
        return None
    return find_dip(n, values, trained[1])
