"""Latent ODEs: what an encoder may read, what its recurrence is, and what the objective means."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from ode_nets import (
    ACA,
    MLP,
    Adaptive,
    Backsolve,
    Checkpointed,
    Direct,
    FixedStep,
    Gaussian,
    GaussianGRU,
    Naive,
    OdeRnn,
    RecurrentNet,
    gaussian_kl,
    gaussian_log_likelihood,
    importance_bound,
    kaiming_layer,
    latent_ode,
    recur,
)

TIMES = jnp.array([0.0, 0.1, 0.15, 0.4, 0.5])
SIZES = {"latent": 2, "size": 3, "width": 6, "depth": 1, "units": 5}


def series(batch=4, n=5, features=2, share=0.6):
    values_key, mask_key = jax.random.split(jax.random.key(0))
    values = jax.random.normal(values_key, (batch, n, features))
    return values, jax.random.uniform(mask_key, values.shape) < share


def make(net, *arrays, seed=1):
    rngs = {"params": jax.random.key(seed), "latent": jax.random.key(seed)}
    return net.init(rngs, *arrays)


def encoders():
    unit = MLP(3, (6,), layer=kaiming_layer)
    return {
        "ode_rnn": OdeRnn(2, unit, GaussianGRU(5), size=3, units=5),
        "gru": OdeRnn(2, None, GaussianGRU(5), size=3, units=5),
        "rnn_baseline": RecurrentNet(nn.SimpleCell(3), units=5),
        "gru_decay_baseline": RecurrentNet(nn.GRUCell(3), decay=True, units=5),
    }


# ---------------------------------------------------------------------------------------------------------
# Encoders
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", encoders())
def test_what_stands_in_masked_entries_changes_nothing(name):
    """Neither a value nor a gradient, and NaN least of all."""
    net, (values, mask) = encoders()[name], series()
    variables = make(net, TIMES, values, mask)

    def total(variables, values):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(net.apply(variables, TIMES, values, mask)))

    both = jax.jit(jax.value_and_grad(total))
    first = both(variables, values)
    for other in (jnp.nan, 1e6, 0.0):
        assert_agree(both(variables, jnp.where(mask, values, other)), first, 0)


@pytest.mark.parametrize("name", encoders())
def test_what_was_observed_changes_what_comes_out(name):
    net, (values, mask) = encoders()[name], series()
    variables = make(net, TIMES, values, mask)
    before, after = (net.apply(variables, TIMES, v, mask) for v in (values, values + 1.0))
    assert not np.allclose(jax.tree.leaves(before)[0], jax.tree.leaves(after)[0])


def test_the_encoder_is_its_recurrence_written_out():
    """Euler from each time to the one before, a gated update where something was observed, from the last time on."""
    net, (values, mask) = encoders()["ode_rnn"], series()
    variables = make(net, TIMES, values, mask)
    gru = GaussianGRU(5)

    def written_out(params, values):
        state = Gaussian(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
        for k in reversed(range(5)):
            if k < 4:
                moved = state.mean + (TIMES[k] - TIMES[k + 1]) * net.unit(0.0, state.mean, params["field"])
                state = state._replace(mean=moved)
            x = jnp.concatenate([jnp.where(mask, values, 0)[:, k], mask[:, k]], -1)
            new = gru.apply({"params": params["update"]}, state, x)
            seen = mask[:, k].any(-1, keepdims=True)
            state = Gaussian(*(jnp.where(seen, a, b) for a, b in zip(new, state, strict=True)))
        head = params["head"]
        y = jnp.concatenate(state, -1) @ head["Dense_0"]["kernel"] + head["Dense_0"]["bias"]
        y = jnp.tanh(y) @ head["Dense_1"]["kernel"] + head["Dense_1"]["bias"]
        return Gaussian(y[:, :2], jnp.abs(y[:, 2:]) + 1e-6)

    own = lambda params, values: net.apply({"params": params}, TIMES, values, mask)
    assert_agree(own(variables["params"], values), written_out(variables["params"], values), 1e-5)
    loss = lambda encode: lambda *given: sum(jnp.sum(jnp.sin(leaf)) for leaf in encode(*given))
    slopes = [jax.grad(loss(encode), (0, 1))(variables["params"], values) for encode in (own, written_out)]
    assert_agree(*slopes, 1e-5)


@pytest.mark.usefixtures("x64")
def test_a_recurrence_has_the_first_and_second_derivatives_of_its_loop():
    values = jnp.sin(jnp.arange(12.0)).reshape(2, 6, 1)
    mask, times = jnp.cos(jnp.arange(12.0)).reshape(2, 6, 1) > 0, jnp.arange(6.0) ** 1.5
    update = lambda theta: lambda s, x: jnp.tanh(theta[0] * s + x[..., :1])
    flow = lambda theta: lambda s, t, gap: s * jnp.exp(-theta[1] * gap) + jnp.sin(theta[1] * t)

    def plain(theta, state, times):
        arrived = []
        for k in range(6):
            before = max(k - 1, 0)
            state = flow(theta)(state, times[before], times[k] - times[before])
            arrived.append(state)
            x = jnp.concatenate([jnp.where(mask, values, 0), mask], -1)[:, k]
            state = jnp.where(mask[:, k], update(theta)(state, x), state)
        return jnp.sum(state**2) + jnp.sum(jnp.sin(jnp.stack(arrived)))

    def own(theta, state, times):
        end, arrived = recur(update(theta), flow(theta), state, times, values, mask)
        return jnp.sum(end**2) + jnp.sum(jnp.sin(arrived))

    given = jnp.array([0.7, 0.3]), jnp.full((2, 1), 0.2), times
    assert_agree(jax.grad(own, (0, 1, 2))(*given), jax.grad(plain, (0, 1, 2))(*given), 1e-12)
    twice = lambda loss: jax.jacrev(jax.grad(loss))(*given)
    assert_agree(twice(own), twice(plain), 1e-12)


def test_times_at_which_nothing_was_observed_are_steps_and_nothing_else():
    """A gap filled with k times under one Euler step each is the gap under k + 1 steps."""
    net, (values, mask) = encoders()["ode_rnn"], series()
    variables = make(net, TIMES, values, mask)
    finer = net.clone(solver=FixedStep("euler", 2))
    middles = (TIMES[:-1] + TIMES[1:]) / 2
    at = np.arange(1, 5)
    filled = jnp.insert(TIMES, at, middles)
    more, none = jnp.insert(values, at, jnp.nan, axis=1), jnp.insert(mask, at, False, axis=1)
    one = net.apply(variables, filled, more, none)
    assert_agree(one, finer.apply(variables, TIMES, values, mask), 1e-5)


def test_a_series_may_be_padded_with_its_last_time():
    net, (values, mask) = encoders()["ode_rnn"], series()
    variables = make(net, TIMES, values, mask)
    padded = jnp.concatenate([TIMES, TIMES[-1:], TIMES[-1:]])
    wide = lambda a, fill: jnp.pad(a, ((0, 0), (0, 2), (0, 0)), constant_values=fill)
    one = net.apply(variables, padded, wide(values, jnp.nan), wide(mask, False))
    assert_agree(one, net.apply(variables, TIMES, values, mask), 0)


def test_lanes_with_times_of_their_own_are_single_series():
    net, (values, mask) = encoders()["ode_rnn"], series()
    variables = make(net, TIMES, values, mask)
    times = TIMES * jnp.array([[1.0], [0.5], [2.0], [1.0]])
    many = jax.vmap(net.apply, (None, 0, 0, 0))(variables, times, values, mask)
    for i in range(4):
        one = net.apply(variables, times[i], values[i], mask[i])
        assert_agree(jax.tree.map(lambda leaf, i=i: leaf[i], many), one, 1e-5)


def test_a_series_of_which_nothing_was_observed_has_a_finite_divergence():
    net, (values, mask) = encoders()["ode_rnn"], series()
    variables = make(net, TIMES, values, mask)

    def divergence(variables):
        return gaussian_kl(*net.apply(variables, TIMES, values, jnp.zeros_like(mask))).sum()

    value, gradient = jax.value_and_grad(divergence)(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


def test_a_baseline_predicts_from_the_past_alone():
    values, mask = series(share=1.0)
    for name in ("rnn_baseline", "gru_decay_baseline"):
        net = encoders()[name]
        variables = make(net, TIMES, values, mask)
        first = net.apply(variables, TIMES, values, mask)
        later = net.apply(variables, TIMES, values.at[:, 2].add(1.0), mask)
        np.testing.assert_array_equal(first[:, :3], later[:, :3])
        assert not np.allclose(first[:, 3:], later[:, 3:])


def test_states_before_each_update_come_in_the_order_of_the_times():
    values, mask = jnp.arange(3.0)[:, None], jnp.array([[True], [False], [True]])
    add, stay = (lambda s, x: s + x[..., :1]), (lambda s, t, gap: s + 10 * gap)
    end, before = recur(add, stay, jnp.zeros(1), jnp.array([0.0, 1.0, 3.0]), values, mask, backward=True)
    np.testing.assert_allclose(before[:, 0], [-28.0, -18.0, 0.0])
    np.testing.assert_allclose(end, [-28.0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"times": jnp.zeros((4, 5))}, r"times=<float\d+\[4, 5\]>: expected times \[n\].*jax.vmap"),
        ({"times": TIMES[:4]}, "values=.* with n=4 as in times="),
        ({"mask": jnp.ones((4, 5), bool)}, r"mask=<bool\[4, 5\]>: .* as in values="),
        ({"mask": jnp.ones((4, 5, 2))}, "mask=<float32.*: expected an array of booleans"),
        (
            {"values": jnp.ones((4, 5, 2), jnp.int32)},
            r"values=<int32.*: expected a floating-point array \[\*lanes, n, features\]",
        ),
    ],
)
def test_what_is_no_series_is_refused(change, said):
    values, mask = series()
    arguments = {"times": TIMES, "values": values, "mask": mask} | change
    for net in (latent_ode(2, **SIZES), *encoders().values()):
        with pytest.raises(ValueError, match=said):
            make(net, *arguments.values())


# ---------------------------------------------------------------------------------------------------------
# The whole model
# ---------------------------------------------------------------------------------------------------------


def test_the_first_asked_state_is_the_sample_itself():
    net, (values, mask) = latent_ode(2, **SIZES), series()
    variables = make(net, TIMES, values, mask)
    z0 = jnp.ones((3, 4, 2))
    bound = net.bind(variables)
    z = bound.generate(z0, TIMES[0], jnp.array([0.0, 0.2, 0.9]))
    assert z.shape == (3, 4, 3, 2)
    np.testing.assert_allclose(z[:, :, 0], z0, rtol=1e-6)
    assert bound.decode(z).shape == (3, 4, 3, 2)


def test_a_deviation_of_zero_makes_all_samples_one():
    net, (values, mask) = latent_ode(2, **SIZES), series()
    variables = make(net, TIMES, values, mask)
    head = variables["params"]["encoder"]["head"]["Dense_1"]
    head["kernel"], head["bias"] = head["kernel"].at[:, 2:].set(0), head["bias"].at[2:].set(0)
    paths = net.apply(variables, TIMES, values, mask, n_samples=3, rngs={"latent": jax.random.key(3)})
    np.testing.assert_allclose(paths.x[0], paths.x[1], atol=1e-4)
    np.testing.assert_allclose(paths.x[0], paths.x[2], atol=1e-4)


def test_asked_times_before_the_first_give_no_plausible_answer():
    net, (values, mask) = latent_ode(2, **SIZES), series()
    variables = make(net, TIMES, values, mask)
    apply = jax.jit(lambda ts: net.apply(variables, TIMES, values, mask, ts, rngs={"latent": jax.random.key(3)}))
    # The last one decides which way a solve goes.
    for asked in ([-0.5, 0.2, 0.3], [0.3, 0.1, 0.5], [-0.1, -0.2, -0.5], [-0.5, -0.4, -0.1]):
        assert np.isnan(apply(jnp.array(asked)).x).any()
        with pytest.raises(ValueError, match=r"leaves the interval|is not sorted"):
            net.apply(variables, TIMES, values, mask, jnp.array(asked), rngs={"latent": jax.random.key(3)})


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["ode_rnn", "gru_decay_baseline"])
def test_values_in_other_precisions_make_states_of_theirs(x64, name, dtype):
    net, (values, mask) = encoders()[name], series()
    values = values.astype(dtype)
    found = net.apply(make(net, TIMES, values, mask), TIMES, values, mask)
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_gradient_methods_agree(x64):
    """All of one model, encoder included, to rounding; Backsolve and Naive to the tolerance of the solve."""
    values, mask = (a.astype(d) for a, d in zip(series(), (jnp.float64, bool), strict=True))
    times, solver = TIMES.astype(jnp.float64), Adaptive("dopri5", 1e-7, 1e-9, max_steps=64)
    net = latent_ode(2, solver=solver, **SIZES)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), make(net, times, values, mask))

    def gradient(method):
        chosen = net.clone(gradient=method)

        def loss(variables):
            paths = chosen.apply(variables, times, values, mask, n_samples=2, rngs={"latent": jax.random.key(3)})
            ll = gaussian_log_likelihood(paths.x, values, mask, 0.5)
            return importance_bound(ll.mean(1), gaussian_kl(*paths.z0).mean(), 0.7)

        return jax.jit(jax.grad(loss))(variables)

    reference = gradient(Direct())
    for method, tolerance in ((ACA(), 1e-12), (Checkpointed(), 1e-12), (Backsolve(), 1e-5), (Naive(), 1e-5)):
        assert_agree(gradient(method), reference, tolerance)


# ---------------------------------------------------------------------------------------------------------
# The objective
# ---------------------------------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_a_normal_distribution(x64):
    from scipy.stats import norm

    values, mask = series()
    x = jax.random.normal(jax.random.key(5), (3, *values.shape))
    found = gaussian_log_likelihood(x, values, mask, 0.3)
    density = norm.logpdf(np.asarray(values), np.asarray(x), 0.3)
    expected = [[density[k, b][np.asarray(mask[b])].mean() for b in range(4)] for k in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_likelihood_and_its_gradient_ignore_masked_entries():
    values, mask = series()
    x = jnp.ones_like(values)
    both = jax.value_and_grad(lambda x, values: gaussian_log_likelihood(x, values, mask, 0.1).sum())
    first = both(x, values)
    assert_agree(both(x, jnp.where(mask, values, jnp.nan)), first, 0)
    np.testing.assert_array_equal(first[1][~mask], 0)
    assert float(gaussian_log_likelihood(x, values, jnp.zeros_like(mask)).sum()) == 0


def test_the_divergence_is_that_of_two_normal_distributions(x64):
    """Against a sum over a fine grid."""
    mean, std = 0.7, 0.4
    grid = np.linspace(-12, 12, 200_001)
    log_q = -0.5 * ((grid - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    log_p = -0.5 * grid**2 - math.log(math.sqrt(2 * math.pi))
    expected = np.trapezoid(np.exp(log_q) * (log_q - log_p), grid)
    np.testing.assert_allclose(gaussian_kl(jnp.float64(mean), jnp.float64(std)), expected, rtol=1e-6)


def test_the_bound_grows_to_the_evidence_with_the_samples(x64):
    """Of a linear Gaussian model, whose evidence and posterior are known: one sample from the posterior is below it,
    the mean of the likelihood over many from the prior is at it."""
    v, sigma = 0.8, 0.5
    evidence = -0.5 * v**2 / (1 + sigma**2) - 0.5 * math.log(2 * math.pi * (1 + sigma**2))
    z = jax.random.normal(jax.random.key(0), (200_000, 1, 1))
    ll = gaussian_log_likelihood(z, jnp.full((1, 1), v), sigma=sigma)
    assert abs(float(importance_bound(ll, jnp.float64(0.0))) - evidence) < 0.01
    variance = sigma**2 / (1 + sigma**2)
    mean, std = jnp.float64(v / (1 + sigma**2)), jnp.float64(math.sqrt(variance))
    ll = gaussian_log_likelihood(mean + std * z, jnp.full((1, 1), v), sigma=sigma)
    bounds = jax.vmap(lambda one: importance_bound(one[None], gaussian_kl(mean, std)))(ll)
    # With the posterior itself the usual bound is the evidence, in the mean over samples.
    assert abs(float(bounds.mean()) - evidence) < 0.01
    assert float(importance_bound(ll[:2], 0.0)) == pytest.approx(math.log(np.exp(np.asarray(ll[:2])).mean()))
