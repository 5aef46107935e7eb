"""The tasks, networks and training programs of `experiments.ott` (Ott sec. 3, app. A)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.images import data
from ode_nets import (
    ACA,
    MLP,
    Adaptive,
    FixedStep,
    GradientMethod,
    convolution,
    kaiming_layer,
    pad,
    solve,
    uniform_layer,
)
from ode_nets.fields.initializers import LayerInit
from ode_nets.problems import landscape, spheres
from ode_nets.validity import steps_of

PyTree = Any
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Training steps of a whole grid."""
CHECK_EVERY = 50
"""Iterations between two checks of the step (Ott sec. 5), and the length of one call of the training program."""
Preset = Literal["paper", "code"]
LAYERS: dict[str, LayerInit] = {"kaiming": kaiming_layer, "uniform": uniform_layer}
"""Initial values: those of the paper's code, and PyTorch's own, which the text would suggest."""


@dataclasses.dataclass(frozen=True)
class ConvField:
    """Three convolutions, 1 - 3 - 1 wide, with ReLU between them (Ott A.1 to A.3), on `[batch, height, width, inputs]`.

    Signals are images of width 1, whose middle convolution is 3x1.
    """

    inputs: int
    channels: int
    flat: bool = False
    layer: LayerInit = kaiming_layer

    def init(self, key: jax.Array) -> PyTree:
        """Parameters, a layer each."""
        middle = (3, 1 if self.flat else 3)
        wide = self.channels
        shapes = ((1, 1, self.inputs, wide), (*middle, wide, wide), (1, 1, wide, self.inputs))
        return [self.layer(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)]

    def __call__(self, t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
        first, middle, last = theta
        y = jax.nn.relu(x @ first["kernel"][0, 0] + first["bias"])
        y = jax.nn.relu(convolution(y, middle["kernel"]) + middle["bias"])
        return y @ last["kernel"][0, 0] + last["bias"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, the network that Ott trains on it, and how.

    Attributes:
      shape: of one state; field: the right-hand side; n_classes: outputs of the linear classifier.
      optimizer, learning_rate, batch_size, iterations: app. A's.
      test_chunk: test samples that are solved side by side.
      euler, rk4: training steps of the grid.
      critical: the paper's field evaluations that bracket the critical step (table 1); accuracy: the best of its
        models that are ODEs, in percent; adapted: field evaluations and accuracy of its algorithm.
    """

    name: str
    shape: tuple[int, ...]
    field: MLP | ConvField
    n_classes: int
    optimizer: Literal["adam", "sgd"]
    learning_rate: float
    batch_size: int
    iterations: int
    test_chunk: int = 1000
    euler: tuple[int, ...] = POWERS
    rk4: tuple[int, ...] = POWERS
    critical: tuple[int, int] | None = None
    accuracy: float | None = None
    adapted: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "iterations", "test_chunk"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")

    def init(self, key: jax.Array) -> PyTree:
        """Weights of field and classifier."""
        keys = jax.random.split(key)
        size = int(np.prod(self.shape))
        return {"field": self.field.init(keys[0]), "head": self.field.layer(keys[1], (size, self.n_classes))}

    def load(self, seed: int, n_train: int | None, n_test: int | None, data_dir: str | None) -> tuple[Any, Any]:
        """`(x, y)` to train on and to test on; synthetic sets have 2000 and 1000 points."""
        if self.name in ("mnist", "cifar10"):
            found = data.load(self.name, data_dir=data_dir, validation_fraction=0.0, seed=seed, limit=n_train)
            test = slice(None, n_test)
            scaled = lambda images: jnp.asarray(images, jnp.float32) / 255
            return (scaled(found.x_train), found.y_train), (scaled(found.x_test[test]), found.y_test[test])
        key, n = jax.random.key(seed), (n_train or 2000) + (n_test or 1000)
        if self.name == "landscape":
            x, y = landscape.generate(key, n)
        else:
            x, y = spheres.generate(key, n, self.shape[0])
        x, cut = x.reshape(n, *self.shape), n_train or 2000
        return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def sphere_task(dimension: int, **known: Any) -> Task:
    """Concentric spheres of a dimension; beyond two, A.3's network and hyper-parameters on longer signals."""
    field = ConvField(1, 32, flat=True)
    return Task(f"spheres{dimension}", (dimension, 1, 1), field, 2, "adam", 1e-4, 128, 10_000, **known)


TASKS = {
    task.name: task
    for task in (
        sphere_task(2, critical=(65, 129), accuracy=99.2, adapted=(100.5, 98.9)),
        sphere_task(3),
        sphere_task(10),
        sphere_task(900, test_chunk=200),
        Task(
            "landscape",
            (2,),
            MLP(2, (48, 48), jax.nn.relu, layer=kaiming_layer),
            n_classes=3,
            optimizer="adam",
            learning_rate=5e-4,
            batch_size=128,
            iterations=30_000,
            critical=(33, 65),
            accuracy=79.0,
            adapted=(43.3, 76.5),
        ),
        Task(
            "mnist",
            (28, 28, 1),
            ConvField(1, 96),
            n_classes=10,
            optimizer="sgd",
            learning_rate=1e-2,
            batch_size=256,
            iterations=7_020,
            test_chunk=200,
            euler=POWERS[:7],
            rk4=POWERS[:6],
            critical=(9, 16),
            accuracy=96.5,
            adapted=(9.8, 95.6),
        ),
        Task(
            "cifar10",
            (32, 32, 3),
            ConvField(3, 128),
            n_classes=10,
            optimizer="adam",
            learning_rate=1e-3,
            batch_size=256,
            iterations=7_800,
            test_chunk=200,
            euler=POWERS[:7],
            rk4=POWERS[:5],
            critical=(17, 33),
            accuracy=54.7,
            adapted=(21.9, 55.0),
        ),
    )
}


def logits_of(
    task: Task, params: PyTree, x: jax.Array, solver: Any, gradient: GradientMethod | None = None
) -> jax.Array:
    """Classifier of the state at time 1, `[batch, n_classes]`; NaN where the solve failed."""
    end = solve(task.field, x, params["field"], solver=solver, gradient=gradient).x
    return end.reshape(len(x), -1) @ params["head"]["kernel"] + params["head"]["bias"]


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
            solution = solve(task.field, images, params["field"], solver=make_solver(*values), gradient=gradient)
            out = solution.x.reshape(len(images), -1) @ params["head"]["kernel"] + params["head"]["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean(), solution.nfe

        slope, nfe = jax.grad(loss_of, has_aux=True)(state["params"])
        # A batch whose solve failed teaches nothing, must not poison the weights, and is counted.
        good = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope)]).all()
        updates, opt = make_optimizer(task).update(slope, state["opt"], state["params"])
        new = (optax.apply_updates(state["params"], updates), opt)
        params, opt = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, (state["params"], state["opt"]))
        counts = {"nfe": state["nfe"] + nfe, "skipped": state["skipped"] + ~good}
        return {"params": params, "opt": opt, "key": key} | counts

    return jax.lax.fori_loop(0, many, body, state)


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
    return jax.jit(jax.vmap(one, in_axes=(0, None, None, 0 if own else None)))


