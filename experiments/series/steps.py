"""One training step, the evaluation of a batch, and predictions, each compiled once for a config."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.series.config import SeriesConfig
from ode_nets import Paths, gaussian_kl, gaussian_log_likelihood, importance_bound

PyTree = Any


def observe(key: jax.Array, mask: jax.Array, share: float) -> jax.Array:
    """What an encoder sees: of each series a random share of the times at which something was observed, at least one.

    Args:
      mask: `[batch, n, features]`.
    """
    there = mask.any(-1)
    score = jnp.where(there, jax.random.uniform(key, there.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score, axis=-1), axis=-1)
    n = jnp.maximum(1, jnp.round(share * there.sum(-1, keepdims=True)))
    return mask & (rank < n)[..., None]


def predict(
    config: SeriesConfig, params: PyTree, times: jax.Array, values: jax.Array, seen: jax.Array, key: jax.Array,
    ts: jax.Array | None = None,
) -> Paths:  # fmt: skip
    """Samples of predictions `[samples, batch, m, features]`; of a baseline one, at the observed times."""
    net: Any = config.build(values.shape[-1])
    if config.net != "latent_ode":
        apply = lambda times, values, seen: net.apply({"params": params}, times, values, seen)
        own = apply if times.ndim == 1 else jax.vmap(apply)
        return Paths(None, own(times, values, seen)[None])

    def paths(times: jax.Array, values: jax.Array, seen: jax.Array, key: jax.Array) -> Paths:
        rngs = {"latent": key}
        return net.apply({"params": params}, times, values, seen, ts, n_samples=config.n_samples, rngs=rngs)

    if times.ndim == 1:
        return paths(times, values, seen, key)
    return jax.vmap(paths, out_axes=Paths(0, 1))(times, values, seen, jax.random.split(key, len(values)))


def batch_of(data: PyTree, index: jax.Array) -> PyTree:
    """Times, values and mask of some series."""
    times, values, mask = data
    return times if times.ndim == 1 else times[index], values[index], mask[index]


def init_state(config: SeriesConfig, data: PyTree) -> PyTree:
    """A new training state."""
    times, values, mask = batch_of(data, jnp.arange(1))
    net: Any = config.build(values.shape[-1])
    keys = dict(zip(("params", "latent"), jax.random.split(jax.random.key(config.seed)), strict=True))
    params = net.init(keys, times if times.ndim == 1 else times[0], values, mask)["params"]
    sums = {"loss": jnp.float32(0), "bad_step": jnp.int32(0)}
    return {"params": params, "opt_state": config.optimizer().init(params), "step": jnp.int32(0), **sums}


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(config: SeriesConfig, state: PyTree, data: PyTree, order: jax.Array) -> tuple[PyTree, PyTree]:
    """One step on the batch that `state["step"]` points to in `order`, `[steps_per_epoch, batch_size]`.

    Returns:
      The new state, and its metrics: `loss`, summed over the epoch, and `bad_step`, the first step, counted from 1,
      after which something was not finite, or 0.
    """
    step = state["step"]
    epoch, in_epoch = step // order.shape[0], step % order.shape[0]
    times, values, mask = batch_of(data, order[in_epoch])
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    seen = observe(keys[0], mask, config.observed)
    weight = 1 - 0.99 ** jnp.maximum(epoch - config.kl_wait, 0).astype(jnp.float32)

    def loss_of(params: PyTree) -> jax.Array:
        paths = predict(config, params, times, values, seen, keys[1])
        likelihood = gaussian_log_likelihood(paths.x, values, mask, config.sigma).mean(1)
        kl = jnp.zeros(()) if paths.z0 is None else gaussian_kl(*paths.z0).mean()
        return -importance_bound(likelihood, kl, weight)

    loss, gradient = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = config.optimizer().update(gradient, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    good = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, params))]).all()
    metrics = {
        "loss": jnp.where(in_epoch == 0, 0, state["loss"]) + loss,
        "bad_step": jnp.where((state["bad_step"] == 0) & ~good, step + 1, state["bad_step"]),
    }
    return {"params": params, "opt_state": opt_state, "step": step + 1, **metrics}, metrics


@partial(jax.jit, static_argnames="config")
def evaluate_batch(
    config: SeriesConfig, params: PyTree, data: PyTree, index: jax.Array, counts: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Summed squared error over samples and observed values, and how many these are; a series counts where `counts`.

    Series whose predictions are not finite are left out, and counted: the third.
    """
    times, values, mask = batch_of(data, index)
    keys = jax.random.split(key)
    x = predict(config, params, times, values, observe(keys[0], mask, config.observed), keys[1]).x
    finite = jnp.isfinite(x).all((0, 2, 3))
    wanted = mask & (counts & finite)[:, None, None]
    return jnp.sum(jnp.where(wanted, x - values, 0) ** 2), x.shape[0] * wanted.sum(), jnp.sum(counts & ~finite)
