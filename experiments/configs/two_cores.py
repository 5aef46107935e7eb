"""All of CIFAR-10 on two cores, meant for about 90 minutes a network: the papers' comparisons at one reduction.

    python -m experiments.train cifar10_two_cores         RK4 refined to M = N_t = 4, and its twins under Euler
    python -m experiments.train node18_two_cores          a narrow NODE18 by ACA, and by the other methods

All train on 49,000 images and keep 1,000 to choose by, as compression does, with schedules that are the papers' in so
few epochs. The networks of ContinuousNet have the paper's widths; `cifar10_two_cores_euler` differs from the one under
RK4 in its scheme alone, and `cifar10_two_cores_euler16` is a ResNet of 16 units a block. NODE18 has an eighth of its
width, and one solver for all three gradient methods, so that they differ in the gradient alone.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from experiments.configs import continuous_net, node18
from experiments.training.config import Config
from experiments.training.models import ResNet18Settings

RK4 = dataclasses.replace(
    continuous_net.CIFAR10,
    validation_fraction=0.02,
    epochs=5,
    batch_size=64,
    learning_rate=0.05,
    decay_epochs=(4,),
    refine_epochs=(3, 4),
)
EULER = dataclasses.replace(RK4, model=dataclasses.replace(continuous_net.DEEP, scheme="euler"))
EULER_16 = dataclasses.replace(continuous_net.euler(RK4, 16), epochs=3, decay_epochs=(2,))

NARROW = (8, 16, 32, 64)
NODE18 = dataclasses.replace(node18.NODE18, widths=NARROW)
ACA = dataclasses.replace(
    node18.ACA, model=NODE18, validation_fraction=0.02, epochs=5, batch_size=50, learning_rate=0.05, decay_epochs=(3, 4)
)
ADJOINT = dataclasses.replace(ACA, model=dataclasses.replace(NODE18, gradient="backsolve"))
# There is room for all stages of max_steps steps, taken or not.
NAIVE = dataclasses.replace(ACA, model=dataclasses.replace(NODE18, gradient="naive", max_steps=32))
RESNET18 = dataclasses.replace(ACA, model=ResNet18Settings(widths=NARROW))

SETTINGS: dict[str, tuple[str, Config, str]] = {
    "cifar10_two_cores": (
        "ContinuousNet(RK4-classic) 16-32-64 on CIFAR-10 for 5 epochs, refined to M = N_t = 1, 2, 4",
        RK4,
        "Estimated from the seconds of a step: 90 minutes on two cores. Not measured here.",
    ),
    "cifar10_two_cores_euler": (
        "The same under Euler, with nothing else changed",
        EULER,
        "Estimated from the seconds of a step: 25 minutes on two cores. Not measured here.",
    ),
    "cifar10_two_cores_euler16": (
        "ContinuousNet(Euler) 16-32-64 on CIFAR-10 for 3 epochs, M = N_t = 16, unrefined: a ResNet",
        EULER_16,
        "Estimated from the seconds of a step: 90 minutes on two cores. Not measured here.",
    ),
    "node18_two_cores": (
        "NODE18 of an eighth of its width by ACA, HeunEuler 1e-2, on CIFAR-10 for 5 epochs",
        ACA,
        "Estimated from the seconds of a step: 90 minutes on two cores. Not measured here.",
    ),
    "node18_two_cores_adjoint": (
        "The same by the continuous adjoint",
        ADJOINT,
        "Estimated from the seconds of a step: 90 minutes on two cores. Not measured here.",
    ),
    "node18_two_cores_naive": (
        "The same by the naive method",
        NAIVE,
        "Estimated from the seconds of a step: 90 minutes on two cores. Not measured here.",
    ),
    "resnet18_two_cores": (
        "ResNet18 of an eighth of its width, on CIFAR-10 for 5 epochs",
        RESNET18,
        "Estimated from the seconds of a step: 15 minutes on two cores. Not measured here.",
    ),
}
FAMILY = {
    name: SimpleNamespace(CONFIG=config, __doc__=f"{title}.\n\n    python -m experiments.train {name}\n\n{text}\n")
    for name, (title, config, text) in SETTINGS.items()
}
"""Configs with their texts, `{name: (CONFIG, __doc__)}`."""