@lru_cache
def tolerance_training(task: Task, scheme: str, gradient: Any, many: int = CHECK_EVERY) -> Any:
    """The same for a tolerance of an adaptive scheme, rtol = atol, which may change without compiling again."""
    make = lambda tolerance: Adaptive(scheme, tolerance, tolerance, max_steps=512)
    one = partial(_train_one, task, make, gradient, many)
    return jax.jit(jax.vmap(one, in_axes=(0, None, None, None)))


# ---------------------------------------------------------------------------------------------------------
# Accuracy under a solver
# ---------------------------------------------------------------------------------------------------------


def hits(task: Task, params: PyTree, x: jax.Array, y: jax.Array, solver: Any, n: Any = None) -> jax.Array:
    """Samples that each seed classifies rightly, `[seeds]`, with a number of steps of its own where `n` is given."""

    def one(params: PyTree, n: Any) -> jax.Array:
        own = solver if n is None else dataclasses.replace(solver, n_steps=n)
        logits = logits_of(task, params, x, own)
        return jnp.sum((jnp.argmax(logits, -1) == y) & jnp.isfinite(logits).all(-1))

    return jax.vmap(one, in_axes=(0, None if n is None else 0))(params, n)


hits_under = jax.jit(hits, static_argnames="task")
"""The same compiled, for what `pad` makes: one program for all fixed steps."""


@partial(jax.jit, static_argnames=("task", "scheme"))
def hits_within(task: Task, params: PyTree, x: jax.Array, y: jax.Array, scheme: str, tolerance: Any) -> jax.Array:
    """The same for an adaptive scheme: one program for all tolerances."""
    return hits(task, params, x, y, Adaptive(scheme, tolerance, tolerance, max_steps=4096))


def accuracies(task: Task, params: PyTree, test: Any, solver: FixedStep, n: Any = None) -> list[float]:
    """Test accuracy of each seed under a solver, with a number of steps of its own where `n` is given."""
    return _share(task, test, lambda x, y: hits_under(task, params, x, y, pad(solver, 4), n))


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
def gap(task: Task, preset: Preset) -> Any:
    """`gap(states, x, y, h)`: accuracy under Euler less that under midpoint, on one batch a seed, `[seeds]`.

    NaN, which counts as too large, where a solve failed.
    """
    euler, midpoint = (pad(FixedStep(scheme, 1), 4) for scheme in ("euler", "midpoint"))

    def one(state: PyTree, x: jax.Array, y: jax.Array, h: jax.Array) -> jax.Array:
        x, y = draw(jax.random.fold_in(state["key"], 1), x, y, task.batch_size)
        shares = []
        for padded, step in ((euler, h), (midpoint, step_of_check(h, preset))):
            logits = logits_of(task, state["params"], x, dataclasses.replace(padded, n_steps=steps_of(step)))
            shares.append(jnp.where(jnp.isfinite(logits).all(), jnp.mean(jnp.argmax(logits, -1) == y), jnp.nan))
        return shares[0] - shares[1]

    return jax.jit(jax.vmap(one, in_axes=(0, None, None, 0)))


def check_cost(h: jax.Array, preset: Preset) -> np.ndarray:
    """Field evaluations of `gap` at steps `h`: Euler's and midpoint's."""
    return np.asarray(steps_of(h) + 2 * steps_of(step_of_check(h, preset)))
