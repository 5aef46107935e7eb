"""AlexNet, ResNet-4 and ResNet-10 of ANODEV2 in four forms, on CIFAR-10: every cell of its tables 1, 2 and 4.

    python -m experiments.train anodev2_resnet4_configuration_1          one cell, one seed, with checkpoints
    python -m experiments.anodev2 resnet4 --full --n-seeds 5             its four forms, five seeds side by side

Table 1 compares baseline and configuration 1, table 2 baseline and configuration 2, table 4 baseline, Neural ODE
and configuration 2. The paper gives batch 256, learning rate 0.1 and when it decays; momentum and weight decay
are those of its time. None of these has been run in full here.

Seconds an epoch of 50,000 images on two cores, 195 times the median step (`python -m benchmarks.anodev2`):

    network      baseline   Neural ODE   configuration 1   configuration 2
    alexnet           212          366               733               377
    resnet4            70          192               412               186
    resnet10          150          281               600               312
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from experiments.training.config import Config
from experiments.training.models import Anodev2Settings, EvolutionName

RESNET = Config(
    dataset="cifar10",
    validation_fraction=0.0,
    model=Anodev2Settings(network="resnet4", scheme="euler", gradient="checkpointed_block"),
    batch_size=256,
    learning_rate=0.1,
    epochs=350,
    decay_epochs=(150, 300),
)
NETWORKS = {
    "alexnet": dataclasses.replace(RESNET, epochs=120, decay_epochs=(40, 80, 100)),
    "resnet4": RESNET,
    "resnet10": RESNET,
}
FORMS: dict[str, tuple[int, EvolutionName]] = {
    "baseline": (1, "none"),
    "neural_ode": (2, "still"),
    "configuration_1": (5, "configuration_1"),
    "configuration_2": (2, "configuration_2"),
}
"""Steps of a block, and how its kernels evolve."""

ACCURACY = {
    "alexnet": {
        "baseline": (86.84, 87.15, 87.03),
        "neural_ode": (87.86, 88.14, 88.02),
        "configuration_1": (88.59, 88.96, 88.78),
        "configuration_2": (88.10, 88.33, 88.26),
    },
    "resnet4": {
        "baseline": (76.47, 77.35, 76.95),
        "neural_ode": (76.92, 77.45, 77.30),
        "configuration_1": (77.27, 78.58, 78.11),
        "configuration_2": (77.23, 78.28, 77.73),
    },
    "resnet10": {
        "baseline": (87.79, 88.52, 88.10),
        "neural_ode": (88.48, 88.75, 88.60),
        "configuration_1": (88.67, 89.39, 89.04),
        "configuration_2": (88.65, 89.19, 88.93),
    },
}
"""The paper's test accuracy in percent, minimum, maximum and mean of five runs (tables 1, 2 and 4)."""

PARAMETERS = {
    "alexnet": {"baseline": 1756.68, "neural_ode": 1757.13, "configuration_1": 1757.51, "configuration_2": 1757.13},
    "resnet4": {"baseline": 7.71, "neural_ode": 7.96, "configuration_1": 8.23, "configuration_2": 7.99},
    "resnet10": {"baseline": 44.19, "neural_ode": 44.95, "configuration_1": 45.77, "configuration_2": 45.05},
}
"""The paper's parameters in thousands (table 3)."""


def cell(network: str, form: str) -> Config:
    """The setting of one cell of the tables."""
    n_steps, evolution = FORMS[form]
    changes: dict[str, Any] = {"network": network, "n_steps": n_steps, "n_basis": n_steps, "evolution": evolution}
    return dataclasses.replace(NETWORKS[network], model=dataclasses.replace(RESNET.model, **changes))


def make_family() -> dict[str, SimpleNamespace]:
    """Configs with their texts, `{name: (CONFIG, __doc__)}`."""
    family = {}
    for network in NETWORKS:
        for form in FORMS:
            name, config = f"anodev2_{network}_{form}", cell(network, form)
            low, high, mean = ACCURACY[network][form]
            text = (
                f"ANODEV2 {network}, {form.replace('_', ' ')}, on cifar10 for {config.epochs} epochs, "
                f"{PARAMETERS[network][form]}K parameters in the paper.\n\n"
                f"    python -m experiments.train {name}\n\n"
                f"The paper: {mean} % ({low} to {high}) test accuracy in five runs. Not measured here.\n"
            )
            family[name] = SimpleNamespace(CONFIG=config, __doc__=text)
    return family


FAMILY = make_family()
