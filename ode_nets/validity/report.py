"""One report on one model: does it behave as an ODE, or is it tied to its solver?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate import Adaptive, FixedStep, Result
from ode_nets.tableaus import get_tableau
from ode_nets.validity.convergence import Convergence, Dip, convergence, distance, find_dip, rounding
from ode_nets.validity.crossings import Crossings, crossings
from ode_nets.validity.exchange import ENTROPY_FLOOR, Exchange, Key, Measure, exchange, fineness
from ode_nets.validity.subjects import Subject, accepted_steps, scale_of, smaller_tolerances

Verdict = Literal["ode", "tied", "undecided", "not finite"]
Row = dict[str, float | int | str]
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Step counts that are measured, in units of the trained one: Ott's, and two finer."""
TOLERANCES = (1.0, 0.1, 0.01)
"""Tolerances at which a model of an adaptive solver is measured, in units of the trained one (Ott Figs 20, 21)."""
FITS = 0.05
"""Error, on the scale of the outputs, up to which a model fits the truth: the tolerance of disagreement."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured, and what it means.

    Attributes:
      verdict: `"ode"`, `"tied"`, `"undecided"` (no solver measured is fine enough to tell, an adaptive one failed
        at all smaller tolerances, or the network has learned nothing that could be lost), or `"not finite"`.
      sentence: the verdict in words, with the step.
      trained: scheme and steps of training; of an adaptive solver, the steps it accepted.
      rows: one dict a manifestation: scheme, n_steps, h, error, with labels accuracy and loss (cross-entropy), and of
        adaptive ones, whose n_steps were accepted, rtol and the name of the result; NaN where they failed.
      convergence: errors and slopes, against the truth or the finest manifestation.
      dip: of the error to the truth, or of the loss, at the training step; `None` without either.
      exchange: the solver-exchange test; `None`, as convergence and crossings, where nothing could be compared.
      crossings: of each problem that the model solves, under its own steps, or, of a model with an adaptive solver,
        under as many equal ones, which are not its own.
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
    otherwise how far outputs are from those of the finest manifestation. With labels the cross-entropy counts too
    (see `exchange`), and of a network whose accuracy is not above the share of the largest class nothing is said.
    A model that does not fit the truth has no quality to lose either: where its error, and that of its finest
    manifestation, are beyond 5 % of the scale, it must also pass the test of a model without a truth.

    A solver has equal or smaller error than the trained one where its order is at least as high, its steps are at
    most as long, and its outputs are no further from those of the finest manifestation: steps that theta jumps inside
    of are not as exact as their length says. A model of an adaptive solver is also measured at a tenth and a
    hundredth of its tolerances, the last of which that succeeds is its finest manifestation, and what is as near to
    that is of equal or smaller error whatever its steps.

    Outputs are compared as vectors, by root mean squares over the batch on one scale: give coordinates of different
    units one unit first, and look at outliers yourself.

    Args:
      subject: from `of_model` or `of_field`.
      labels: int `[batch]`, below the number of logits.
      truth: outputs of a perfect model, `[batch, ...]`.
      schemes: tableaus to exchange for the trained one, which is added where it is missing.
      factors: step counts, in units of the trained one, which is always measured.
      tolerance: of the exchange test; `None` for 0.1 of accuracy, a factor 3 of error, 5 % of disagreement.
      n_samples: trajectories to look for crossings in; 0 leaves them out.

    Returns:
      `Report`. A model whose outputs are not finite is reported as such and nothing is raised.

    Raises:
      ValueError: for labels and truth together, of other shapes than the outputs, labels out of range, a truth that
        is not finite, factors that are not above 0, or a negative number of samples.

    Cost: one compilation and a forward pass a manifestation, and the crossings.
    """
    if n_samples < 0 or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"n_samples={n_samples}, factors={factors}: expected at least 0, and finite numbers above 0")
    own = subject.run(subject.solver)
    _check(own, labels, truth)
    found = _manifestations(subject, own, schemes, factors)
    trained, failed = (found.own[0], found.own[1]), _results(found.failed)
    if not bool(jnp.isfinite(own).all()):
        how = f" ({failed})" if failed else ""
        why = f"the outputs as trained hold NaN or infinity{how}, so nothing is compared"
        return _unmeasured("not finite", trained, why)
    if found.finest is None:
        return _unmeasured("undecided", trained, f"the solver failed at all smaller tolerances ({failed}). Raise them")
    measure, flow = _measure(labels, truth), found.outputs[found.finest]
    if measure == "disagreement" and not bool(jnp.isfinite(flow).all()):
        where = f"the outputs under {_name(found.finest)}, of smaller error, hold NaN or infinity"
        return _unmeasured("tied", trained, f"{where}, those under {_name(trained)} do not")
    reference = flow if truth is None else truth
    scale = scale_of(subject, reference, FixedStep(found.schemes[-1], found.counts[-1]))
    rows = {key: _row(key, out, reference, scale, subject.span, labels) for key, out in found.outputs.items()}
    floor, low = rounding(own, reference), max(ENTROPY_FLOOR, 1 / len(own))
    options: dict[str, Any] = {"tolerance": tolerance, "span": subject.span, "floor": floor, "entropy_floor": low}
    test = _exchanged(found, rows, measure, scale, options)
    study = convergence(
        lambda solver: found.outputs[solver.scheme.name, solver.n_steps],
        found.schemes,
        found.counts,
        truth=reference,
        span=subject.span,
    )
    column, least = ("loss", low) if measure == "accuracy" else ("error", floor)
    dip = None if measure == "disagreement" else _dip(rows, found.own, column, least)
    crossed = None
    if n_samples:
        crossed = [crossings(problem, found.grid, n_samples=n_samples) for problem in subject.problems(found.grid)]
    verdict, sentence = judge(test, found.own, subject.span, None if labels is None else _least_accuracy(labels))
    if verdict == "ode" and crossed and (n := sum(each.count for each in crossed)):
        sentence += f"; yet its trajectories cross, {n} times"
    return Report(verdict, sentence, trained, [*rows.values(), *found.failed], study, dip, test, crossed)


