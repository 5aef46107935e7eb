"""One report on one model: does it behave as an ODE, or is it tied to its solver?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Real

from ode_nets.arguments import Natural, Positive, checked
from ode_nets.integrate import FixedStep, Result
from ode_nets.remanifest import Manifestation
from ode_nets.tableaus import get_tableau
from ode_nets.validity.convergence import Convergence, Dip, convergence, distance, find_dip, rounding
from ode_nets.validity.crossings import Crossings, crossings
from ode_nets.validity.exchange import Exchange, exchange, fineness
from ode_nets.validity.judge import Judgement, Verdict, describe, judge
from ode_nets.validity.quality import ENTROPY_FLOOR, Measure, Quality
from ode_nets.validity.subjects import Subject, accepted_steps, scale_of, smaller_tolerances
from ode_nets.validity.uncertainty import Uncertainty, uncertainty

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
      judgement: the verdict and what it rests on. `verdict` is `"ode"`, `"tied"`, `"undecided"` (no solver measured
        is fine enough to tell, an adaptive one failed at all smaller tolerances, or the network has learned nothing
        that could be lost), or `"not finite"`; `sentence` is the same in words, with the step; `trained` is the
        manifestation of training, of an adaptive solver with the steps it accepted.
      rows: one dict a manifestation: scheme, n_steps, h, error, with labels accuracy and loss (cross-entropy), and of
        adaptive ones, whose n_steps were accepted, rtol and the name of the result; NaN where they failed.
      convergence: errors and slopes, against the truth or the finest manifestation.
      dip: of the error to the truth, or of the loss, at the training step; `None` without either.
      exchange: the solver-exchange test; `None`, as convergence and crossings, where nothing could be compared.
      crossings: of each problem that the model solves, under its own steps, or, of a model with an adaptive solver,
        under as many equal ones, which are not its own.
      statistics: which batch statistics it rests on beside those of training, in words; empty if on these alone.
    """

    judgement: Judgement
    rows: list[Row] = dataclasses.field(default_factory=list)
    convergence: Convergence | None = None
    dip: Dip | None = None
    exchange: Exchange | None = None
    crossings: list[Crossings] | None = None
    statistics: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the model is an ODE."""
        return self.judgement.verdict

    @property
    def sentence(self) -> str:
        """The verdict in words, and which statistics it rests on."""
        return describe(self.judgement) + (f"; {self.statistics}" if self.statistics else "")

    @property
    def trained(self) -> Manifestation:
        """What the model was trained with."""
        return self.judgement.trained


@checked
def examine(
    subject: Subject,
    *,
    labels: Integer[Array, "batch"] | None = None,
    truth: Real[Array, "batch ..."] | None = None,
    schemes: Sequence[str] = ("euler", "midpoint", "rk4"),
    factors: Sequence[Positive] = FACTORS,
    tolerance: Positive | None = None,
    n_samples: Natural = 32,
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
      labels: of each sample, below the number of logits.
      truth: outputs of a perfect model.
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

    Example:
        >>> from ode_nets.validity import examine, of_field
        >>> x0 = jnp.array([[1.0], [0.5]])  # one Euler step below is the exact flow of x' = -2 x
        >>> subject = of_field(lambda t, x, k: k * x, jnp.expm1(-2.0), x0, FixedStep("euler", 1))
        >>> examine(subject, truth=x0 * jnp.exp(-2.0) + 1e-3).sentence.split(":")[0]
        'tied to its solver, euler with 1 step'
    """
    own = subject.run(subject.solver)
    _check(own, labels, truth)
    found = _manifestations(subject, own, schemes, factors)
    trained, failed, measure = found.own, found.failed, _measure(labels, truth)
    if (at_once := _at_once(found, own, measure)) is not None:
        return Report(at_once, statistics=subject.statistics)
    flow = found.outputs[found.finest]  # type: ignore[index]
    reference = flow if truth is None else truth
    scale = scale_of(subject, reference, FixedStep(found.schemes[-1], found.counts[-1]))
    rows = {key: _row(key, out, reference, scale, subject.span, labels) for key, out in found.outputs.items()}
    floor, low = rounding(own, reference), max(ENTROPY_FLOOR, 1 / len(own))
    column = {"accuracy": "accuracy", "error": "error", "disagreement": "relative_error"}[measure]
    quality = Quality({at: float(row[column]) for at, row in rows.items()}, measure, tolerance, floor)
    entropies = None
    if measure == "accuracy":
        entropies = Quality({at: float(row["loss"]) for at, row in rows.items()}, "cross_entropy", floor=low)
    test = _exchanged(found, quality, entropies, scale, subject.span)
    study = convergence(
        lambda solver: found.outputs[Manifestation.of(solver)],
        found.schemes,
        found.counts,
        truth=reference,
        span=subject.span,
    )
    dip_of = ("loss", low) if measure == "accuracy" else ("error", floor)
    dip = None if measure == "disagreement" else _dip(rows, found.own, *dip_of)
    crossed = None
    if n_samples:
        crossed = [crossings(problem, found.grid, n_samples=n_samples) for problem in subject.problems(found.grid)]
    judgement = judge(test, trained, subject.span, None if labels is None else _least_accuracy(labels))
    judgement = dataclasses.replace(judgement, n_crossings=sum(each.count for each in crossed or ()))
    if labels is not None and measure == "accuracy":
        sure = _uncertainty(found, test, labels, low)
        judgement = dataclasses.replace(judgement, uncertainty=sure)
    missing = [_failed_row(at, subject.span, result) for at, result in failed.items()]
    return Report(judgement, [*rows.values(), *missing], study, dip, test, crossed, subject.statistics)


