"""Models of three bodies and their training, pure functions: LSTMs, a layer for the law, the law itself (App. D.4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.aca.gradient_costs import count_passes
from ode_nets import (
    ACA,
    Adaptive,
    Backsolve,
    Coupled,
    Direct,
    GradientMethod,
    Naive,
    Reversible,
    SecondOrder,
    solve,
    uniform_layer,
)
from ode_nets.problems import three_bodies
from ode_nets.problems.three_bodies import Start, Truth

PyTree = Any
ModelName = Literal["lstm", "lstm_aug", "node", "ode"]
GradientName = Literal["aca", "backsolve", "naive", "direct", "reversible"]
Preset = Literal["paper", "code", "slow"]
GRADIENTS: dict[str, GradientMethod] = {
    "aca": ACA(),
    "backsolve": Backsolve(),
    "naive": Naive(),
    "direct": Direct(),
    "reversible": Reversible(),
}
TOLERANCE = 1e-5
MAX_STEPS = 1000
SEQUENCE = 20
"""Points that an LSTM is trained on at a time."""
FED = 10
"""True points that an LSTM is given at test."""


class Data(NamedTuple):
    """Positions that models see, and those they are tested on."""

    start: Start
    ts: jax.Array
    """Of training, `[points]`, k / points."""
    r: jax.Array
    """`[points, 3, 3]`, float64."""
    test_ts: jax.Array
    """`[2 points]` up to 2, half an interval later."""
    test_r: jax.Array
    """`[2 points, 3, 3]`."""


def make_data(start: Start, points: int) -> tuple[Data, Truth]:
    """The positions of three bodies, under `jax.enable_x64`, and how far they can be trusted."""
    ts = jnp.arange(4 * points) / (2 * points)
    found = three_bodies.truth(start, ts)
    exact = Start(*(jnp.asarray(leaf, float) for leaf in start))
    return Data(exact, ts[: 2 * points : 2], found.r[: 2 * points : 2], ts[1::2], found.r[1::2]), found


# ---------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """What is trained; the loss and the prediction also say how many field evaluations they took."""

    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, Data], tuple[jax.Array, jax.Array]]
    predict: Callable[[PyTree, Data], tuple[jax.Array, jax.Array]]
    """Positions at the times of the test, `[2 points, 3, 3]`, NaN where a solve fails."""
    track: Callable[[PyTree], jax.Array] = lambda theta: jnp.zeros(0)
    """Numbers that are kept at every epoch."""
    passes: Callable[[PyTree, Data], dict[str, int]] = lambda theta, data: {}
    """Field evaluations and vjps of one gradient of the loss, as they are made."""


def squares(predicted: jax.Array, r: jax.Array) -> jax.Array:
    """Squared error at every time, summed over the nine coordinates: `[n]`."""
    return jnp.sum((predicted - r) ** 2, axis=(-2, -1))


def law(theta: PyTree, r: jax.Array) -> jax.Array:
    """r'' = FC(Aug)                                         (ACA eq. 34)."""
    return (three_bodies.augmented(r) @ theta["kernel"] + theta["bias"]).reshape(r.shape)


def mechanics(name: Literal["node", "ode"], gradient: GradientName, fading: float, scale: float = 1.0) -> Model:
    """A second-order ODE from the one initial point.

    Args:
      name: `node`, one layer for the law; or `ode`, the law with masses that are unknown.
      gradient: name of the method.
      fading: the training loss is mean_t fading^t |error|^2.
      scale: of the first layer of `node`.
    """
    # Two copies of a state part at close encounters where the coupling is 0.999.
    scheme = Coupled("dopri5", 0.9) if gradient == "reversible" else "dopri5"
    solver = Adaptive(scheme, TOLERANCE, TOLERANCE, max_steps=MAX_STEPS)
    acceleration = law if name == "node" else lambda theta, r: three_bodies.acceleration(r, theta)
    field = SecondOrder(lambda t, r, v, theta: acceleration(theta, r))

    def positions(theta: PyTree, start: Start, ts: jax.Array, t1: float) -> tuple[jax.Array, jax.Array]:
        state = (start.r, start.v)
        solution = solve(field, state, theta, solver=solver, gradient=GRADIENTS[gradient], t1=t1, ts=ts)
        return jnp.where(solution.result == 0, solution.x[0], jnp.nan), solution.nfe

    def init(key: jax.Array) -> PyTree:
        if name == "ode":
            return jax.random.uniform(key, (3,), jnp.float64, 0.9, 1.1)
        return jax.tree.map(lambda leaf: scale * leaf.astype(jnp.float64), uniform_layer(key, (81, 9)))

    def loss(theta: PyTree, data: Data) -> tuple[jax.Array, jax.Array]:
        r, nfe = positions(theta, data.start, data.ts, 1.0)
        return jnp.mean(fading**data.ts * squares(r, data.r)), nfe

    def predict(theta: PyTree, data: Data) -> tuple[jax.Array, jax.Array]:
        return positions(theta, data.start, data.test_ts, 2.0)

    def passes(theta: PyTree, data: Data) -> dict[str, int]:
        end = lambda field, state, theta: (
            solve(field, state, theta, solver=solver, gradient=GRADIENTS[gradient], ts=data.ts).x[0]
        )
        loss = lambda r: jnp.mean(fading**data.ts * squares(r, data.r))
        return count_passes(end, field, (data.start.r, data.start.v), theta, loss)

    made = Model(init, loss, predict, passes=passes)
    return made._replace(track=lambda theta: theta) if name == "ode" else made


class Recurrent(nn.Module):
    """An LSTM that says the next positions after each of those it reads.

    Attributes:
      width: of its state.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, carry: Any = None) -> tuple[Any, jax.Array]:
        """`[..., n, inputs]` to its state and `[..., n, 9]`."""
        carry, h = nn.RNN(nn.OptimizedLSTMCell(self.width), return_carry=True)(x, initial_carry=carry)
        return carry, nn.Dense(9)(h)


