"""The networks of the ContinuousNet paper at full size: what its Table 1 and Figs 7 to 11 are made of.

    python -m experiments.train cifar10                  RK4, refined while it trains: Table 1, Figs 7, 8, 9
    python -m experiments.train cifar10_euler            its twin under Euler, at full depth from the start

All train 160 epochs on all training images, with the rate divided by ten at 30, 60 and 90; refinements are where the
paper has them. They normalize before the pooling, as the paper's code does. Networks under Euler have eps = N_t,
which makes them the ResNets that they are compared with, but for Tiny-ImageNet, where the paper says eps = 1.
None of these has been run in full here.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings, ResNetSettings

DEEP = ContinuousNetSettings(widths=(16, 32, 64), scheme="rk4", final_norm=True)
WIDE = dataclasses.replace(DEEP, widths=(64, 128, 256))
CIFAR10 = Config(
    dataset="cifar10",
    validation_fraction=0.0,
    model=DEEP,
    epochs=160,
    learning_rate=0.1,
    decay_epochs=(30, 60, 90),
    refine_epochs=(20, 40, 60, 70, 80),
)
CIFAR100 = dataclasses.replace(CIFAR10, dataset="cifar100", model=WIDE, refine_epochs=(20, 50, 80))
TINY = dataclasses.replace(CIFAR100, dataset="./tiny-imagenet-200")


def unrefined(config: Config, n_steps: int, **model: Any) -> Config:
    """The same at M = N_t = `n_steps` from the start."""
    changed = dataclasses.replace(config.model, n_basis=n_steps, n_steps=n_steps, **model)
    return dataclasses.replace(config, model=changed, refine_epochs=())


def euler(config: Config, n_steps: int, epsilon: float | None = None) -> Config:
    """The same under Euler; with eps = N_t it is a ResNet."""
    return unrefined(config, n_steps, scheme="euler", epsilon=float(n_steps) if epsilon is None else epsilon)


def resnet(config: Config, n_steps: int) -> Config:
    """The discrete network that `euler` equals."""
    model = ResNetSettings(widths=config.model.widths, n_steps=n_steps, final_norm=True)  # type: ignore[attr-defined]
    return dataclasses.replace(config, model=model, refine_epochs=())


def bare(config: Config) -> Config:
    """The same without the skip-init scalars."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, skip_init=False))  # type: ignore[call-arg]


# As deep as N_t = 16 asks for, by one more doubling than the wide network has; the paper does not say when.
FIG_11C = dataclasses.replace(
    bare(CIFAR100),
    model=dataclasses.replace(DEEP, widths=(32, 64, 128), skip_init=False),
    refine_epochs=(20, 40, 60, 80),
)

SETTINGS: dict[str, tuple[str, Config, str]] = {
    "cifar10": (
        "ContinuousNet(RK4-classic) 16-32-64 with refinement training on CIFAR-10, M = N_t = 1, ..., 32",
        CIFAR10,
        "93.57 % (93.40 to 93.70), 3.19M parameters, 608 minutes on one V100",
    ),
    "cifar10_unrefined": (
        "The same at M = N_t = 32 from the start",
        unrefined(CIFAR10, 32),
        "nearly identical to the refined one (footnote 6), 1053 minutes on one V100",
    ),
    "cifar10_euler": (
        "ContinuousNet(Euler) 16-32-64 on CIFAR-10, M = N_t = 32, unrefined",
        euler(CIFAR10, 32),
        "93.84 % (93.55 to 94.04)",
    ),
    "cifar10_resnet": ("The discrete twin of cifar10_euler, ResNet-200 v2", resnet(CIFAR10, 32), "93.84 %"),
    "cifar100_wide": (
        "Wide-ContinuousNet(RK4-classic) 64-128-256 with refinement training on CIFAR-100, M = N_t = 1, 2, 4, 8",
        CIFAR100,
        "77.99 % (77.68 to 78.12), 13.58M parameters",
    ),
    "cifar100_wide_euler": (
        "Wide-ContinuousNet(Euler) on CIFAR-100, M = N_t = 8, unrefined",
        euler(CIFAR100, 8),
        "78.80 %",
    ),
    "cifar100_wide_resnet": ("The discrete twin of cifar100_wide_euler, Wide-ResNet", resnet(CIFAR100, 8), "79.04 %"),
    "tiny_imagenet_midpoint": (
        "Wide-ContinuousNet(Midpoint) with refinement training on Tiny-ImageNet (Fig. 10)",
        dataclasses.replace(TINY, model=dataclasses.replace(WIDE, scheme="midpoint")),
        "about 40 %",
    ),
    "tiny_imagenet_euler": (
        "Wide-ContinuousNet(Euler) on Tiny-ImageNet, M = N_t = 8, eps = 1 (Fig. 10)",
        euler(TINY, 8, epsilon=1.0),
        "about 40 %",
    ),
    "fig11a": ("cifar10 without skip-init (Fig. 11a)", bare(CIFAR10), "in a figure only"),
    "fig11a_euler": ("cifar10_euler without skip-init (Fig. 11a)", bare(euler(CIFAR10, 32)), "in a figure only"),
    "fig11b": ("cifar100_wide without skip-init (Fig. 11b)", bare(CIFAR100), "in a figure only"),
    "fig11b_euler": ("cifar100_wide_euler without skip-init (Fig. 11b)", bare(euler(CIFAR100, 8)), "in a figure only"),
    "fig11c": ("32-64-128 to N_t = 16 on CIFAR-100, without skip-init (Fig. 11c)", FIG_11C, "in a figure only"),
    "fig11c_euler": (
        "32-64-128 at N_t = 16 under Euler on CIFAR-100, without skip-init (Fig. 11c)",
        euler(FIG_11C, 16),
        "in a figure only",
    ),
}


def make_family() -> dict[str, SimpleNamespace]:
    """Configs with their texts, `{name: (CONFIG, __doc__)}`."""
    family = {}
    for name, (title, config, paper) in SETTINGS.items():
        text = (
            f"{title}.\n\n    python -m experiments.train {name}\n\n"
            f"The paper's test accuracy: {paper}. Not measured here.\n"
        )
        family[name] = SimpleNamespace(CONFIG=config, __doc__=text)
    return family


FAMILY = make_family()
