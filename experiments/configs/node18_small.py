"""A narrow NODE18 by ACA on 5,000 images of CIFAR-10: the whole path of NODE18 on two cores.

    python -m experiments.train node18_small
    python -m experiments.aca.node18_swap runs/node18_small --images 1000
    python -m experiments.aca.linear_classifier node18_small

57.3 % of the 10,000 test images, after 12 epochs on 5,000 images (stopped by SIGTERM in the fourth and resumed); the
linear classifier of the pixels has 37.4 %. 28 minutes of training on two cores that others used too, 99 to 147 s an
epoch.
"""

from experiments.training.config import Config
from experiments.training.models import Node18Settings

CONFIG = Config(
    dataset="cifar10",
    limit=5000,
    validation_fraction=0.02,
    model=Node18Settings(widths=(8, 16, 32, 64), scheme="heun_euler", rtol=1e-2, gradient="aca"),
    epochs=12,
    batch_size=50,
    learning_rate=0.05,
    decay_epochs=(7, 10),
)
