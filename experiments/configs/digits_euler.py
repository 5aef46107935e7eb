"""ContinuousNet(Euler), the twin of `digits`, trained at M = N_t = 8 from the start, eps = N_t: a ResNet.

    python -m experiments.train digits_euler
"""

import dataclasses

from experiments.configs import digits

CONFIG = dataclasses.replace(
    digits.CONFIG, scheme="euler", n_basis=8, n_steps=8, epsilon=8.0, refine_epochs=()
)
