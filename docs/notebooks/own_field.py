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
# # A field of your own
#
# Any pure function `field(t, x, theta) -> dx` can be solved and fitted. Here it is that of predators and prey, whose
# four rates are found from noisy observations, and then a network takes the place of a term that is not known.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import ode_nets as on


def field(t, x, rates):
    """Lotka and Volterra: prey that grow and are eaten, predators that grow by eating and die."""
    prey, predators = x
    grown, eaten, bred, dead = rates
    return jnp.array(
        [
            grown * prey - eaten * prey * predators,
            bred * prey * predators - dead * predators,
        ]
    )


true, x0, ts = (
    jnp.array([1.1, 0.4, 0.1, 0.4]),
    jnp.array([10.0, 5.0]),
    jnp.linspace(0.0, 15.0, 31),
)
solver = on.Adaptive("tsit5", rtol=1e-5, atol=1e-5)
solution = on.solve(field, x0, true, solver=solver, t1=15.0, ts=ts)
data = solution.x * (
    1 + 0.05 * jax.random.normal(jax.random.key(0), solution.x.shape)
)
print(solution)

# %% [markdown]
# ## Fitting
#
# `gradient` says how the solve is differentiated; the default here is `ACA()`. All ways agree on a smooth problem,
# and cost differently ([what works with what](../how.md#what-works-with-what)).


# %%
def loss_of(rates, gradient=None):
    states = on.solve(
        field, x0, rates, solver=solver, gradient=gradient, t1=15.0, ts=ts
    ).x
    return jnp.mean((states - data) ** 2)


guess = jnp.array([1.0, 0.3, 0.12, 0.5])
slopes = {
    method: jax.jit(jax.grad(partial(loss_of, gradient=method)))(guess)
    for method in (on.ACA(), on.Backsolve())
}
for method, slope in slopes.items():
    print(f"{method!r:16}", slope)
aca, backsolve = slopes.values()
assert jnp.linalg.norm(aca - backsolve) < 1e-2 * jnp.linalg.norm(aca)


def fit(loss_of, theta, n_iterations, learning_rate):
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, n_iterations))

    def step(carry, _):
        theta, state = carry
        loss, slope = jax.value_and_grad(loss_of)(theta)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(theta, updates), state), loss

    (theta, _), losses = jax.jit(
        lambda theta: jax.lax.scan(
            step, (theta, optimizer.init(theta)), None, n_iterations
        )
    )(theta)
    return theta, losses


rates, losses = fit(loss_of, guess, 300, 3e-2)
print("found", rates, "of", true)
assert jnp.all(jnp.abs(rates / true - 1) < 0.1)

# %% [markdown]
# ## A network in place of what is not known
#
# Say that how many prey a predator meets is not known. A number that a small `MLP` computes stands for it, the rest
# of the law stays; parameters are any pytree. It is fitted from each observation to the next, all at once: a batch is
# a leading axis of the state.

# %%
meeting = on.MLP(size=2, hidden=(8,))


def hybrid(t, x, theta):
    prey, predators = x[..., 0], x[..., 1]
    grown, bred, dead = jnp.exp(theta["rates"])
    met = jax.nn.softplus(meeting(t, x / 10, theta["meeting"])[..., 0]) * prey
    return jnp.stack([grown * prey - met, bred * met - dead * predators], axis=-1)


observed = jnp.concatenate([x0[None], data[1:]])


def hybrid_loss(theta):
    step = on.solve(
        hybrid,
        observed[:-1],
        theta,
        solver=on.FixedStep("rk4", 4),
        gradient=on.Checkpointed(),
        t1=0.5,
    ).x
    return jnp.mean((step / observed[1:] - 1) ** 2)


start = {
    "rates": jnp.log(jnp.array([1.0, 0.12, 0.5])),
    "meeting": meeting.init(jax.random.key(1)),
}
theta, hybrid_losses = fit(hybrid_loss, start, 3000, 1e-2)
error = jnp.sqrt(hybrid_losses[-1])
print(
    f"relative error to the next observation: {jnp.sqrt(hybrid_losses[0]):.2f} -> {error:.3f}; noise is 0.05"
)
assert error < 0.1

# %%
fine = jnp.linspace(0.0, 15.0, 301)
fig, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for i, name in enumerate(("prey", "predators")):
    axes.plot(ts, data[:, i], f"C{i}o", ms=4, label=f"{name}, observed")
    fitted = on.solve(field, x0, rates, solver=solver, t1=15.0, ts=fine).x
    axes.plot(fine, fitted[:, i], f"C{i}-", label=f"{name}, law fitted")
    learned = on.solve(hybrid, x0, theta, solver=solver, t1=15.0, ts=fine).x
    axes.plot(
        fine, learned[:, i], "k--", lw=1, label="with a network" if i else None
    )
axes.set(xlabel="time", ylabel="individuals")
fig.legend(frameon=False, ncols=3, loc="outside upper center", fontsize=9)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The network was fitted from one observation to the next, through four RK4 steps, and is drawn from the start alone,
# with adaptive ones. Whether a model can be run with other steps at all is what [is it an ODE?](is_it_an_ode.md)
# asks. As part of a Flax network a field of your own goes into an [`OdeBlock`](../guides/own-model.md).
