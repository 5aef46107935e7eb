"""ContinuousNet(Euler), the twin of `digits`, trained at M = N_t = 4 from the start with eps = N_t: a ResNet.

    python -m experiments.train digits_euler

Widths, final depth, data, epochs and rates are those of `digits`. eps = N_t is the paper's ResNet; at the eps of
`digits` each unit would enter with half of its weight.

98.6 % of the 359 test images (seed 0), as `digits`; `experiments.quickstart` runs both.
"""

import dataclasses

from experiments.configs import digits

MODEL = dataclasses.replace(digits.MODEL, scheme="euler", n_basis=4, n_steps=4, epsilon=4.0)
CONFIG = dataclasses.replace(digits.CONFIG, model=MODEL, refine_epochs=())
