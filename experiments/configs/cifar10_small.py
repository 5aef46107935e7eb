"""A small ContinuousNet on 4,000 images of CIFAR-10 for a few epochs: the CIFAR-10 path on two cores.

    python -m experiments.train cifar10_small

Another 1,000 of the training images are for validation; the test images are all 10,000. The training loss falls from
2.13 to 1.62 over the epochs, and 39.6 % of the test images are classified rightly. Stopped by SIGTERM in the fifth
epoch and resumed, it took 7 minutes on two cores, of which 5.3 are training.
"""

from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings

CONFIG = Config(
    dataset="cifar10",
    limit=4000,
    model=ContinuousNetSettings(widths=(8, 16, 32), scheme="rk4"),
    batch_size=64,
    validation_fraction=0.02,
    epochs=6,
    learning_rate=0.05,
    decay_epochs=(5,),
    refine_epochs=(3, 5),
)