def recurrent(augmented: bool, width: int) -> Model:
    """An LSTM, float32, on positions or on the augmented input, each input standardized over the training span."""
    net = Recurrent(width)

    def inputs(r: jax.Array, data: Data) -> jax.Array:
        raw = lambda r: three_bodies.augmented(r) if augmented else r.reshape(*r.shape[:-2], 9)
        seen = raw(data.r)
        return ((raw(r) - seen.mean(0)) / (seen.std(0) + 1e-6)).astype(jnp.float32)

    def init(key: jax.Array) -> PyTree:
        return net.init(key, jnp.zeros((SEQUENCE, 81 if augmented else 9), jnp.float32))

    def loss(theta: PyTree, data: Data) -> tuple[jax.Array, jax.Array]:
        r = data.r.reshape(-1, SEQUENCE, 3, 3)
        _, said = net.apply(theta, inputs(r[:, :-1], data))
        target = r[:, 1:].astype(jnp.float32)
        return jnp.mean(squares(said.reshape(target.shape), target)), jnp.int32(0)

    def predict(theta: PyTree, data: Data) -> tuple[jax.Array, jax.Array]:
        carry, said = net.apply(theta, inputs(data.test_r[:FED], data))

        def onwards(carry: Any, _: None) -> Any:
            state, r = carry
            state, said = net.apply(theta, inputs(r.reshape(1, 3, 3), data), state)
            return (state, said[0]), r

        n = len(data.test_r) - FED
        _, free = jax.lax.scan(onwards, (carry, said[-1]), None, length=n)
        said = jnp.concatenate([said[:-1], free]).reshape(-1, 3, 3)
        return jnp.concatenate([data.test_r[:1], said]), jnp.int32(0)

    return Model(init, loss, predict)


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """Adam, with learning_rate * decay^epoch, an update an epoch."""

    epochs: int
    learning_rate: float
    decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fading: float = 1.0
    """Of the loss of ODEs."""
    scale: float = 1.0
    """Of the first layer of NODE, beside PyTorch's."""

    def optimizer(self, epochs: int) -> optax.GradientTransformation:
        """Leaves out updates that are not finite, and counts them."""
        schedule = optax.exponential_decay(self.learning_rate, 1, self.decay)
        return optax.apply_if_finite(optax.adam(schedule, *self.betas, self.eps), epochs)


