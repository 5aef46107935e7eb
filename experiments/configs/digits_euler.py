"""ContinuousNet(Euler), the twin of `digits`, trained at M = N_t = 8 from the start with eps = N_t: a ResNet.

    python -m experiments.train digits_euler

Widths, final depth, data, epochs and rates are those of `digits`. eps = N_t is the paper's ResNet; at the eps of
`digits` each unit would enter with a quarter of its weight.
"""

import dataclasses

from experiments.configs import digits

CONFIG = dataclasses.replace(
    digits.CONFIG, scheme="euler", n_basis=8, n_steps=8, epsilon=8.0, refine_epochs=()
)