def _at_once(found: _Manifestations, own: jax.Array, measure: str) -> Judgement | None:
    """What is said of a model before anything is compared; `None` where something is to be."""
    if not bool(jnp.isfinite(own).all()):
        return Judgement("not finite", "outputs not finite", found.own, failed=found.failed)
    if found.finest is None:
        return Judgement("undecided", "smaller tolerances failed", found.own, failed=found.failed)
    if measure == "disagreement" and not bool(jnp.isfinite(found.outputs[found.finest]).all()):
        return Judgement("tied", "flow not finite", found.own, finest=found.finest)
    return None


def _uncertainty(found: _Manifestations, test: Exchange, labels: jax.Array, floor: float) -> Uncertainty | None:
    """How sure a test of accuracies is; `None` where outputs that it rests on are not finite."""
    judged = (found.own, test.worst, test.entropy_worst or test.worst)
    if not all(bool(jnp.isfinite(found.outputs[at]).all()) for at in judged):
        return None
    own, worst, other = ([np.asarray(each) for each in _of_samples(found.outputs[at], labels)] for at in judged)
    return uncertainty(test, hits=(own[0], worst[0]), entropies=(own[1], other[1]), floor=floor)


def _of_samples(out: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each sample is classified rightly, and its cross-entropy, `[batch]`."""
    return jnp.argmax(out, -1) == labels, -jax.nn.log_softmax(out)[jnp.arange(len(labels)), labels]


def _least_accuracy(labels: jax.Array) -> float:
    """Accuracy that is above chance by a margin: two standard errors, or a tenth of what is left above chance."""
    n = len(labels)
    chance = float(np.bincount(np.asarray(labels)).max() / n)
    return chance + max(2 * math.sqrt(chance * (1 - chance) / n), 0.1 * (1 - chance))


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
    own: Manifestation
    outputs: dict[Manifestation, jax.Array]
    schemes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    finest: Manifestation | None = None
    finer: list[Manifestation] | None = None
    failed: Mapping[Manifestation, Result] = dataclasses.field(default_factory=dict)


def _manifestations(
    subject: Subject, own: jax.Array, schemes: Sequence[str], factors: Sequence[float]
) -> _Manifestations:
    solver, solvers = subject.solver, []
    ended: dict[Manifestation, Result] = {}
    if not solver.estimates:
        grid, own_key = solver, Manifestation.of(solver)
        ends: list[tuple[int, Result]] = []
    else:
        # Beyond rounding a smaller tolerance asks for what no step can give; one is always tried.
        least = 4 * float(jnp.finfo(jnp.result_type(float)).eps)
        smaller = [f for i, f in enumerate(TOLERANCES[1:]) if i == 0 or f * solver.rtol >= least]
        solvers = smaller_tolerances(solver, smaller)
        (n, result), *ends = accepted_steps(subject, [solver, *solvers])
        grid, own_key = FixedStep(solver.scheme, n), Manifestation.of(solver, n)
        if result != Result.SUCCESS:
            ended = {own_key: result}
    if not bool(jnp.isfinite(own).all()):
        return _Manifestations(grid, own_key, {own_key: own}, failed=ended)
    tried = _tried(subject, grid, schemes)
    counts = tuple(sorted({grid.n_steps, *(max(1, round(f * grid.n_steps)) for f in factors)}))
    outputs = {Manifestation(s, n): subject.run(FixedStep(s, n)) for s in tried for n in counts}
    outputs[own_key] = own
    if not ends:
        last, order = Manifestation(tried[-1], counts[-1]), grid.scheme.order
        near = _as_exact(outputs, own_key, outputs[last]) if bool(jnp.isfinite(outputs[last]).all()) else []
        finer = [at for at in near if at.counted >= grid.n_steps and get_tableau(at.scheme).order >= order]
        return _Manifestations(grid, own_key, outputs, tried, counts, last, finer or None)
    more: dict[Manifestation, jax.Array] = {}
    failed = {}
    for at, (n, result) in zip(solvers, ends, strict=True):
        key = Manifestation.of(at, n)
        if result == Result.SUCCESS:
            more[key] = subject.run(at)
        else:
            failed[key] = result
    if not more:
        return _Manifestations(grid, own_key, outputs, tried, counts, failed=failed)
    finest = [*more][-1]
    # An adaptive solver puts steps where they are needed: equal ones, as many, are no solver of equal error.
    finer = [*_as_exact(outputs, own_key, more[finest]), *more]
    return _Manifestations(grid, own_key, outputs | more, tried, counts, finest, finer, failed)


def _as_exact(outputs: dict[Manifestation, jax.Array], own: Manifestation, finest: jax.Array) -> list[Manifestation]:
    """Solvers whose outputs are as near to the finest ones as those trained with, from coarse to fine."""
    near = max(distance(outputs[own], finest), rounding(outputs[own], finest))
    return sorted((k for k, out in outputs.items() if k != own and distance(out, finest) <= near), key=fineness)


def _exchanged(
    found: _Manifestations, quality: Quality, entropies: Quality | None, scale: float, span: float
) -> Exchange:
    """The exchange test on rows; on outputs alone where the model does not fit the truth and is not its own flow."""
    test = exchange(quality, found.own, entropies=entropies, finer=found.finer, span=span)
    fits = quality.measure != "error" or min(test.own, test.converged) <= FITS * scale
    if fits or not test.passed or found.finest is None:
        return test
    apart = {at: distance(out, found.outputs[found.finest]) / scale for at, out in found.outputs.items()}
    alone = exchange(Quality(apart, "disagreement"), found.own, finer=found.finer, span=span)
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
    needed = not subject.solver.estimates or max(orders, default=0) < grid.scheme.order
    tried = dict.fromkeys((*((grid.scheme.name,) if needed else ()), *schemes))
    return tuple(sorted(tried, key=lambda scheme: get_tableau(scheme).order))


def _row(
    at: Manifestation, out: jax.Array, reference: jax.Array, scale: float, span: float, labels: jax.Array | None
) -> Row:
    error = distance(out, reference)
    row = _named(at, span) | {"error": error, "relative_error": error / scale}
    if labels is not None:
        hits, entropies = _of_samples(out, labels)
        finite = bool(jnp.isfinite(out).all())
        row["accuracy"] = float(jnp.mean(hits & jnp.isfinite(out).all(-1)))
        row["loss"] = float(jnp.mean(entropies)) if finite else math.inf
    return row | ({} if at.rtol is None else {"rtol": at.rtol, "result": Result.SUCCESS.name})


def _failed_row(at: Manifestation, span: float, result: Result) -> Row:
    ended: Row = {"rtol": at.rtol or math.nan, "result": result.name}
    return _named(at, span) | ended | dict.fromkeys(("error", "relative_error", "accuracy", "loss"), math.nan)


def _named(at: Manifestation, span: float) -> Row:
    return {"scheme": at.scheme, "n_steps": at.counted, "h": span / at.counted}


def _dip(rows: dict[Manifestation, Row], trained: Manifestation, column: str, floor: float) -> Dip | None:
    """Of the trained scheme: on fixed grids, or of an adaptive one at its tolerances."""
    alike = [at for at in rows if (at.scheme, at.adaptive) == (trained.scheme, trained.adaptive)]
    finer = [at for at in alike if at.counted > trained.counted]
    if not finer:
        return None
    values = {at.counted: float(rows[at][column]) for at in (*finer, trained)}
    return find_dip(sorted(values), np.array([values[n] for n in sorted(values)]), trained.counted, floor=floor)