def recipe(name: ModelName, preset: Preset) -> Recipe:
    """Table 8; of the published code, which has ODEs alone, for these; or slower ones, of our own.

    One update at a rate of 0.1 moves each sum of NODE's 81 inputs by eight times their size.
    """
    if name.startswith("lstm"):
        return Recipe(5000, 0.01, 0.999)
    return {
        "paper": Recipe(100, 0.1, 0.99),
        "code": Recipe(100, 0.1, 0.95, (0.5, 0.5), 1e-7, 0.01),
        "slow": Recipe(100, 0.01, 0.955, scale=0.1),
    }[preset]


def model(name: ModelName, gradient: GradientName, recipe: Recipe, width: int) -> Model:
    """By name."""
    if name == "node" or name == "ode":
        return mechanics(name, gradient, recipe.fading, recipe.scale)
    return recurrent(name == "lstm_aug", width)


class Trained(NamedTuple):
    """The outcome of one seed; of several with a leading axis."""

    theta: PyTree
    """At the smallest training loss."""
    best: jax.Array
    losses: jax.Array
    """Before each update, `[epochs]`."""
    nfe: jax.Array
    """Likewise, of the forward solve."""
    tracked: jax.Array
    skipped: jax.Array
    """Epochs whose solve or gradient failed."""


@partial(jax.jit, static_argnums=(0, 1, 2))
def train(model: Model, recipe: Recipe, epochs: int, data: Data, keys: jax.Array) -> Trained:
    """Train one model a key.

    After an epoch whose solve or gradient fails, training goes on from the best weights so far: nothing in it is
    random, and it would fail again.
    """
    optimizer = recipe.optimizer(epochs)

    def one(key: jax.Array) -> Trained:
        def epoch(carry: Any, _: None) -> Any:
            theta, state, best, best_theta = carry
            (loss, nfe), slope = jax.value_and_grad(model.loss, has_aux=True)(theta, data)
            # The gradient of a loss that is not a number may be zero.
            slope = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(loss), leaf, jnp.nan), slope)
            updates, state = optimizer.update(slope, state, theta)
            better = loss < best
            kept = jax.tree.map(partial(jnp.where, better), theta, best_theta)
            base = jax.tree.map(partial(jnp.where, state.last_finite), theta, kept)
            after = (optax.apply_updates(base, updates), state, jnp.where(better, loss, best), kept)
            return after, (loss, nfe, model.track(theta))

        theta = model.init(key)
        carry = (theta, optimizer.init(theta), jnp.asarray(jnp.inf, data_dtype(theta)), theta)
        (_, state, best, theta), (losses, nfe, tracked) = jax.lax.scan(epoch, carry, None, length=epochs)
        return Trained(theta, best, losses, nfe, tracked, state.total_notfinite)

    return jax.vmap(one)(keys)


def data_dtype(theta: PyTree) -> Any:
    """Of weights, and of losses."""
    return jax.tree.leaves(theta)[0].dtype


@partial(jax.jit, static_argnums=0)
def predict(model: Model, thetas: PyTree, data: Data) -> tuple[jax.Array, jax.Array]:
    """Positions at the times of the test, `[seeds, 2 points, 3, 3]`, and their squared errors `[seeds, 2 points]`."""
    r, _ = jax.vmap(model.predict, (0, None))(thetas, data)
    return r, squares(r, data.test_r)


def middle(errors: np.ndarray) -> int:
    """The seed with the median error."""
    return int(np.argsort(errors)[len(errors) // 2])
