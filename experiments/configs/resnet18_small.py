"""A narrow ResNet18 on 5,000 images of CIFAR-10, the discrete twin of `node18_small`.

    python -m experiments.train resnet18_small
    python -m experiments.aca.reliability resnet18_small --n-runs 5

Not measured here in full; as short runs in the table of reliability.
"""

import dataclasses

from experiments.configs import node18_small
from experiments.training.models import ResNet18Settings

CONFIG = dataclasses.replace(node18_small.CONFIG, model=ResNet18Settings(widths=(8, 16, 32, 64)))
