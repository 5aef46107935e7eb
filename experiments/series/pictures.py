"""What a latent ODE makes of a few series: observations, the mean prediction and its band."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.series.config import SeriesConfig
from experiments.series.data import Series
from experiments.series.steps import observe, predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
N_BAND = 50
"""Samples that a band is made of."""


def draw(config: SeriesConfig, params: PyTree, series: Series, index: np.ndarray, beyond: float = 0.25) -> Figure:
    """Predictions for some series, in the data's own units, a row a series and a column a feature (at most four).

    Dots were seen by the encoder, circles were not. The band is two deviations of the samples and the noise together;
    behind the last time, by `beyond` of the span, the latent ODE extrapolates. A baseline predicts at the times alone.
    """
    from matplotlib.figure import Figure

    many = dataclasses.replace(config, n_samples=N_BAND)
    times, values, mask = (jnp.asarray(a) for a in (series.times, series.values, series.mask))
    n_features = min(4, values.shape[-1])
    figure = Figure(figsize=(1 + 3 * n_features, 0.6 + 2 * len(index)), layout="constrained")
    panels = figure.subplots(len(index), n_features, squeeze=False, sharex="row")
    for row, i in zip(panels, index, strict=True):
        own, one = times if times.ndim == 1 else times[i], slice(i, i + 1)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), int(i)))
        seen = observe(keys[0], mask[one], config.observed)
        ts = own
        if config.net == "latent_ode":
            ts = jnp.linspace(own[0], own[-1] + beyond * (own[-1] - own[0]), 200)
        x = np.asarray(jax.jit(predict, static_argnums=0)(many, params, own, values[one], seen, keys[1], ts).x[:, 0])
        mean, band = x.mean(0), 2 * np.sqrt(x.var(0) + config.sigma**2)
        t0 = series.t0 if times.ndim == 1 else series.t0[i]
        clock = lambda t, t0=t0: t0 + series.unit * np.asarray(t)
        for k, axes in enumerate(row):
            place = lambda scaled, k=k: series.low[k] + series.scale[k] * scaled
            axes.fill_between(
                clock(ts), place((mean - band)[:, k]), place((mean + band)[:, k]), color="C0", alpha=0.25, lw=0
            )
            axes.plot(clock(ts), place(mean[:, k]), color="C0", lw=1.2)
            for chosen, fill in ((mask[i, :, k] & ~seen[0, :, k], "none"), (seen[0, :, k], "C3")):
                marked = np.asarray(chosen)
                edge = "C3" if fill == "C3" else "0.55"
                at = np.asarray(own)[marked], np.asarray(values)[i, marked, k]
                axes.scatter(
                    clock(at[0]), place(at[1]), s=12 if fill == "C3" else 7, facecolor=fill, edgecolor=edge, lw=0.7
                )
            if config.net == "latent_ode":
                axes.axvline(clock(own[-1]), color="0.6", ls=":", lw=1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"series {i}, feature {k}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("time")
    return figure
