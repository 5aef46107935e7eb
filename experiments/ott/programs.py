"""The programs of `experiments.ott`: training of all seeds, accuracies under a solver, and the check of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.ott.tasks import Task
from experiments.ott.tiles import as_computed
from ode_nets import ACA, Adaptive, FixedStep, GradientMethod, pad, solve
from ode_nets.validity import steps_of

PyTree = Any
Preset = Literal["paper", "code"]
CHECK_EVERY = 50
"""Iterations between two checks of the step (Ott sec. 5), and the length of one call of the training program."""


def classify(
    task: Task, params: PyTree, x: jax.Array, solver: Any, gradient: GradientMethod | None = None
) -> tuple[jax.Array, jax.Array]:
    """Classifier of the state at time 1, `[batch, n_classes]`, NaN where the solve failed; and field evaluations."""
    field, theta = as_computed(task.field, params["field"])
    solution = solve(field, x, theta, solver=solver, gradient=gradient)
    return solution.x.reshape(len(x), -1) @ params["head"]["kernel"] + params["head"]["bias"], solution.nfe


@lru_cache
def make_optimizer(task: Task) -> optax.GradientTransformation:
    """The paper's optimizer."""
    return optax.adam(task.learning_rate) if task.optimizer == "adam" else optax.sgd(task.learning_rate)


def begin(task: Task, keys: jax.Array) -> PyTree:
    """Training states, leaves with a leading axis of seeds."""

    def one(key: jax.Array) -> PyTree:
        params = task.init(key)
        counts = {"nfe": jnp.float32(0), "skipped": jnp.int32(0)}
        return {"params": params, "opt": make_optimizer(task).init(params), "key": key} | counts

    return jax.vmap(one)(keys)


def skips(state: PyTree) -> list[int]:
    """Updates of each seed that were left out, as their gradient was not finite."""
    return np.asarray(state["skipped"]).tolist()


def warning(skipped: Sequence[int]) -> str:
    """What is said of them; nothing where there are none."""
    return f"; WARNING: {list(skipped)} updates left out, gradients not finite" if any(skipped) else ""


def draw(key: jax.Array, x: jax.Array, y: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """A random batch."""
    index = jax.random.randint(key, (size,), 0, len(x))
    return x[index], y[index]


def _train_one(
    task: Task,
    make_solver: Callable[..., Any],
    gradient: GradientMethod,
    many: int,
    state: PyTree,
    x: jax.Array,
    y: jax.Array,
    *values: Any,
) -> PyTree:
    """`many` iterations of one seed with the solver of `values`: a step count, or a tolerance."""

    def body(_: int, state: PyTree) -> PyTree:
        key, batch_key = jax.random.split(state["key"])
        images, labels = draw(batch_key, x, y, task.batch_size)

        def loss_of(params: PyTree) -> tuple[jax.Array, jax.Array]:
            logits, nfe = classify(task, params, images, make_solver(*values), gradient)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), nfe

        slope, nfe = jax.grad(loss_of, has_aux=True)(state["params"])
        # A batch whose solve failed teaches nothing, must not poison the weights, and is counted.
        good = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope)]).all()
        updates, opt = make_optimizer(task).update(slope, state["opt"], state["params"])
        new = (optax.apply_updates(state["params"], updates), opt)
        params, opt = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, (state["params"], state["opt"]))
        counts = {"nfe": state["nfe"] + nfe, "skipped": state["skipped"] + ~good}
        return {"params": params, "opt": opt, "key": key} | counts

    return jax.lax.fori_loop(0, many, body, state)