def judge(test: Exchange, trained: Key, span: float = 1.0, least: float | None = None) -> tuple[Verdict, str]:
    """The verdict of an exchange test, and a sentence that says it.

    Args:
      test: what `exchange` found.
      trained: the key it was given.
      span: t1 - t0.
      least: accuracy that a network has learned something with; `None` asks for none.
    """
    if least is not None and test.own <= least:
        sentence = f"undecided: not trained; an accuracy of {100 * test.own:.1f} % is not above chance by a margin"
        return "undecided", f"{sentence} ({100 * least:.1f} %), so there is none to lose"
    who = (
        _name(test.worst)
        + " "
        + {
            "accuracy": f"loses {100 * max(test.loss, 0.0):.1f} points of accuracy",
            "error": f"multiplies the error by {test.loss:.3g}",
            "disagreement": f"is {100 * test.loss:.1f} % away from the flow's outputs",
        }[test.measure]
    )
    if test.entropy_ratio is not None and test.entropy_worst is not None:
        other = "" if test.entropy_worst == test.worst else f"{_name(test.entropy_worst)} "
        who += f" and {other}multiplies the cross-entropy by {test.entropy_ratio:.3g}"
    if not test.passed:
        return "tied", f"tied to its solver, {_name(trained)}: {who}"
    h = test.critical_step
    if not test.converged_enough or (len(trained) == 2 and math.isnan(h)):
        return "undecided", f"undecided: the finest solvers do not agree yet; {who}. Raise factors"
    if len(trained) == 3:
        grids = "on none of the uniform grids tried" if math.isnan(h) else f"on uniform grids below h* = {h:.4g}"
        return "ode", f"behaves as an ODE at rtol = {trained[2]:.3g} and below, and {grids}: {who} at worst"
    own = span / trained[1]
    above = "" if own <= h * (1 + 1e-9) else f" (its own, {own:.4g}, is larger)"
    return "ode", f"behaves as an ODE for steps below h* = {h:.4g}{above}: {who} at worst"


