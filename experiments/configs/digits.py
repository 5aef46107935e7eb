"""ContinuousNet(RK4-classic) with refinement training on handwritten digits, M = N_t = 1, 2, 4.

    python -m experiments.train digits

M and N_t are doubled as late as the learning rate is decayed: coefficients that have had little time to part
leave a theta(t) that other step counts read as well. The images are small enough to keep every stage's
activations, which is faster than to compute them again.

With eps = 4 and no weight decay its twin under Euler, `digits_euler`, is the more tied to its solver with each of ten
seeds: `python -m experiments.tied` trains both and others between them; results/README.md has medians and ranges.

97.8 % of the 359 test images (seed 0). This run, its twin and the solver swaps of both take 2.6 minutes on two cores.
"""

from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings

MODEL = ContinuousNetSettings(widths=(16, 32), scheme="rk4", epsilon=4.0, gradient="direct")
CONFIG = Config(
    dataset="digits",
    crop_pad=1,
    flip=False,
    model=MODEL,
    batch_size=32,
    epochs=18,
    learning_rate=0.05,
    weight_decay=0.0,
    decay_epochs=(12, 16),
    refine_epochs=(9, 13),
    validation_fraction=0.1,
)
