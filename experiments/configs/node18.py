"""NODE18 and ResNet18 at full size on CIFAR-10 and CIFAR-100: every gradient method of ACA sec. 4.2, two schedules.

    python -m experiments.train node18_cifar10          350 epochs: Table 2
    python -m experiments.train node18_cifar10_90       90 epochs: Fig. 7(c), (d)

Fig. 7(a), (b) compare the methods at a learning rate of 0.01: `node18_cifar10_90 --learning-rate 0.01` is ACA's.

All train on all 50,000 images, without a validation set, and scale images by their own mean and deviation. The naive
method, `naive`, differentiates through the search for step sizes too. Table 6 exchanges solvers of a NODE18 that was
trained with one Euler step, which the paper calls a ResNet18. None of these has been run in full here.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from experiments.training.config import Config
from experiments.training.models import Node18Settings, ResNet18Settings

WIDTHS = (64, 128, 256, 512)
NODE18 = Node18Settings(widths=WIDTHS, scheme="heun_euler", rtol=1e-2, gradient="aca")
ACA = Config(
    dataset="cifar10",
    validation_fraction=0.0,
    model=NODE18,
    epochs=350,
    batch_size=128,
    learning_rate=0.1,
    decay_epochs=(150, 250),
)
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[float, float | None], str]] = {
    "": ("NODE18 by ACA, HeunEuler 1e-2", {}, (4.85, 22.66), "9 h"),
    "_adjoint": (
        "NODE18 by the continuous adjoint, Dopri5 1e-5",
        {"model": dataclasses.replace(NODE18, scheme="dopri5", rtol=1e-5, gradient="backsolve")},
        (9.8, 30.6),
        "18 h",
    ),
    # There is room for all stages of max_steps steps, taken or not: what the batch and max_steps are small for.
    "_naive": (
        "NODE18 by the naive method, Dopri5 1e-5",
        {
            "model": dataclasses.replace(NODE18, scheme="dopri5", rtol=1e-5, gradient="naive", max_steps=64),
            "batch_size": 32,
        },
        (9.3, 29.4),
        "more than 30 h",
    ),
    "_euler": (
        "NODE18 under one Euler step, for Table 6",
        {"model": dataclasses.replace(NODE18, scheme="euler", rtol=None, n_steps=1)},
        (8.47, None),
        "not given",
    ),
    "_resnet18": (
        "ResNet18",
        {"model": ResNet18Settings(widths=WIDTHS)},
        (6.98, 27.08),
        "not given",
    ),
}


def make_family() -> dict[str, SimpleNamespace]:
    """Configs with their texts, `{name: (CONFIG, __doc__)}`."""
    family = {}
    for i, dataset in enumerate(("cifar10", "cifar100")):
        for variant, (title, changes, errors, hours) in VARIANTS.items():
            config = dataclasses.replace(ACA, dataset=dataset, **changes)
            stem = f"resnet18_{dataset}" if variant == "_resnet18" else f"node18_{dataset}{variant}"
            # Fig. 7(a), (b) compare the methods at 0.01; Fig. 7(c), (d) compare NODE18 and ResNet18 at 0.1.
            rate = 0.01 if variant in ("_adjoint", "_naive") else 0.1
            short = dataclasses.replace(config, epochs=90, learning_rate=rate, decay_epochs=(30, 60))
            source = ", which it quotes" if variant == "_resnet18" else ""
            error = "not given" if errors[i] is None else f"{errors[i]} %{source}"
            paper = f"The paper's test error (Table {6 if variant == '_euler' else 2}): {error}"
            for name, of, epochs in ((stem, config, 350), (f"{stem}_90", short, 90)):
                text = (
                    f"{title}, on {dataset} for {epochs} epochs, 11.2M parameters.\n\n"
                    f"    python -m experiments.train {name}\n\n"
                    f"{paper}; 90 epochs on one GTX 1080 Ti: {hours}. Not measured here.\n"
                )
                family[name] = SimpleNamespace(CONFIG=of, __doc__=text)
    return family


FAMILY = make_family()