def _least_accuracy(labels: jax.Array) -> float:
    """Accuracy that is above chance by a margin: two standard errors, or a tenth of what is left above chance."""
    n = len(labels)
    chance = float(np.bincount(np.asarray(labels)).max() / n)
    return chance + max(2 * math.sqrt(chance * (1 - chance) / n), 0.1 * (1 - chance))


def _results(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row['result']} at rtol {row['rtol']:.3g}" for row in rows)


def _name(key: Key) -> str:
    return f"{key[0]} with {key[1]} steps" + (f" at rtol {key[2]:.3g}" if len(key) == 3 else "")


def _check(own: jax.Array, labels: jax.Array | None, truth: jax.Array | None) -> None:
    if labels is not None and truth is not None:
        raise ValueError("labels and truth are both given: expected one measure of quality, or none")
    for name, given, wanted in (("labels", labels, own.shape[:1]), ("truth", truth, own.shape)):
        if given is not None and np.shape(given) != wanted:
            raise ValueError(f"{name} has shape {np.shape(given)}: expected {wanted} of outputs {own.shape}")
    if truth is not None and not bool(jnp.isfinite(truth).all()):
        raise ValueError("truth holds NaN or infinity: expected outputs of a perfect model; leave such samples out")
    if labels is None:
        return
    low, high, n = int(np.min(labels)), int(np.max(labels)), own.shape[-1]
    if own.ndim != 2 or low < 0 or high >= n:
        raise ValueError(f"labels from {low} to {high} with outputs {own.shape}: expected 0 to {n - 1}, one logit each")


@dataclasses.dataclass(frozen=True)
class _Manifestations:
    """Outputs of one model under all solvers; `failed` are adaptive ones.

    `finest` is `None` where an adaptive solver failed at all smaller tolerances, or where nothing was compared as
    the outputs as trained are not finite; `finer`, all solvers of equal or smaller error, where they are to be told
    from steps and orders alone.
    """

    grid: FixedStep
    own: Key
    outputs: dict[Key, jax.Array]
    schemes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    finest: Key | None = None
    finer: list[Key] | None = None
    failed: tuple[Row, ...] = ()


def _manifestations(
    subject: Subject, own: jax.Array, schemes: Sequence[str], factors: Sequence[float]
) -> _Manifestations:
    solver, solvers = subject.solver, []
    own_key: Key
    ended: tuple[Row, ...] = ()
    if isinstance(solver, FixedStep):
        grid, own_key = solver, (solver.scheme.name, solver.n_steps)
        ends: list[tuple[int, Result]] = []
    else:
        # Beyond rounding a smaller tolerance asks for what no step can give; one is always tried.
        least = 4 * float(jnp.finfo(jnp.result_type(float)).eps)
        smaller = [f for i, f in enumerate(TOLERANCES[1:]) if i == 0 or f * solver.rtol >= least]
        solvers = smaller_tolerances(solver, smaller)
        (n, result), *ends = accepted_steps(subject, [solver, *solvers])
        grid, own_key = FixedStep(solver.scheme, n), (solver.scheme.name, n, float(solver.rtol))
        if result != Result.SUCCESS:
            ended = (_failed_row(own_key, subject.span, result),)
    if not bool(jnp.isfinite(own).all()):
        return _Manifestations(grid, own_key, {own_key: own}, failed=ended)
    tried = _tried(subject, grid, schemes)
    counts = tuple(sorted({grid.n_steps, *(max(1, round(f * grid.n_steps)) for f in factors)}))
    outputs: dict[Key, jax.Array] = {(s, n): subject.run(FixedStep(s, n)) for s in tried for n in counts}
    outputs[own_key] = own
    if not ends:
        last, order = (tried[-1], counts[-1]), grid.scheme.order
        near = _as_exact(outputs, own_key, outputs[last]) if bool(jnp.isfinite(outputs[last]).all()) else []
        finer = [k for k in near if k[1] >= grid.n_steps and get_tableau(k[0]).order >= order]
        return _Manifestations(grid, own_key, outputs, tried, counts, last, finer or None)
    more: dict[Key, jax.Array] = {}
    failed = []
    for at, (n, result) in zip(solvers, ends, strict=True):
        key = (at.scheme.name, n, float(at.rtol))
        if result == Result.SUCCESS:
            more[key] = subject.run(at)
        else:
            failed.append(_failed_row(key, subject.span, result))
    if not more:
        return _Manifestations(grid, own_key, outputs, tried, counts, failed=tuple(failed))
    finest = [*more][-1]
    # An adaptive solver puts steps where they are needed: equal ones, as many, are no solver of equal error.
    finer = [*_as_exact(outputs, own_key, more[finest]), *more]
    return _Manifestations(grid, own_key, outputs | more, tried, counts, finest, finer, tuple(failed))


