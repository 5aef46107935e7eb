"""Latent ODEs: an irregular series with missing values as what one sees of an ODE in a latent space."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ode_nets.arguments import Count, checked
from ode_nets.fields import MLP
from ode_nets.fields.initializers import Layer
from ode_nets.gradients import GradientMethod, solve
from ode_nets.integrate import Adaptive
from ode_nets.nn.linen import as_unit
from ode_nets.nn.recurrent import NORMAL, Gaussian, GaussianGRU, Mask, OdeRnn, Times, Values
from ode_nets.trees import known

PyTree = Any
DOPRI5 = Adaptive("dopri5", rtol=1e-3, atol=1e-4)


class Paths(NamedTuple):
    """What a latent ODE makes of series: `z0`, the distribution of the latent state at the first time, and predictions
    `x`, `[samples, ..., m, features]`.

    Example:
        >>> Paths(Gaussian(jnp.zeros(2), jnp.ones(2)), jnp.zeros((3, 7, 4))).x.shape
        (3, 7, 4)
    """

    z0: Any
    x: Float[Array, "samples *lanes m features"]


@checked
class LatentODE(nn.Module):
    """A latent ODE (Rubanova et al. 2019; ACA sec. 4.3): encoder, generator and decoder.

        z0 ~ N(mean, std^2) of the encoder;  dz/dt = R(z, t), z(t_0) = z0;  x(t) = decoder(z(t))

    Times are shared by the series of a batch, which is solved as one; where every series has its own, take `jax.vmap`,
    and each is solved by steps of its own.

    Attributes:
      encoder: gives a `Gaussian`, `[..., latent]`, from (times, values, mask), as `OdeRnn` does.
      unit: the right-hand side R of the generator: a `Unit`, or a `flax.linen` module.
      decoder: a module from `[..., latent]` to `[..., features]`.
      solver, gradient: of the generator.

    The collection `solution`, where mutable, receives `nfe`, `n_accepted`, `n_rejected` and `result` of the generator.

    Example:
        >>> from ode_nets import latent_ode
        >>> net = latent_ode(4, latent=2, size=3, width=8, units=8)
        >>> times, values = jnp.array([0.0, 0.3, 1.0]), jnp.ones((5, 3, 4))
        >>> rngs = {"params": jax.random.key(0), "latent": jax.random.key(1)}
        >>> variables = net.init(rngs, times, values, values > 0)
        >>> asked = jnp.linspace(0.0, 2.0, 7)  # between the observed times and beyond
        >>> net.apply(variables, times, values, values > 0, asked, n_samples=3, rngs=rngs).x.shape
        (3, 5, 7, 4)
    """

    encoder: Any
    unit: Any
    decoder: Any
    solver: Any = DOPRI5
    gradient: GradientMethod | None = None

    @checked
    def encode(self, times: Times, values: Values, mask: Mask) -> Gaussian:
        """The latent state at `times[0]`, `[..., latent]`, from series `[..., n, features]`."""
        z0: Gaussian = self.encoder(times, values, mask)
        return z0

    @checked
    @nn.compact
    def generate(
        self, z0: Float[Array, "*lanes latent"], t0: Any, ts: Real[Array, "m"]
    ) -> Float[Array, "*lanes m latent"]:
        """Latent states `[..., m, latent]` at `ts`, `[m]`, from `z0`, `[..., latent]`, at t0, in order of time.

        NaN where a solve fails, as under jit for times that are not in order or before t0.

        Raises:
          ValueError: for such times where they are known.
        """
        unit = as_unit(self.unit, z0.reshape(-1, z0.shape[-1]))
        theta = self.param("field", unit.init)
        field = lambda t, z, theta: unit.apply(theta, z, t, {})[0]
        options: dict[str, Any] = {"solver": self.solver, "gradient": self.gradient}
        # Times before t0 must not turn the direction round.
        latest = np.maximum if known((t0, ts)) else jnp.maximum
        solution = solve(field, z0, theta, t0=t0, t1=latest(ts[-1], t0), ts=ts, **options)
        for name in ("nfe", "n_accepted", "n_rejected", "result"):
            self.sow("solution", name, getattr(solution, name), init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return jnp.moveaxis(solution.x, 0, -2)

    def decode(self, z: Float[Array, "*lanes latent"]) -> Float[Array, "*lanes features"]:
        """Values `[..., features]` of latent states `[..., latent]`."""
        x: jax.Array = self.decoder(z)
        return x

    @checked
    def __call__(
        self, times: Times, values: Values, mask: Mask, ts: Real[Array, "m"] | None = None, n_samples: Count = 1
    ) -> Paths:
        """Predictions at any times from samples of z0, which are drawn from the random stream `latent`.

        Args:
          times: of the observations, `[n]`, ascending, equal ones allowed.
          values: `[..., n, features]`. mask: boolean, like `values`: what was observed.
          ts: asked times, `[m]`, ascending, from `times[0]` on; `None` for `times`. Others give NaN, or raise where
            they are known.
          n_samples: how many samples of each series.

        Raises:
          ValueError: at trace time, for shapes that do not fit.
        """
        z0 = self.encode(times, values, mask)
        noise = jax.random.normal(self.make_rng("latent"), (n_samples, *z0.mean.shape), z0.mean.dtype)
        z = self.generate(z0.mean + z0.std * noise, times[0], times if ts is None else ts)
        return Paths(z0, self.decode(z))


def _layer(key: jax.Array, shape: tuple[int, ...]) -> Layer:
    """N(0, 0.01) and zero: both right-hand sides start small."""
    return {"kernel": NORMAL(key, shape), "bias": jnp.zeros(shape[-1])}


@checked
def latent_ode(
    n_features: Count,
    *,
    latent: Count = 15,
    size: Count = 30,
    width: Count = 300,
    depth: Count = 4,
    units: Count = 100,
    solver: Any = DOPRI5,
    gradient: GradientMethod | None = None,
    flow: bool = True,
) -> LatentODE:
    """The latent ODE of the MuJoCo experiments (ACA sec. 4.3), whose sizes are the defaults.

    Args:
      n_features: of the series.
      latent: length of the latent state. size: of the encoder's state.
      width, depth: of the hidden layers of both right-hand sides. units: of the hidden layers of the encoder's cell.
      solver, gradient: of the generator.
      flow: whether the encoder's state follows an ODE between observations, by one Euler step a gap.

    Example:
        >>> net = latent_ode(14)
        >>> times, values = jnp.arange(10) / 200, jnp.ones((2, 10, 14))
        >>> rngs = {"params": jax.random.key(0), "latent": jax.random.key(1)}
        >>> from ode_nets import n_parameters
        >>> n_parameters(net.init(rngs, times, values, values > 0))
        617619
    """
    right_hand_side = lambda n: MLP(n, (width,) * depth, layer=_layer)
    cell = GaussianGRU(units)
    encoder = OdeRnn(latent, right_hand_side(size) if flow else None, cell, size, units)
    decoder = nn.Dense(n_features, kernel_init=NORMAL)
    return LatentODE(encoder, right_hand_side(latent), decoder, solver, gradient)
