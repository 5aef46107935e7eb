"""Reaction, diffusion and advection of filters: exact solutions, conservation, sharing, and refusals."""

from __future__ import annotations

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import RDA, Adaptive, Direct, advance_filter, solve

RNG = np.random.default_rng(0)


def spectral_derivative(n: int) -> np.ndarray:
    """The derivative on n periodic points of spacing 1, n odd."""
    i, j = np.indices((n, n))
    with np.errstate(divide="ignore"):
        d = np.where(i == j, 0.0, 0.5 * (-1.0) ** (i - j) / np.sin(np.pi * (i - j) / n))
    return 2 * np.pi / n * d


def reference(w: np.ndarray, t1: float, tau: float, v: np.ndarray, rho: float, sigma=lambda x: x) -> np.ndarray:
    """Eq. 8 with dense differentiation matrices, integrated by diffrax."""
    rows, columns = (jnp.asarray(spectral_derivative(n)) for n in w.shape[:2])

    def slope(t, w, args):
        down, across = jnp.einsum("ab,bcio->acio", rows, w), jnp.einsum("ab,cbio->caio", columns, w)
        laplace = jnp.einsum("ab,bcio->acio", rows, down) + jnp.einsum("ab,cbio->caio", columns, across)
        return sigma(tau * laplace + v[0] * down + v[1] * across + rho * w)

    controller = diffrax.PIDController(rtol=1e-11, atol=1e-12)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(slope), diffrax.Dopri8(), 0.0, t1, 0.05, jnp.asarray(w), stepsize_controller=controller
    ).ys[0]


def test_flow_is_the_solution_of_eq_8(x64):
    w, v = RNG.normal(size=(5, 3, 2, 2)), np.array([0.7, -1.1])
    got = advance_filter(jnp.asarray(w), 0.8, diffusion=0.2, advection=v, reaction=-0.3)
    np.testing.assert_allclose(got, reference(w, 0.8, 0.2, v, -0.3), atol=1e-10)


def test_right_hand_side_with_tanh_is_that_of_eq_8(x64):
    w, v = RNG.normal(size=(3, 3, 1, 2)), np.array([0.4, 0.6])
    q = RDA(diffusion=0.2, reaction=0.5, sharing="global")
    p = q.init(jax.random.key(0), jnp.asarray(w)) | {"v": jnp.asarray(v)}
    solver = Adaptive("dopri5", rtol=1e-10, atol=1e-11)
    got = solve(lambda t, w, p: q(w, p), jnp.asarray(w), p, solver=solver, gradient=Direct()).x
    np.testing.assert_allclose(got, reference(w, 1.0, 0.2, v, 0.5, jnp.tanh), atol=1e-8)


