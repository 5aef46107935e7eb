"""What an examination means: verdicts as data, and the one function that puts them into words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from ode_nets.arguments import Fraction01, Positive, checked
from ode_nets.integrate import Result
from ode_nets.remanifest import Manifestation
from ode_nets.validity.exchange import Exchange
from ode_nets.validity.uncertainty import Uncertainty

Verdict = Literal["ode", "tied", "undecided", "not finite"]
Reason = Literal[
    "keeps its quality",
    "loses its quality",
    "not converged",
    "not trained",
    "outputs not finite",
    "flow not finite",
    "smaller tolerances failed",
]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A verdict, why it was reached, and what it rests on; `describe` says it in a sentence.

    Attributes:
      verdict: `"ode"`, `"tied"`, `"undecided"` or `"not finite"`, see `Report`.
      reason: why.
      trained: the manifestation of training.
      exchange: the exchange test; `None` where nothing was compared.
      span: t1 - t0.
      least: accuracy that a network has learned something with; `None` where none was asked for.
      finest: the manifestation whose outputs are not finite though its error is smaller.
      failed: adaptive manifestations that did not reach the end, with their result codes.
      n_crossings: of trajectories.
      uncertainty: how sure it is; `None` where quality is no accuracy.
    """

    verdict: Verdict
    reason: Reason
    trained: Manifestation
    exchange: Exchange | None = None
    span: float = 1.0
    least: float | None = None
    finest: Manifestation | None = None
    failed: Mapping[Manifestation, Result] = dataclasses.field(default_factory=dict)
    n_crossings: int = 0
    uncertainty: Uncertainty | None = None


@checked
def judge(test: Exchange, trained: Manifestation, span: Positive = 1.0, least: Fraction01 | None = None) -> Judgement:
    """The verdict of an exchange test.

    Args:
      test: what `exchange` found.
      trained: the manifestation it was given.
      span: t1 - t0.
      least: accuracy that a network has learned something with; `None` asks for none.

    Example:
      found = exchange(Quality(accuracies, "accuracy"), Manifestation("euler", 4))
      judgement = judge(found, Manifestation("euler", 4))
      print(judgement.verdict, describe(judgement))
    """
    verdict: Verdict = "undecided"
    reason: Reason = "not converged"
    if least is not None and test.own <= least:
        reason = "not trained"
    elif not test.passed:
        verdict, reason = "tied", "loses its quality"
    elif test.converged_enough and (trained.adaptive or not math.isnan(test.critical_step)):
        verdict, reason = "ode", "keeps its quality"
    return Judgement(verdict, reason, trained, test, span, least)


@checked
def describe(judgement: Judgement) -> str:
    """A judgement in one sentence, with the step, the solver that loses most, and what it loses."""
    trained, test, reason = judgement.trained, judgement.exchange, judgement.reason
    failed = ", ".join(f"{result.name} at rtol {at.rtol:.3g}" for at, result in judgement.failed.items())
    nothing = "hold NaN or infinity"
    if reason == "outputs not finite":
        how = f" ({failed})" if failed else ""
        return f"not finite: the outputs as trained {nothing}{how}, so nothing is compared"
    if reason == "smaller tolerances failed":
        return f"undecided: the solver failed at all smaller tolerances ({failed}). Raise them"
    if reason == "flow not finite" or test is None:
        finest = f"the outputs under {judgement.finest}, of smaller error, {nothing}"
        return f"tied to its solver: {finest}, those under {trained} do not"
    if reason == "not trained":
        own, least = 100 * test.own, 100 * (judgement.least or 0.0)
        sentence = f"undecided: not trained; an accuracy of {own:.1f} % is not above chance by a margin"
        return f"{sentence} ({least:.1f} %), so there is none to lose"
    loses = {
        "accuracy": f"loses {100 * max(test.loss, 0.0):.1f} points of accuracy",
        "error": f"multiplies the error by {test.loss:.3g}",
        "cross_entropy": f"multiplies the cross-entropy by {test.loss:.3g}",
        "disagreement": f"is {100 * test.loss:.1f} % away from the flow's outputs",
    }[test.measure]
    who = f"{test.worst} {loses}"
    sure = judgement.uncertainty
    if sure is not None:
        who += f" (± {100 * sure.loss:.1f})"
    if test.entropy_ratio is not None and test.entropy_worst is not None:
        other = "" if test.entropy_worst == test.worst else f"{test.entropy_worst} "
        who += f" and {other}multiplies the cross-entropy by {test.entropy_ratio:.3g}"
    if sure is not None:
        who += f" (± {sure.entropy_ratio:.2g}; standard errors over {sure.n_samples} samples"
        who += ")" if sure.certain else ", within two of which the verdict is another)"
    if reason == "loses its quality":
        return f"tied to its solver, {trained}: {who}"
    if reason == "not converged":
        return f"undecided: the finest solvers do not agree yet; {who}. Raise factors"
    h, crossed = test.critical_step, ""
    if judgement.n_crossings:
        crossed = f"; yet its trajectories cross, {judgement.n_crossings} times"
    if trained.adaptive:
        grids = "on none of the uniform grids tried" if math.isnan(h) else f"on uniform grids below h* = {h:.4g}"
        return f"behaves as an ODE at rtol = {trained.rtol:.3g} and below, and {grids}: {who} at worst{crossed}"
    own = judgement.span / trained.counted
    above = "" if own <= h * (1 + 1e-9) else f" (its own, {own:.4g}, is larger)"
    return f"behaves as an ODE for steps below h* = {h:.4g}{above}: {who} at worst{crossed}"
