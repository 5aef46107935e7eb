"""Loss and gradient of a batch: on one device, or spread over the devices of a mesh by `jax.shard_map`.

Parameters enter the program of each device once, their cotangents add up there, and one reduction after all loops sums
them over the devices, together with loss, hits and running statistics. What is global over a batch inside the loops is
reduced by name: `batch_statistics` and `step_control` of a config say what is.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from experiments.records.files import RunError
from experiments.training import adapt, regularize
from experiments.training.config import Config
from experiments.training.models import training
from ode_nets.integrate import Adaptive
from ode_nets.nn import regularization

PyTree = Any
AXIS = "data"
"""The mesh axis that a batch is spread over."""


def shared(config: Config, net: Any, batch_stats: PyTree) -> Any:
    """The net with what is global over a batch reduced over the axis.

    Raises:
      RunError: for a network of the user's own that keeps batch statistics and cannot be told of the axis.
    """
    if config.batch_statistics == "global" and hasattr(net, "axis_name"):
        net = net.clone(axis_name=AXIS)
    elif config.batch_statistics == "global" and batch_stats:
        raise RunError(
            f"a {type(net).__name__} has no axis_name to share batch statistics by, expected an attribute that it "
            "hands to its batch norms; or give --batch-statistics local"
        )
    if config.step_control == "global" and isinstance(getattr(net, "solver", None), Adaptive):
        net = net.clone(solver=dataclasses.replace(net.solver, axis_name=AXIS))
    return net


def by_block(collection: PyTree, path: str = "") -> dict[str, PyTree]:
    """What ODE blocks hand out, by the path of each in the net."""
    if not any(isinstance(value, dict) for value in collection.values()):
        return {path: collection} if collection else {}
    found: dict[str, PyTree] = {}
    for name, inner in collection.items():
        found |= by_block(inner, f"{path}/{name}" if path else name)
    return found


def slope_of_batch(
    config: Config, net: nn.Module, mesh: Mesh | None, state: PyTree, x: jax.Array, y: jax.Array, key: jax.Array
) -> tuple[PyTree, Any]:
    """Gradient, and mean loss, hits, running statistics and what the solver of each block counted.

    Args:
      mesh: of one axis, `data`; `None` for one device.
      x, y: normalized images and labels of the batch.
      key: of the random signs of a Jacobian's penalty, of which each device draws its own.

    Counts and result codes are those of the device with the largest.
    """
    part = {name: state[name] for name in ("params", "batch_stats", "adaptation") if name in state}
    if mesh is None or mesh.size == 1:
        return _own(config, net, 1, part, x, y, key)
    everywhere, spread = PartitionSpec(), PartitionSpec(AXIS)
    joined = shared(config, net, state["batch_stats"])

    @partial(jax.shard_map, mesh=mesh, in_specs=(everywhere, spread, spread, everywhere), out_specs=everywhere)
    def of_device(part: PyTree, x: jax.Array, y: jax.Array, key: jax.Array) -> tuple[PyTree, Any]:
        # From here on they are each device's own, and no sum over devices waits for their cotangents.
        part |= jax.lax.pcast({name: part[name] for name in ("params", "batch_stats")}, AXIS, to="varying")
        key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        gradient, (loss, correct, stats, solution) = _own(config, joined, mesh.size, part, x, y, key)
        # In one dtype, so that one reduction takes them all.
        share = jax.tree.map(lambda leaf: leaf / mesh.size, (loss, stats))
        gradient, (loss, stats), correct = jax.lax.psum((gradient, share, correct.astype(loss.dtype)), AXIS)
        return gradient, (loss, correct, stats, jax.lax.pmax(solution, AXIS))

    return of_device(part, x, y, key)


def _own(
    config: Config, net: nn.Module, n_devices: int, part: PyTree, x: jax.Array, y: jax.Array, key: jax.Array
) -> tuple[PyTree, Any]:
    weights = regularize.weights_of(config.regularize)
    net = adapt.solved(net, part.get("adaptation"), config.adapt_max_steps)
    adapted = regularize.measured(net, weights)

    def objective(params: PyTree) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": part["batch_stats"]}
        collections, rngs = ["batch_stats", "solution", "quantities"], {"quantities": jax.random.fold_in(key, 1)}
        rngs["dropout"] = jax.random.fold_in(key, 2)
        logits, changed = adapted.apply(variables, x, **training(net), mutable=collections, rngs=rngs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        correct = jnp.sum(jnp.argmax(logits, -1) == y)
        penalty = regularization(params, config.w0_penalty, config.p_penalty)
        penalty += regularize.penalty(weights, {"quantities": by_block(changed.get("quantities", {}))})
        if config.label_smoothing:
            # (1 - a) log p_label + a mean log p differs from log p_label by a times their difference.
            penalty += config.label_smoothing * (-jax.nn.log_softmax(logits).mean() - loss)
        stats, solution = changed.get("batch_stats", {}), by_block(changed.get("solution", {}))
        # The devices' sum is the mean over the batch.
        return (loss + penalty) / n_devices, (loss, correct, stats, solution)

    return jax.grad(objective, has_aux=True)(part["params"])