def over_seeds(one: Callable[..., PyTree], axes: tuple[int | None, ...]) -> Callable[..., PyTree]:
    """`one` for every seed: side by side, but on a CPU one after another in the same program.

    There products with a kernel a seed take a tenth longer, and seeds with numbers of steps of their own would all take
    as many as the most.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(one, in_axes=axes)

    def mapped(*args: PyTree) -> PyTree:
        lanes = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]

        def of_lane(lanes: list[PyTree]) -> PyTree:
            rest = iter(lanes)
            return one(*(next(rest) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)))

        return jax.lax.map(of_lane, lanes)

    return mapped


@lru_cache
def training(task: Task, scheme: str, max_steps: int, own: bool, many: int = CHECK_EVERY) -> Any:
    """`train(states, x, y, n_steps) -> states`: one compiled program for every number of steps.

    With `own`, `n_steps` is a number for each seed.

    Args:
      task, scheme: what is trained under what.
      max_steps: room for states.
      own: whether each seed has a number of steps of its own.
      many: iterations of one call.
    """
    one = partial(_train_one, task, lambda n: FixedStep(scheme, n, max_steps), ACA(None), many)
    return jax.jit(over_seeds(one, (0, None, None, 0 if own else None)))


@lru_cache
def tolerance_training(task: Task, scheme: str, gradient: Any, many: int = CHECK_EVERY) -> Any:
    """The same for a tolerance of an adaptive scheme, rtol = atol, which may change without compiling again."""
    make = lambda tolerance: Adaptive(scheme, tolerance, tolerance, max_steps=512)
    one = partial(_train_one, task, make, gradient, many)
    return jax.jit(over_seeds(one, (0, None, None, None)))


# ---------------------------------------------------------------------------------------------------------
# Accuracy under a solver
# ---------------------------------------------------------------------------------------------------------


def hits(task: Task, params: PyTree, x: jax.Array, y: jax.Array, solver: Any, n: Any = None) -> jax.Array:
    """Samples that each seed classifies rightly, `[seeds]`, with a number of steps of its own where `n` is given."""

    def one(params: PyTree, n: Any) -> jax.Array:
        own = solver if n is None else dataclasses.replace(solver, n_steps=n)
        logits, _ = classify(task, params, x, own)
        return jnp.sum((jnp.argmax(logits, -1) == y) & jnp.isfinite(logits).all(-1))

    return over_seeds(one, (0, None if n is None else 0))(params, n)


hits_under = jax.jit(hits, static_argnames="task")
"""The same compiled, for what `pad` makes: one program for all fixed steps of as many stages."""


@partial(jax.jit, static_argnames=("task", "scheme"))
def hits_within(task: Task, params: PyTree, x: jax.Array, y: jax.Array, scheme: str, tolerance: Any) -> jax.Array:
    """The same for an adaptive scheme: one program for all tolerances."""
    return hits(task, params, x, y, Adaptive(scheme, tolerance, tolerance, max_steps=4096))


def accuracies(task: Task, params: PyTree, test: Any, solver: FixedStep, n: Any = None) -> list[float]:
    """Test accuracy of each seed under a solver, with a number of steps of its own where `n` is given."""
    stages = solver.scheme.n_evaluations or 0
    return _share(task, test, lambda x, y: hits_under(task, params, x, y, pad(solver, stages), n))


def accuracies_within(task: Task, params: PyTree, test: Any, scheme: str, tolerance: float) -> list[float]:
    """Test accuracy of each seed within a tolerance."""
    return _share(task, test, lambda x, y: hits_within(task, params, x, y, scheme, tolerance))


def _share(task: Task, test: Any, count: Callable[[Any, Any], jax.Array]) -> list[float]:
    x, y = test
    chunks = range(0, len(y), task.test_chunk)
    total = sum(np.asarray(count(x[i : i + task.test_chunk], y[i : i + task.test_chunk]), float) for i in chunks)
    return np.round(total / len(y), 6).tolist()


def step_of_check(h: jax.Array, preset: Preset) -> jax.Array:
    """Midpoint's step beside Euler's: the same by the paper's text, by its code sqrt(h / 50) where that is finer."""
    return jnp.minimum(h, jnp.sqrt(h / 50)) if preset == "code" else h


@lru_cache
def gap(task: Task, preset: Preset = "paper") -> Any:
    """`gap(states, x, y, h)`: accuracy under Euler less that under midpoint, on one batch a seed, `[seeds]`.

    NaN, which counts as too large, where a solve failed.
    """
    euler, midpoint = (pad(FixedStep(scheme, 1), 4) for scheme in ("euler", "midpoint"))

    def one(state: PyTree, x: jax.Array, y: jax.Array, h: jax.Array) -> jax.Array:
        x, y = draw(jax.random.fold_in(state["key"], 1), x, y, task.batch_size)
        shares = []
        for padded, step in ((euler, h), (midpoint, step_of_check(h, preset))):
            logits, _ = classify(task, state["params"], x, dataclasses.replace(padded, n_steps=steps_of(step)))
            shares.append(jnp.where(jnp.isfinite(logits).all(), jnp.mean(jnp.argmax(logits, -1) == y), jnp.nan))
        return shares[0] - shares[1]

    return jax.jit(over_seeds(one, (0, None, None, 0)))


def check_cost(h: jax.Array, preset: Preset) -> np.ndarray:
    """Field evaluations of `gap` at steps `h`: Euler's and midpoint's."""
    return np.asarray(steps_of(h) + 2 * steps_of(step_of_check(h, preset)))
