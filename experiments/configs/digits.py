"""ContinuousNet(RK4-classic) with refinement training on handwritten digits, M = N_t = 1, 2, 4, 8.

    python -m experiments.train digits
"""

from experiments.config import Config

CONFIG = Config(
    dataset="digits",
    crop_pad=1,
    flip=False,
    widths=(8, 16),
    scheme="rk4",
    batch_size=32,
    epochs=40,
    learning_rate=0.1,
    decay_epochs=(25, 35),
    refine_epochs=(5, 10, 15),
    validation_fraction=0.1,
)
