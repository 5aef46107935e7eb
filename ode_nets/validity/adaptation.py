"""Adaptation of the step or the tolerance while a model trains, as pure controllers: `init` and `update`.

    controller = step_adaptation()
    state = controller.init(h)                                    # Hairer's initial step: `first_step`
    every 50 iterations:
        state = controller.update(difference(state.value), state)
        if state.on_trial:                                        # a larger step, to be looked at at once
            state = controller.update(difference(state.value), state)

with `difference(h)` the gap between the accuracies of one batch under the training solver at step h and under one
of smaller error. Everything is an array: both functions work under jit, vmap and scan, where the second update
is made always and kept, by `jnp.where(state.on_trial, ...)` on every leaf, only where a value is on trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from ode_nets.arguments import Finite, Numbers, Positive, Rule, checked
from ode_nets.control import initial_step
from ode_nets.integrate import Problem, theta_at
from ode_nets.tableaus import get_tableau
from ode_nets.trees import known

PyTree = Any
Several = Annotated[int, Rule("an integer of at least 2 (below 2**31)", lambda n: 2 <= n < 2**31)]


class AdaptationState(NamedTuple):
    """Where a controller stands between two updates: steps or tolerances, and counts."""

    value: Float[Array, "*lanes"]
    """Step size h, or tolerance, to train with."""
    on_trial: Bool[Array, "*lanes"]
    """Whether `value` has just been raised and is to be judged by another `update` before training goes on."""
    before: Float[Array, "*lanes"]
    """The value to go back to, if the trial fails, as far as the ceiling allows."""
    ceiling: Float[Array, "*lanes"]
    """The value is not raised beyond this."""
    checks: Int32[Array, "*lanes"]
    """Updates so far, trials not counted."""
    n_shrunk: Int32[Array, "*lanes"]
    """How often the value was halved."""
    n_reverted: Int32[Array, "*lanes"]
    """How many trials failed."""


class Adaptation(NamedTuple):
    """A pair of pure functions, as optax has them.

    Attributes:
      init: `init(value) -> state`.
      update: `update(difference, state) -> state`, with the difference between the accuracies under the
        training solver and under the more exact one at `state.value`, a scalar; NaN counts as too large.
    """

    init: Callable[[Any], AdaptationState]
    update: Callable[[Any, AdaptationState], AdaptationState]


@checked
def adaptation(
    lowest: Positive,
    highest: Positive,
    *,
    threshold: Finite = 0.1,
    shrink: Finite = 0.5,
    grow: Finite = 1.1,
    revert: bool = True,
    calm: Finite = 1.0,
    memory: Finite | None = None,
) -> Adaptation:
    """The controller of Ott's algorithm 1, for any positive quantity that errors grow with.

        |difference| > threshold:  value <- shrink * value
        otherwise:                 value <- grow * value, on trial; back again if the trial fails

    The paper's text has no trial (`revert=False`); its published code has. Both go up and down forever: a model
    follows the solver it is trained with, so a value that was too large is found too small a while later, and
    tried again. Two additions, off by default, end that (`calm` and `memory`, see `settled_step_adaptation`):

    - hysteresis: the value is only raised where |difference| <= calm * threshold, and kept in between;
    - memory: a value that failed, on trial or with training on it, lowers a ceiling to memory * value, for good, and
      no value lies above the ceiling. So each failure lowers it by that factor at least, until it is `lowest`, where
      a value stays whether it fails or not. Above that there are at most
      log(highest / lowest) / log(1 / memory) + 1 failures, and after the last the value is monotone and bounded: it
      comes to rest.

    Args:
      lowest, highest: bounds of the value, 0 < lowest < highest.
      threshold: largest difference of accuracies, in (0, 1).
      shrink, grow: factors, 0 < shrink < 1 < grow.
      revert: whether a raised value is tried first.
      calm: share of the threshold up to which the value is raised, in (0, 1].
      memory: factor of the ceiling, in [shrink, 1), or `None` for no ceiling.

    Raises:
      ValueError: for numbers out of range.
    """
    for name, value, good, allowed in (
        ("lowest", lowest, 0 < lowest < highest < math.inf, f"a number above 0 and below highest={highest}"),
        ("threshold", threshold, 0 < threshold < 1, "a number in (0, 1)"),
        ("shrink", shrink, 0 < shrink < 1, "a number in (0, 1)"),
        ("grow", grow, 1 < grow < math.inf, "a number above 1"),
        ("calm", calm, 0 < calm <= 1, "a number in (0, 1]"),
        ("memory", memory, memory is None or shrink <= memory < 1, f"None or a number in [shrink={shrink}, 1)"),
    ):
        if not good:
            raise ValueError(f"{name}={value}: expected {allowed}")

    def init(value: Any) -> AdaptationState:
        start = jnp.clip(jnp.asarray(value, float), lowest, highest)
        no, none = jnp.asarray(False), jnp.int32(0)
        return AdaptationState(start, no, start, jnp.asarray(highest, start.dtype), none, none, none)

    def update(difference: Any, state: AdaptationState) -> AdaptationState:
        gap = jnp.abs(jnp.asarray(difference))
        failed = ~(gap <= threshold)
        judged, checked = state.on_trial, ~state.on_trial
        shrunk, reverted = checked & failed, judged & failed
        raised = checked & (gap <= calm * threshold)
        ceiling = state.ceiling
        if memory is not None:
            ceiling = jnp.where(failed, jnp.maximum(jnp.minimum(ceiling, memory * state.value), lowest), ceiling)
        larger = jnp.maximum(jnp.minimum(grow * state.value, jnp.minimum(highest, ceiling)), state.value)
        value = jnp.where(shrunk, jnp.maximum(shrink * state.value, lowest), state.value)
        value = jnp.where(reverted, jnp.minimum(state.before, ceiling), jnp.where(raised, larger, value))
        return AdaptationState(
            value=value,
            on_trial=raised & (larger > state.value) & revert,
            before=jnp.where(checked, state.value, state.before),
            ceiling=ceiling,
            checks=state.checks + checked,
            n_shrunk=state.n_shrunk + shrunk,
            n_reverted=state.n_reverted + reverted,
        )

    return Adaptation(init, update)


@checked
def step_adaptation(max_steps: Several = 500, span: Positive = 1.0, **changes: Any) -> Adaptation:
    """Ott's algorithm 1 on the step size h, from span / max_steps to span, with the trial of the published code.

    Args:
      max_steps: most steps; the code's 500.
      span: t1 - t0.
      **changes: arguments of `adaptation` to set otherwise.
    """
    return adaptation(span / max_steps, span, **changes)


@checked
def settled_step_adaptation(max_steps: Several = 500, span: Positive = 1.0, **changes: Any) -> Adaptation:
    """The same without its oscillation: raised at a quarter of the threshold only, never again beyond 0.8 of a failure.

    The paper hopes for such a variant (Ott sec. 6); the numbers are ours. Arguments as in `step_adaptation`.
    """
    return adaptation(span / max_steps, span, **({"calm": 0.25, "memory": 0.8} | changes))


@checked
def tolerance_adaptation(lowest: Positive = 1e-9, highest: Positive = 1e-1, **changes: Any) -> Adaptation:
    """Algorithm 1 on the tolerance of an adaptive solver (Ott, published code).

    Start at 1e-6. Fehlberg2(1) is checked by Dopri5 at a fifth of the tolerance, Dopri5 by itself at a tenth.
    `rtol` and `atol` of `Adaptive` may be traced, so no change of them compiles anything again.
    """
    return adaptation(lowest, highest, **changes)


@checked
def steps_of(h: Numbers, span: Positive = 1.0) -> Int32[Array, "*lanes"]:
    """The number of equal steps for a step size: the least that makes steps of at most h.

    Of a traced h that is no number above 0 it is 0, which no solver takes.

    Raises:
      ValueError: for a known h that is not above 0.
    """
    if known(h) and not np.all(np.asarray(h) > 0):
        raise ValueError(f"h={h}: expected a step size above 0")
    h = jnp.asarray(h, float)
    n = jnp.maximum(jnp.ceil(span / jnp.where(h > 0, h, 1) * (1 - 1e-6)), 1)
    return jnp.where(h > 0, n, 0).astype(jnp.int32)


@checked
def first_step(problem: Problem, scheme: Any, tolerance: Numbers | None = 1e-3) -> Float[Array, ""]:
    """Hairer's initial step of a problem, on the whole batch; a scalar above 0.

    Hairer, Norsett, Wanner I, p. 169 (Ott algorithm 1), with rtol = atol = tolerance, which the paper does not
    name, and the order of the scheme. `None` leaves the scaling by the tolerance out, as the paper's code does.
    """

    def slope(tau: jax.Array, x: PyTree) -> PyTree:
        t = problem.time(tau)
        return problem.slope(t, x, theta_at(problem.weights, t))[0]

    order = get_tableau(scheme).order
    f0 = slope(0 * problem.span, problem.x0)
    rtol, atol = (0.0, 1.0) if tolerance is None else (tolerance, tolerance)
    return initial_step(slope, problem.x0, f0, problem.span, problem.sign, order, rtol, atol)
