# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ACA in a diffrax model
#
# A model of [equinox](https://docs.kidger.site/equinox/) that is solved by
# [diffrax](https://docs.kidger.site/diffrax/) stays as it is. One argument, `adjoint`, changes how it is
# differentiated: the adaptive checkpoint adjoint goes back over the steps that were accepted, and over nothing else.

# %%
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from ode_nets.interop.diffrax import AdaptiveCheckpointAdjoint


class NeuralODE(eqx.Module):
    """Neural ODE of diffrax's documentation, with the adjoint as an argument."""

    field: eqx.nn.MLP

    def __init__(self, key):
        self.field = eqx.nn.MLP(2, 2, 32, 2, activation=jax.nn.softplus, key=key)

    def __call__(self, ts, y0, adjoint):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: self.field(y)),
            diffrax.Tsit5(),
            t0=ts[0],
            t1=ts[-1],
            dt0=None,
            y0=y0,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
            adjoint=adjoint,
        )
        return solution.ys


# %% [markdown]
# Sixteen spirals, observed at ten times:

# %%
ts = jnp.linspace(0.0, 3.0, 10)
angles = jnp.linspace(0.0, 2 * jnp.pi, 16, endpoint=False)[:, None] + 2 * ts
data = jnp.exp(-ts / 3)[:, None] * jnp.stack(
    [jnp.cos(angles), jnp.sin(angles)], axis=-1
)


def loss_of(model, adjoint):
    found = jax.vmap(lambda y0: model(ts, y0, adjoint))(data[:, 0])
    return jnp.mean((found - data) ** 2)


# %% [markdown]
# ## The gradient is the same
#
# diffrax's default differentiates the same steps, so that the two agree to rounding.

# %%
model = NeuralODE(jax.random.key(0))
aca, default = AdaptiveCheckpointAdjoint(), diffrax.RecursiveCheckpointAdjoint()
slopes = [
    eqx.filter_jit(eqx.filter_grad(loss_of))(model, adjoint)
    for adjoint in (aca, default)
]
first, second = (
    jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slope)])
    for slope in slopes
)
difference = jnp.linalg.norm(first - second) / jnp.linalg.norm(second)
print(
    f"{first.size:,} parameters, relative difference of the gradients {difference:.1e}"
)
assert difference < 1e-4

# %% [markdown]
# ## Training

# %%
optimizer = optax.adam(1e-2)
params, static = eqx.partition(model, eqx.is_inexact_array)


def step(carry, _):
    params, state = carry
    loss, slope = jax.value_and_grad(
        lambda params: loss_of(eqx.combine(params, static), aca)
    )(params)
    updates, state = optimizer.update(slope, state)
    return (optax.apply_updates(params, updates), state), loss


train = jax.jit(
    lambda params: jax.lax.scan(step, (params, optimizer.init(params)), None, 200)
)
(params, _), losses = train(params)
model = eqx.combine(params, static)
print(f"mean squared error {losses[0]:.3f} -> {losses[-1]:.1e}")
assert losses[-1] < 1e-2 * losses[0]

# %%
fine = jnp.linspace(0.0, 3.0, 100)
learned = jax.jit(jax.vmap(lambda y0: model(fine, y0, aca)))(data[:, 0])
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.semilogy(losses)
left.set(xlabel="iteration", ylabel="mean squared error")
for i in range(4):
    right.plot(*data[4 * i].T, f"C{i}o", ms=3)
    right.plot(*learned[4 * i].T, f"C{i}-")
right.set(
    xlabel="$y_1$",
    ylabel="$y_2$",
    title="observed (points) and learned",
    aspect="equal",
)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# What it costs beside diffrax's default, for one solve and for thousands, is measured in
# [ensembles](../guides/ensembles.md); the other ways between the two libraries are in [from
# diffrax](../guides/diffrax.md).