def test_gaussian_has_its_closed_form(x64):
    """Diffusion widens it, advection moves it by -v t, reaction scales it."""
    tau, v, rho, t, s = 0.8, np.array([1.5, -2.25]), 0.4, 1.3, 9.0
    x, y = np.meshgrid(*[np.arange(61) - 30.0] * 2, indexing="ij")
    gauss = lambda x, y, s: np.exp(-(x**2 + y**2) / (2 * s))[..., None, None]
    got = advance_filter(jnp.asarray(gauss(x, y, s)), t, diffusion=tau, advection=v, reaction=rho)
    wide = s + 2 * tau * t
    want = np.exp(rho * t) * s / wide * gauss(x + v[0] * t, y + v[1] * t, wide)
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("extent", [(1, 1), (3, 3), (5, 3), (7, 7)])
def test_linear_flow_is_a_semigroup(x64, extent):
    """By s, then by t is by s + t, with parameters a filter; by 0 is the identity."""
    w = jnp.asarray(RNG.normal(size=(*extent, 2, 3)))
    values = {"diffusion": RNG.uniform(0, 0.5, 3), "advection": RNG.normal(size=(2, 3)), "reaction": RNG.normal(size=3)}
    once = advance_filter(w, 0.8, **values)
    twice = advance_filter(advance_filter(w, 0.3, **values), 0.5, **values)
    np.testing.assert_allclose(twice, once, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(advance_filter(w, 0.0, **values), w, atol=1e-15)


def test_terms_do_what_they_are_named_for(x64):
    w = jnp.asarray(RNG.normal(size=(5, 5, 2, 2)))
    np.testing.assert_allclose(advance_filter(w, 2.0, advection=(0.5, 0.0)), jnp.roll(w, -1, 0), atol=1e-14)
    np.testing.assert_allclose(advance_filter(w, 2.0, reaction=0.5), np.e * w, rtol=1e-13)
    blurred = advance_filter(w, 50.0, diffusion=1.0)
    np.testing.assert_allclose(blurred, jnp.broadcast_to(w.mean((0, 1)), w.shape), atol=1e-14)
    one = advance_filter(w, 0.3, diffusion=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(one[..., 0], w[..., 0], atol=1e-15)
    assert jnp.abs(one[..., 1] - w[..., 1]).max() > 0.1


def test_terms_and_sharing_decide_the_parameters():
    w = {"a": jnp.ones((3, 3, 2, 4)), "b": jnp.ones(5)}
    shapes = lambda q: jax.tree.map(jnp.shape, q.init(jax.random.key(0), w))
    assert shapes(RDA(sharing="filter")) == {"a": {"tau": (4,), "v": (2, 4), "rho": (4,)}, "b": {}}
    assert shapes(RDA(sharing="tensor")) == {"a": {"tau": (), "v": (2,), "rho": ()}, "b": {}}
    assert shapes(RDA(sharing="global", advection=None)) == {"tau": (), "rho": ()}
    assert shapes(RDA(sharing="global", diffusion=None, reaction=None)) == {"v": (2,)}


def test_a_term_that_is_switched_off_does_nothing_whatever_p_was_trained_to(x64):
    """The parameters of one q under others with fewer terms; the other way round there is nothing to read."""
    w, trained = jnp.asarray(RNG.normal(size=(3, 3, 1, 1))), RDA(0.3, 0.4, 0.2, sharing="global", sigma=None)
    p = trained.init(jax.random.key(0), w)
    every = trained.coefficients(p)
    for term in every:
        fewer = dataclasses.replace(trained, **{term: None})
        kept = {name: value for name, value in every.items() if name != term}
        np.testing.assert_allclose(fewer.flow(w, p, 0.7), advance_filter(w, 0.7, **kept), rtol=1e-14)
        assert jnp.abs(fewer.flow(w, p, 0.7) - trained.flow(w, p, 0.7)).max() > 0.01
        with pytest.raises(ValueError, match=r"p has the entries .*: expected \['tau', 'v', 'rho'\]"):
            trained(w, fewer.init(jax.random.key(0), w))


def test_initial_values_are_those_asked_for_and_diffusion_stays_above_zero(x64):
    q = RDA(diffusion=0.07, advection=0.2, reaction=-0.1, sharing="global")
    got = q.coefficients(q.init(jax.random.key(0), jnp.ones((3, 3, 1, 1))))
    np.testing.assert_allclose(got["diffusion"], 0.07, rtol=1e-12)
    np.testing.assert_allclose(got["advection"], [0.2, 0.2])
    np.testing.assert_allclose(got["reaction"], -0.1)
    alone = RDA(advection=None, reaction=None)
    assert alone.coefficients({"tau": jnp.asarray(-30.0)})["diffusion"] > 0


def test_leaves_that_are_no_filters_do_not_evolve():
    q = RDA(reaction=1.0)
    w = {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.ones(4)}
    p = q.init(jax.random.key(0), w)
    after, slope = q.flow(w, p, 0.5), q(w, p)
    assert (after["bias"] == 1).all()
    assert (slope["bias"] == 0).all()
    assert (jnp.abs(slope["kernel"]) > 0.5).all()


def test_tanh_acts_once_a_step_even_where_all_terms_are_zero(x64):
    """The trap of eq. 13: more steps are another model, where the linear flow has none to take."""
    w = jnp.full((3, 3, 1, 1), 0.5)
    zeros = {"tau": jnp.asarray(-jnp.inf), "v": jnp.zeros(2), "rho": jnp.asarray(0.0)}
    tanh, linear = RDA(sharing="global"), RDA(sharing="global", sigma=None)
    np.testing.assert_allclose(tanh.flow(tanh.flow(w, zeros, 0.5), zeros, 0.5), np.tanh(np.tanh(0.5)), rtol=1e-14)
    np.testing.assert_allclose(linear.flow(w, zeros, 0.5), w, rtol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: advance_filter(jnp.ones((4, 3, 1, 1)), 1.0), "w has the extent 4x3: expected odd"),
        (lambda: RDA().init(jax.random.key(0), jnp.ones((2, 2, 1, 1))), "w has the extent 2x2: expected odd"),
        (lambda: advance_filter(jnp.ones((3, 3)), 1.0), r"w=<float32\[3, 3\]>: expected .* \[k1, k2, in, out\]"),
        (
            lambda: advance_filter(jnp.ones((3, 3, 1, 1), int), 1.0),
            r"w=<int\d+\[3, 3, 1, 1\]>: expected a floating-point array",
        ),
        (lambda: advance_filter(jnp.ones((3, 3, 1, 1)), 1.0, diffusion=-0.1), "diffusion=-0.1.*: expected at least 0"),
        (lambda: advance_filter(jnp.ones((3, 3, 1, 2)), 1.0, reaction=jnp.ones(3)), r"reaction has shape \(3,\)"),
        (lambda: advance_filter(jnp.ones((3, 3, 1, 2)), 1.0, advection=0.5), r"advection has shape \(\)"),
        (lambda: advance_filter(jnp.ones((3, 3, 1, 1)), 1.0, diffusion=float("nan")), "diffusion=nan: expected at"),
        (lambda: advance_filter(jnp.ones((3, 3, 1, 1)), -1.0, diffusion=0.1), "h=-1.0: expected at least 0"),
        (
            lambda: RDA(sharing="global", advection=None, reaction=None)(
                jnp.ones((3, 3, 1, 2)), {"tau": jnp.ones((2, 1))}
            ),
            r"diffusion has shape \(2, 1\)",
        ),
        (lambda: RDA(diffusion=-1.0), "diffusion=-1.0: expected a finite number above 0"),
        (lambda: RDA(diffusion=0.0), "diffusion=0.0"),
        (lambda: RDA(reaction=float("nan")), "reaction=nan"),
        (lambda: RDA(sharing="layer"), "sharing='layer': expected one of 'global', 'tensor', 'filter'"),
        (lambda: RDA(diffusion=None, advection=None, reaction=None), "all None"),
        (lambda: RDA().init(jax.random.key(0), jnp.ones(3)), r"RDA needs a filter"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make)
