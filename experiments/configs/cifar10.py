"""ContinuousNet(RK4-classic) 16-32-64 with refinement training on CIFAR-10, M = N_t = 1, ..., 32.

    python -m experiments.train cifar10

The paper's setting (sec. 5.2): 3.19M parameters at the end, 93.57 % (93.40 to 93.70) test accuracy, and
608 minutes on one V100. Not measured here.
"""

from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings

CONFIG = Config(
    dataset="cifar10",
    model=ContinuousNetSettings(widths=(16, 32, 64), scheme="rk4"),
    epochs=100,
    learning_rate=0.1,
    decay_epochs=(30, 60, 90),
    refine_epochs=(20, 40, 60, 70, 80),
)