def _as_exact(outputs: dict[Key, jax.Array], own: Key, finest: jax.Array) -> list[Key]:
    """Solvers whose outputs are as near to the finest ones as those trained with, from coarse to fine."""
    near = max(distance(outputs[own], finest), rounding(outputs[own], finest))
    return sorted((k for k, out in outputs.items() if k != own and distance(out, finest) <= near), key=fineness)


def _unmeasured(verdict: Verdict, trained: tuple[str, int], why: str) -> Report:
    name = "tied to its solver" if verdict == "tied" else verdict
    return Report(verdict, f"{name}: {why}", trained, [], None, None, None, None)


def _exchanged(
    found: _Manifestations, rows: dict[Key, Row], measure: Measure, scale: float, options: dict[str, Any]
) -> Exchange:
    """The exchange test on rows; on outputs alone where the model does not fit the truth and is not its own flow."""
    column = {"accuracy": "accuracy", "error": "error", "disagreement": "relative_error"}[measure]
    quality = {key: float(row[column]) for key, row in rows.items()}
    losses = {key: float(row["loss"]) for key, row in rows.items()} if measure == "accuracy" else None
    own, finer = found.own, found.finer
    test = exchange(quality, own, quality[own], measure=measure, finer=finer, entropies=losses, **options)
    fits = measure != "error" or min(test.own, test.converged) <= FITS * scale
    if fits or not test.passed or found.finest is None:
        return test
    apart = {key: distance(out, found.outputs[found.finest]) / scale for key, out in found.outputs.items()}
    alone = exchange(apart, own, apart[own], measure="disagreement", finer=finer, span=options["span"])
    return test if alone.passed else alone


def _measure(labels: Any, truth: Any) -> Measure:
    if labels is not None:
        return "accuracy"
    return "disagreement" if truth is None else "error"


def _tried(subject: Subject, grid: FixedStep, schemes: Sequence[str]) -> tuple[str, ...]:
    """Schemes from low to high order, so that the last is the one to trust.

    An adaptive solver's own is tried on a fixed grid only where no other has its order.
    """
    orders = [get_tableau(scheme).order for scheme in schemes]
    needed = not isinstance(subject.solver, Adaptive) or max(orders, default=0) < grid.scheme.order
    tried = dict.fromkeys((*((grid.scheme.name,) if needed else ()), *schemes))
    return tuple(sorted(tried, key=lambda scheme: get_tableau(scheme).order))


def _row(key: Key, out: jax.Array, reference: jax.Array, scale: float, span: float, labels: jax.Array | None) -> Row:
    error = distance(out, reference)
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
    return row | ({"rtol": key[2], "result": Result.SUCCESS.name} if len(key) == 3 else {})


def _failed_row(key: tuple[str, int, float], span: float, result: Result) -> Row:
    measures = dict.fromkeys(("error", "relative_error", "accuracy", "loss"), math.nan)
    row: Row = {"scheme": key[0], "n_steps": key[1], "h": span / key[1], "rtol": key[2], "result": result.name}
    return row | measures


def _dip(rows: dict[Key, Row], trained: Key, column: str, floor: float) -> Dip | None:
    """Of the trained scheme: on fixed grids, or of an adaptive one at its tolerances."""
    own = [key for key in rows if key[0] == trained[0] and len(key) == len(trained) and key[1] > trained[1]]
    if not own:
        return None
    values = {key[1]: float(rows[key][column]) for key in own} | {trained[1]: float(rows[trained][column])}
    return find_dip(sorted(values), [values[n] for n in sorted(values)], trained[1], floor=floor)
