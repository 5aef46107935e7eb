"""Is this model an ODE, or tied to its solver?

    report = validity.examine(validity.of_model(net, variables, images), labels=labels)
    print(report.sentence)

`examine` runs three tests on a trained model or a bare field: convergence of its manifestations with the dip at
the training step (ContinuousNet sec. 3), the exchange of its solver for ones of equal or smaller error (Ott sec. 4),
and crossings of its trajectories. Each is a function of its own. `step_adaptation` and its kin keep a model an ODE
while it trains (Ott algorithm 1).
"""

from ode_nets.remanifest import Manifestation
from ode_nets.validity.adaptation import (
    Adaptation,
    AdaptationState,
    adaptation,
    first_step,
    settled_step_adaptation,
    step_adaptation,
    steps_of,
    tolerance_adaptation,
)
from ode_nets.validity.convergence import Convergence, Dip, Slope, convergence, distance, find_dip, fit_slope, rounding
from ode_nets.validity.crossings import (
    Crossings,
    crossings,
    folds,
    is_autonomous,
    order_changes,
    segment_crossings,
    trajectories,
)
from ode_nets.validity.exchange import Exchange, critical_training_step, exchange
from ode_nets.validity.judge import Judgement, describe, judge
from ode_nets.validity.planar import chord_heights, orientation
from ode_nets.validity.quality import Quality
from ode_nets.validity.report import FACTORS, Report, examine
from ode_nets.validity.subjects import Subject, of_field, of_model, say_statistics
from ode_nets.validity.uncertainty import Uncertainty, uncertainty

__all__ = [
    "FACTORS",
    "Adaptation",
    "AdaptationState",
    "Convergence",
    "Crossings",
    "Dip",
    "Exchange",
    "Judgement",
    "Manifestation",
    "Quality",
    "Report",
    "Slope",
    "Subject",
    "Uncertainty",
    "adaptation",
    "chord_heights",
    "convergence",
    "critical_training_step",
    "crossings",
    "describe",
    "distance",
    "examine",
    "exchange",
    "find_dip",
    "first_step",
    "fit_slope",
    "folds",
    "is_autonomous",
    "judge",
    "of_field",
    "of_model",
    "order_changes",
    "orientation",
    "rounding",
    "say_statistics",
    "segment_crossings",
    "settled_step_adaptation",
    "step_adaptation",
    "steps_of",
    "tolerance_adaptation",
    "trajectories",
    "uncertainty",
]
