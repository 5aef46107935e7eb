"""Filters over depth-time: an evolving Gaussian (ANODEV2 Fig. 3) and trained filters (Figs 1, 4, 5), with animations.

    python -m experiments.anodev2.figures                            the Gaussian alone; seconds
    python -m experiments.anodev2.figures --runs runs/anodev2        and the filters that experiments.anodev2 trained

The four rows of the Gaussian are diffusion, advection, reaction and all three, at t = 0, 0.33 and 0.67; the paper
gives no coefficients, so these are ours. Trained filters are those of the first input channel of the
first evolving convolution: Fig. 1 is AlexNet, Fig. 4 ResNet-4 and Fig. 5 ResNet-10. Each picture
is written as PNG and, moving in depth-time, as GIF.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.records.command import check_settings, command_line
from ode_nets import advance_filter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = (0.0, 0.33, 0.67)
SPACING = 0.25
"""Standard deviations of the Gaussian between two points of its grid."""
ROWS: dict[str, dict[str, Any]] = {
    "diffusion": {"diffusion": 0.6},
    "advection": {"advection": (-1.2, -2.4)},
    "reaction": {"reaction": 0.8},
    "RDA": {"diffusion": 0.6, "advection": (-1.2, -2.4), "reaction": 0.8},
}
"""Coefficients in standard deviations: tau, v and rho per unit time."""
FIGURES = {"alexnet": "fig1", "resnet4": "fig4", "resnet10": "fig5"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw."""

    runs: Path | None = None
    """Folder of experiments.anodev2; its filters are drawn too."""
    out: Path = Path("runs/anodev2")
    """Folder of the pictures."""
    n_filters: int = 4
    """Trained filters to draw, at most 8."""
    frames: int = 40
    """Frames of the moving Gaussian."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("n_filters", 1 <= self.n_filters <= 8, "1 to 8"),
            ("frames", self.frames >= 2, "at least 2"),
        )


# ---------------------------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------------------------


def gaussians(times: Sequence[float] | np.ndarray, extent: int = 41) -> np.ndarray:
    """The unit Gaussian under each row's terms, `[rows, times, extent, extent]`."""
    x = SPACING * (np.arange(extent) - extent // 2)
    start = jnp.asarray(np.exp(-(x[:, None] ** 2 + x**2) / 2))[..., None, None]
    found = []
    for terms in ROWS.values():
        units = {"diffusion": SPACING**-2, "advection": SPACING**-1, "reaction": 1.0}
        scaled = {name: units[name] * jnp.asarray(value) for name, value in terms.items()}
        found.append(jax.vmap(lambda t, scaled=scaled: advance_filter(start, t, **scaled))(jnp.asarray(times)))
    return np.stack(found)[..., 0, 0]


def draw_grid(images: np.ndarray, rows: Sequence[str], columns: Sequence[str], diverging: bool) -> tuple[Figure, Any]:
    """Images `[rows, columns, height, width]` on one color scale; the figure, and each panel's artist."""
    from matplotlib.figure import Figure

    n_rows, n_columns = images.shape[:2]
    figure = Figure(figsize=(1.1 + 1.5 * n_columns, 0.4 + 1.5 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    high = np.abs(images).max()
    style = {"cmap": "RdBu_r" if diverging else "viridis", "vmin": -high if diverging else 0, "vmax": high}
    artists = []
    for i, name in enumerate(rows):
        for j, title in enumerate(columns):
            axes = panels[i, j]
            artists.append(axes.imshow(images[i, j], **style))
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(title, fontsize=9)
        panels[i, 0].set_ylabel(name, fontsize=9)
    figure.colorbar(artists[0], ax=panels, shrink=0.7)
    return figure, artists


def animate(path: Path, images: np.ndarray, rows: Sequence[str], title: Callable[[int], str], **style: Any) -> None:
    """A GIF whose frames are the second axis of `[rows, frames, height, width]`, the rows side by side."""
    from matplotlib.animation import PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, artists = draw_grid(images[:, :1].swapaxes(0, 1), [""], rows, **style)
    for artist in artists:
        high = np.abs(images).max()
        artist.set_clim(-high if style["diverging"] else 0, high)
    FigureCanvasAgg(figure)
    writer = PillowWriter(fps=max(2, images.shape[1] // 4))
    with writer.saving(figure, str(path), dpi=110):
        for k in range(images.shape[1]):
            for artist, row in zip(artists, images[:, k], strict=True):
                artist.set_data(row)
            figure.suptitle(title(k), fontsize=10)
            writer.grab_frame()


def draw_gaussian(options: Options) -> list[Path]:
    """Fig. 3 and its animation."""
    names = list(ROWS)
    figure, _ = draw_grid(gaussians(TIMES), names, [f"t = {t:.2f}" for t in TIMES], diverging=False)
    paths = [options.out / f"fig3_gaussian.{kind}" for kind in ("png", "gif")]
    figure.savefig(paths[0], dpi=150, bbox_inches="tight")
    times = np.linspace(0, 1, options.frames)
    animate(paths[1], gaussians(times), names, lambda k: f"t = {times[k]:.2f}", diverging=False)
    return paths


def draw_filters(options: Options, source: Path) -> list[Path]:
    """Figs 1, 4, 5: the filters `[n + 1, k, k, 8]` of a run `NETWORK_FORM_seedN`."""
    with np.load(source) as file:
        images = np.moveaxis(file["filters"][..., : options.n_filters], -1, 0)
    name = source.parent.name
    stem = options.out / f"{FIGURES[name.partition('_')[0]]}_{name}"
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "gif")]
    n = images.shape[1] - 1
    rows = [f"filter {i + 1}" for i in range(len(images))]
    kept = sorted({round(k * n / 5) for k in range(6)})
    figure, _ = draw_grid(images[:, kept], rows, [f"t = {k / n:.2f}" for k in kept], diverging=True)
    figure.savefig(paths[0], dpi=150, bbox_inches="tight")
    animate(paths[1], images, rows, lambda k: f"t = {k / n:.2f}", diverging=True)
    return paths


def draw(options: Options) -> list[Path]:
    """Every picture that there is something for; the files written."""
    options.out.mkdir(parents=True, exist_ok=True)
    sources = sorted(options.runs.glob("*_seed*/filters.npz")) if options.runs else []
    if options.runs and not sources:
        raise ValueError(f"no filters in {options.runs}; python -m experiments.anodev2 resnet4 trains some")
    return draw_gaussian(options) + [path for source in sources for path in draw_filters(options, source)]


def main() -> None:
    """The command line."""
    try:
        options = command_line(Options, "python -m experiments.anodev2.figures", __doc__)
        paths = draw(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print("written:", *paths)


if __name__ == "__main__":
    main()
