"""Wide-ContinuousNet(RK4-classic) 64-128-256 with refinement training on CIFAR-100, M = N_t = 1, 2, 4, 8.

    python -m experiments.train cifar100_wide

The paper's setting: 13.58M parameters at the end, 77.99 % (77.68 to 78.12) test accuracy. Not measured here.
"""

from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings

CONFIG = Config(
    dataset="cifar100",
    model=ContinuousNetSettings(widths=(64, 128, 256), scheme="rk4"),
    epochs=100,
    learning_rate=0.1,
    decay_epochs=(30, 60, 90),
    refine_epochs=(20, 50, 80),
)
