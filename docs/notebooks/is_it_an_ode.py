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
# # Is it an ODE?
#
# The same small network is fitted to states of a pendulum, 0.01 s apart, through one step of Euler and through one
# step of RK4. Both predict the next state well. One of them is a differential equation, the other a map that needs
# its solver: measures alone tell which.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from matplotlib.ticker import NullFormatter

import ode_nets as on
from ode_nets.problems import pendulum
from ode_nets.validity import examine, of_field

jax.config.update("jax_enable_x64", True)

DT = 0.01
network = on.MLP(size=2, hidden=(50,))
x, y = pendulum.pairs(307, DT)  # 307 of them cover one swing there and back


def fit(scheme, n_iterations=4000):
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, n_iterations))

    def loss_of(theta):
        step = on.solve(
            network,
            x,
            theta,
            solver=on.FixedStep(scheme, 1),
            gradient=on.Direct(),
            t1=DT,
        ).x
        return jnp.mean(jnp.sum((step - y) ** 2, axis=-1))

    def body(carry, _):
        theta, state = carry
        loss, slope = jax.value_and_grad(loss_of)(theta)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(theta, updates), state), loss

    theta = network.init(jax.random.key(0))
    (theta, _), losses = jax.jit(
        lambda theta: jax.lax.scan(
            body, (theta, optimizer.init(theta)), None, n_iterations
        )
    )(theta)
    print(
        f"{scheme:6} root of the mean squared error of one step: {jnp.sqrt(losses[-1]):.1e}"
    )
    return theta


models = {scheme: fit(scheme) for scheme in ("euler", "rk4")}

# %% [markdown]
# ## The report
#
# From 16 states along the swing, each model runs for one second: under its own steps, under finer and coarser ones
# and under other schemes. The truth is the pendulum's exact solution.

# %%
phases = jnp.arange(16) / 16 * pendulum.period()
start, truth = pendulum.solution(phases), pendulum.solution(phases + 1.0)
reports = {}
for scheme, theta in models.items():
    subject = of_field(network, theta, start, on.FixedStep(scheme, round(1 / DT)))
    reports[scheme] = examine(subject, truth=truth)
    print(f"{scheme}: {reports[scheme].sentence}\n")
assert [report.verdict for report in reports.values()] == ["tied", "ode"]

# %% [markdown]
# The rows of the report are what the verdict rests on:

# %%
fig, panels = plt.subplots(
    1, 2, figsize=(8, 3.4), sharey=True, layout="constrained"
)
for axes, (trained, report) in zip(panels, reports.items(), strict=True):
    for scheme, line in (("euler", "o-"), ("midpoint", "s-"), ("rk4", "k.:")):
        rows = sorted(
            (row["h"], row["error"])
            for row in report.rows
            if row["scheme"] == scheme
        )
        axes.loglog(*zip(*rows, strict=True), line, ms=5, label=f"run with {scheme}")
    axes.axvline(DT, color="grey", lw=1, ls=":")
    axes.set(xlabel="step", title=f"trained through {trained}")
    axes.set_xticks([0.003, 0.01, 0.03], ["0.003", "0.01", "0.03"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("error after 1 s")
panels[1].legend(frameon=False)
plt.show()

# %% [markdown]
# The network of Euler is good at its own step (dotted) in its own scheme, and nowhere else: a finer step, or a better
# scheme, makes it worse. The network of RK4 converges as a differential equation does, until it meets its own error
# of fit. The [guide](../guides/is-it-an-ode.md) has the same for classifiers; [five seeds of
# each](../results/README.md) stand in the results.
