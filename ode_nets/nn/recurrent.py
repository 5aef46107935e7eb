"""Recurrent networks over series with irregular times and missing values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from ode_nets.arguments import Count, Rule, checked
from ode_nets.gradients import GradientMethod, solve
from ode_nets.integrate import FixedStep
from ode_nets.nn.linen import as_unit

PyTree = Any
Times = Annotated[
    Real[Array, "n"], Rule("times [n] of all series; take jax.vmap where every series has times of its own")
]
Values = Float[Array, "*lanes n features"]
Mask = Bool[Array, "*lanes n features"]
NORMAL = nn.initializers.normal(0.1)
"""Of the kernels of dense layers of latent ODEs; their biases start at 0."""


class Gaussian(NamedTuple):
    """Mean and standard deviation, of one shape.

    Example:
        >>> Gaussian(jnp.zeros(3), jnp.ones(3)).std
        Array([1., 1., 1.], dtype=float32)
    """

    mean: jax.Array
    std: jax.Array


@checked
def recur(
    update: Callable[[PyTree, jax.Array], PyTree],
    flow: Callable[[PyTree, Any, Any], PyTree],
    state: PyTree,
    times: Times,
    values: Values,
    mask: Mask,
    *,
    backward: bool = False,
) -> tuple[PyTree, PyTree]:
    """A state along a series: it flows from time to time, and is updated where something was observed.

        s_k- = flow(s_{k-1}, t_{k-1}, t_k - t_{k-1}),  s_k = update(s_k-, [v_k, m_k]) where any of m_k, else s_k-

    Args:
      update: takes a state and the values and mask of one time, `[..., 2 * features]`; masked values are 0.
      flow: takes a state, a time, and how far to go from there, which is negative backward in time.
      state: before anything, leaves `[..., s]`.
      times: `[n]`, ascending. values, mask: `[..., n, features]`, the mask boolean: what was observed.
      backward: whether to begin with the last time.

    Returns:
      The state after the last update; and those before each update, leaves `[..., n, s]`, in the order of the times.

    Example:
        >>> values = jnp.ones((3, 1))
        >>> add, stay = (lambda s, x: s + x[..., :1]), (lambda s, t, dt: s)
        >>> recur(add, stay, jnp.zeros(1), jnp.arange(3.0), values, values > 0)[0]
        Array([3.], dtype=float32)
    """
    inputs = jnp.concatenate([jnp.where(mask, values, 0), mask.astype(values.dtype)], axis=-1)
    seen = mask.any(-1, keepdims=True)
    before = jnp.concatenate([times[:1], times[:-1]]) if not backward else jnp.concatenate([times[1:], times[-1:]])
    rows = (before, times - before, jnp.moveaxis(inputs, -2, 0), jnp.moveaxis(seen, -2, 0))
    # Values in half or double precision make states of another dtype than the first.
    after = jax.eval_shape(lambda s, x: update(s, x), state, inputs[..., 0, :])
    state = jax.tree.map(lambda s, new: s.astype(jnp.promote_types(s.dtype, new.dtype)), state, after)

    def body(state: PyTree, row: Any) -> tuple[PyTree, PyTree]:
        t, gap, x, seen = row
        state = flow(state, t, gap)
        updated = update(state, x)
        return jax.tree.map(lambda new, old: jnp.where(seen, new, old).astype(old.dtype), updated, state), state

    end, arrived = jax.lax.scan(body, state, rows, reverse=backward)
    return end, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), arrived)


class Perceptron(nn.Module):
    """Dense layers with tanh between them, from N(0, 0.1^2) and biases of 0.

    Attributes:
      widths: of the layers, the last of which has no activation.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., inputs]` to `[..., widths[-1]]`."""
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=NORMAL)(jnp.tanh(x) if i else x)
        return x


@checked
class GaussianGRU(nn.Module):
    """A gated update of a state that has a mean and a deviation (Rubanova et al. 2019, latent ODE encoder).

        u, r = sigmoid(net(m, s, x));  m', s' = net(r m, r s, x);  m <- (1 - u) m' + u m,  s <- |(1 - u) |s'| + u s|

    Attributes:
      units: width of the hidden layer of each of the three nets.

    Example:
        >>> gru, state = GaussianGRU(8), Gaussian(jnp.zeros((5, 3)), jnp.zeros((5, 3)))
        >>> variables = gru.init(jax.random.key(0), state, jnp.ones((5, 4)))
        >>> gru.apply(variables, state, jnp.ones((5, 4))).mean.shape
        (5, 3)
    """

    units: Count = 100

    @nn.compact
    def __call__(self, state: Gaussian, x: jax.Array) -> Gaussian:
        """The state, leaves `[..., s]`, after an observation `[..., inputs]`."""
        mean, std = state
        size = mean.shape[-1]
        read = jnp.concatenate([mean, std, x], axis=-1)
        keep = jax.nn.sigmoid(Perceptron((self.units, size), name="keep")(read))
        reset = jax.nn.sigmoid(Perceptron((self.units, size), name="reset")(read))
        read = jnp.concatenate([reset * mean, reset * std, x], axis=-1)
        new_mean, new_std = jnp.split(Perceptron((self.units, 2 * size), name="new")(read), 2, axis=-1)
        new_std = (1 - keep) * jnp.abs(new_std) + keep * std
        return Gaussian((1 - keep) * new_mean + keep * mean, jnp.abs(new_std))


@checked
class OdeRnn(nn.Module):
    """What a series says of its latent state at its first time: an ODE-RNN that runs backward in time.

    Between times the mean of its state follows an ODE, dm/dt = R(m); at each time where something was observed a cell
    updates mean and deviation (Rubanova et al. 2019, sec. 3). What stands in masked entries does not matter.

    Attributes:
      latent: length of the latent state.
      unit: the right-hand side R: a `Unit`, or a `flax.linen` module; `None` lets the state stay as it is.
      cell: what updates: a module that takes and gives a `Gaussian`.
      size: length of the encoder's own state.
      units: width of the hidden layer between that state and the answer.
      solver, gradient: of the ODE from each time to the one before, on a unit of time: `FixedStep("euler", 1)` is one
        step a gap. Gaps that are long for the field are filled with times at which nothing was observed, which changes
        nothing but the steps.

    Example:
        >>> from ode_nets import MLP
        >>> encoder = OdeRnn(2, MLP(3), GaussianGRU(8), size=3)
        >>> times, values = jnp.array([0.0, 0.3, 1.0]), jnp.ones((5, 3, 4))
        >>> variables = encoder.init(jax.random.key(0), times, values, values > 0)
        >>> encoder.apply(variables, times, values, values > 0).std.shape
        (5, 2)
    """

    latent: Count
    unit: Any = None
    cell: nn.Module = GaussianGRU()
    size: Count = 30
    units: Count = 100
    solver: Any = FixedStep("euler", 1)
    gradient: GradientMethod | None = None

    @checked
    @nn.compact
    def __call__(self, times: Times, values: Values, mask: Mask) -> Gaussian:
        """Mean and deviation of the latent state at `times[0]`, `[..., latent]`.

        Args:
          times: `[n]`, ascending, equal ones allowed. values: `[..., n, features]`.
          mask: boolean, like `values`: what was observed.

        Raises:
          ValueError: at trace time, for shapes that do not fit.
        """
        zeros = jnp.zeros((*values.shape[:-2], self.size), values.dtype)
        x = jnp.zeros((*values.shape[:-2], 2 * values.shape[-1]), values.dtype)
        # Their parameters go into the loop as values.
        cell: Any = self.cell.clone(parent=None, name=None)
        params = self.param("update", lambda key: cell.init(key, Gaussian(zeros, zeros), x)["params"])
        flow = lambda state, t, gap: state
        if self.unit is not None:
            unit = as_unit(self.unit, zeros.reshape(-1, self.size))
            theta = self.param("field", unit.init)
            flow = lambda state, t, gap: state._replace(mean=self._moved(unit, theta, state.mean, t, gap))
        update = lambda state, x: cell.apply({"params": params}, state, x)
        state, _ = recur(update, flow, Gaussian(zeros, zeros), times, values, mask, backward=True)
        y = Perceptron((self.units, 2 * self.latent), name="head")(jnp.concatenate(state, axis=-1))
        mean, std = jnp.split(y, 2, axis=-1)
        # A series of which nothing was observed would have a deviation of 0, whose logarithm is no number.
        return Gaussian(mean, jnp.abs(std) + 1e-6)

    def _moved(self, unit: Any, theta: PyTree, mean: jax.Array, t: Any, gap: Any) -> jax.Array:
        """The mean after a gap, on a unit of time, so that gaps of no length and padded ones are like others."""

        def field(s: Any, m: jax.Array, theta: PyTree) -> jax.Array:
            dm, _ = unit.apply(theta, m, t + s * gap, {})
            return (gap * dm).astype(m.dtype)

        return solve(field, mean, theta, solver=self.solver, gradient=self.gradient).x


@checked
class RecurrentNet(nn.Module):
    """A plain recurrent network over a series, which predicts each value from the observations before it.

    The baselines of latent ODEs: the time since the last observation is an input (RNN), or makes the state decay, by
    learned rates, as in GRU-D (Che et al. 2018).

        h <- cell(h exp(-relu(w d + b)), [v, m, d]),  d the time since the last observation, w and b of `decay`

    Attributes:
      cell: a cell of `flax.linen` whose carry is one array, such as `nn.GRUCell(100)` or `nn.SimpleCell(100)`.
      decay: whether the state decays between observations.
      units: width of the hidden layer between state and prediction.

    Example:
        >>> net, times, values = RecurrentNet(nn.GRUCell(8)), jnp.array([0.0, 0.3, 1.0]), jnp.ones((5, 3, 4))
        >>> variables = net.init(jax.random.key(0), times, values, values > 0)
        >>> net.apply(variables, times, values, values > 0).shape
        (5, 3, 4)
    """

    cell: Any
    decay: bool = False
    units: Count = 100

    @checked
    @nn.compact
    def __call__(self, times: Times, values: Values, mask: Mask) -> Values:
        """Predictions, `[..., n, features]`; the arguments are those of `OdeRnn`."""
        lead, features = values.shape[:-2], values.shape[-1]
        since, x = jnp.zeros((*lead, 1), values.dtype), jnp.zeros((*lead, 2 * features + 1), values.dtype)
        cell: Any = self.cell.clone(parent=None, name=None)
        h = cell.initialize_carry(jax.random.key(0), x.shape)
        params = self.param("update", lambda key: cell.init(key, h, x)["params"])
        if self.decay:
            rate = self.param("rate", NORMAL, (1, h.shape[-1])), self.param("bias", nn.initializers.zeros, h.shape[-1:])
        faded = lambda h, since: h * jnp.exp(-jax.nn.relu(since @ rate[0] + rate[1])) if self.decay else h

        def update(state: PyTree, x: jax.Array) -> PyTree:
            h, since = state
            x = jnp.concatenate([x, since], axis=-1)
            return cell.apply({"params": params}, faded(h, since), x)[0], jnp.zeros_like(since)

        flow = lambda state, t, gap: (state[0], (state[1] + gap).astype(state[1].dtype))
        _, (before, since) = recur(update, flow, (h, since), times, values, mask)
        read = jnp.concatenate([faded(before, since), since], axis=-1)
        return Perceptron((self.units, features), name="head")(read)
