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
# # Solver swap
#
# A small network is trained through two RK4 steps, and its weights are then run under other schemes and step counts:
# what can be exchanged without training again. See [one network, many manifestations](../guides/manifestations.md).

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import ode_nets as on

# %% [markdown]
# 1,797 handwritten digits of 8 x 8 pixels, the last 360 for testing. The network is a linear layer, an ODE block
# whose θ(t) is piecewise constant on two intervals, and a linear layer. What makes it exchangeable is that `basis`,
# `solver` and `gradient` are attributes that it hands to its block.

# %%
digits = load_digits()
x, y = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
x_train, y_train, x_test, y_test = x[:-360], y[:-360], x[-360:], y[-360:]


class Net(nn.Module):
    basis: on.Basis = on.PiecewiseConstant(2)
    solver: on.FixedStep = on.FixedStep("rk4", 2)
    gradient: on.GradientMethod = on.Checkpointed()

    @nn.compact
    def __call__(self, pixels):
        state = nn.Dense(16)(pixels)
        state = on.OdeBlock(
            on.MLP(16, (32,)), self.basis, self.solver, self.gradient
        )(state)
        return nn.Dense(10)(state)


net = Net()
variables = net.init(jax.random.key(0), x_train[:1])
optimizer = optax.adam(3e-3)


def loss_of(params, pixels, labels):
    logits = net.apply({**variables, "params": params}, pixels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train(params, key):
    """1,500 steps of Adam on random batches of 64."""

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (64,), 0, len(x_train))
        loss, slope = jax.value_and_grad(loss_of)(
            params, x_train[batch], y_train[batch]
        )
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.lax.scan(
        step, (params, optimizer.init(params)), jax.random.split(key, 1500)
    )
    return params, losses


params, losses = train(variables["params"], jax.random.key(1))
variables = {**variables, "params": params}
accuracy = (net.apply(variables, x_test).argmax(-1) == y_test).mean()
print(
    f"loss {losses[0]:.2f} -> {losses[-100:].mean():.4f}, test accuracy {accuracy:.3f} under {net.solver}"
)
assert accuracy > 0.9

# %% [markdown]
# ## The same weights under other solvers
#
# One manifestation by hand is a clone of the description, applied to the same variables:

# %%
halved = net.clone(solver=on.FixedStep("midpoint", 1))
print(
    f"{(halved.apply(variables, x_test).argmax(-1) == y_test).mean():.3f} under {halved.solver}"
)

# %% [markdown]
# A whole grid is one compiled program, to which schemes and step counts are arrays:

# %%
schemes, counts = ("euler", "midpoint", "rk4"), (1, 2, 3, 4, 6, 8)
solvers = [on.FixedStep(scheme, n) for scheme in schemes for n in counts]


def wrong(logits, labels):
    return jnp.sum(logits.argmax(-1) != labels)


scores, _ = on.swap_solvers(
    net, variables, solvers, lambda: [(x_test, y_test)], wrong
)
errors = 100 * np.reshape(scores, (len(schemes), len(counts))) / len(x_test)

print("N_t      " + "".join(f"{n:>7}" for n in counts))
for scheme, row in zip(schemes, errors, strict=True):
    print(f"{scheme:9}" + "".join(f"{error:6.1f}%" for error in row))
own = errors[schemes.index("rk4"), counts.index(2)]
assert np.isclose(own, 100 * (1 - accuracy), atol=1e-3)

# %%
fig, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for scheme, row, mark in zip(schemes, errors, "os^", strict=True):
    axes.plot(counts, row, marker=mark, label=scheme)
axes.axvline(2, color="grey", lw=1, ls=":", label="trained: rk4, $N_t$ = 2")
axes.set(
    xlabel="steps, $N_t$", ylabel="test error [%]", xticks=counts, ylim=(0, None)
)
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Other coefficients
#
# `refine` gives twice the coefficients and steps and the same θ(t): nothing changes until it is trained further.
# `project` goes back down by least squares, without data; here it halves the weights of the block, and its price is
# measured.

# %%
deeper, finer = on.refine(net, variables)
smaller, coarse = on.project(net, variables, on.PiecewiseConstant(1))


def report(name, net, variables):
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    score = (net.apply(variables, x_test).argmax(-1) == y_test).mean()
    print(
        f"{name:10} M = {net.basis.n_basis}, {net.solver}: {size:6,} weights, test accuracy {score:.3f}"
    )
    return score


report("trained", net, variables)
report("refined", deeper, finer)
report("projected", smaller, coarse)
same = deeper.clone(solver=net.solver).apply(finer, x_test) - net.apply(
    variables, x_test
)
print(
    f"largest change of a logit by refinement, under the solver of training: {jnp.abs(same).max():.1e}"
)
assert jnp.abs(same).max() < 1e-3
