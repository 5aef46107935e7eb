"""The settings of a training run: one flat frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Literal, get_args

from ode_nets.fields.residual import Order
from ode_nets.tableaus import SCHEMES

Architecture = Literal["continuous_net", "resnet", "node18", "resnet18", "alexnet", "resnet4", "resnet10"]
EvolutionName = Literal["none", "still", "configuration_1", "configuration_2"]
BasisName = Literal["piecewise_constant", "piecewise_linear", "legendre", "chebyshev", "fourier"]
GradientName = Literal["direct", "checkpointed_step", "checkpointed_block", "aca", "backsolve"]
AdaptName = Literal["none", "step", "settled_step", "tolerance"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run. The same config, seed, versions and device repeat it.

    Raises:
      ValueError: when made, for a value out of range; it names the key and what is allowed.
    """

    dataset: str = "digits"
    """`digits`, a TFDS name (`cifar10`), an `.npz` file, or a folder of images."""
    data_dir: str | None = None
    """Where prepared TFDS data lies; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    limit: int | None = None
    """Use this many training images only."""
    validation_fraction: float = 0.1
    """Share of the training images held out for validation."""
    crop_pad: int = 4
    """Pixels of zero padding for the random crop; 0 for none."""
    flip: bool = True
    """Flip half of the images left to right."""

    architecture: Architecture = "continuous_net"
    """Which family of networks. Of the settings up to n_steps, a resnet reads widths, n_steps (units a block) and
    skip_init; node18 reads widths, n_blocks, the evolution and those of the solver; resnet18 reads widths and
    n_blocks; alexnet, resnet4 and resnet10 of ANODEV2 read those of the basis, the evolution and the solver."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each block."""
    n_blocks: int = 1
    """ODE blocks a stage of node18, or further basic blocks a stage of resnet18."""
    basis: BasisName = "piecewise_constant"
    """Basis of theta(t)."""
    n_basis: int = 1
    """M, coefficients a block before any refinement."""
    scheme: str = "rk4"
    """Runge-Kutta scheme."""
    n_steps: int = 1
    """N_t, steps a block before any refinement; without meaning where rtol is given."""
    evolution: EvolutionName = "none"
    """How kernels change in depth (ANODEV2), if not in the basis: not at all (`still`), or by reaction, diffusion and
    advection, read at every one of evolution_steps steps (`configuration_1`) or before and after ten of their own."""
    evolution_steps: int | None = None
    """The grid in depth that evolving kernels are read on; default n_steps. No refinement changes it."""
    rtol: float | None = None
    """Relative tolerance of adaptive steps under an embedded scheme; default: n_steps fixed ones."""
    atol: float | None = None
    """Absolute tolerance; default that of rtol."""
    max_steps: int = 4096
    """Bound on the trial steps of an adaptive solve; `direct` and `checkpointed_step` keep room for all of them."""
    adapt: AdaptName = "none"
    """Adapt the solver to the model every 50 steps (Ott algorithm 1): the number of `step`s, the same without the
    paper's oscillation (`settled_step`), or the `tolerance`, which starts at rtol."""
    adapt_max_steps: int = 64
    """Most steps of an adapted number of steps; there is room for a state of the batch before each of them."""
    w0_penalty: float = 0.0
    """Weight of |w0|^2 / 2 of evolving kernels in the objective, R of ANODEV2 eq. 5a."""
    p_penalty: float = 0.0
    """Weight of |p|^2 / 2 of the parameters of their equation."""
    epsilon: float = 1.0
    """Scale of the right-hand side."""
    order: Order = "bn-relu-conv"
    """Layers of the residual unit."""
    skip_init: bool = True
    """Scale each unit by a scalar that starts at zero."""
    gradient: GradientName = "checkpointed_step"
    """Gradient method."""
    compute_dtype: str | None = None
    """What convolutions compute in, e.g. `bfloat16`; default float32."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step; an incomplete last batch is left out."""
    learning_rate: float = 0.1
    """Of SGD at the start."""
    decay_epochs: tuple[int, ...] = (30, 60, 90)
    """Epochs before which the learning rate is multiplied by `decay_factor`; late ones never come."""
    decay_factor: float = 0.1
    """Factor of the step decay."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty on all parameters, added to the gradient."""
    refine_epochs: tuple[int, ...] = ()
    """Epochs before which M and N_t are doubled (ContinuousNet sec. 5.2); late ones never come."""
    seed: int = 0
    """Of initial values, data order, augmentation and the validation split."""

    def __post_init__(self) -> None:
        for name in ("widths", "decay_epochs", "refine_epochs"):
            # A list, which JSON has in a tuple's place, could not be hashed.
            object.__setattr__(self, name, tuple(getattr(self, name)))

        def check(name: str, allowed: str, good: bool) -> None:
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")

        for name, choices in (
            ("architecture", get_args(Architecture)),
            ("basis", get_args(BasisName)),
            ("gradient", get_args(GradientName)),
            ("order", get_args(Order)),
            ("evolution", get_args(EvolutionName)),
            ("adapt", get_args(AdaptName)),
            ("scheme", tuple(SCHEMES)),
            ("compute_dtype", (None, "float32", "bfloat16", "float16")),
        ):
            check(name, f"one of {', '.join(map(str, choices))}", getattr(self, name) in choices)
        for name in ("n_basis", "n_blocks", "n_steps", "max_steps", "adapt_max_steps", "epochs", "batch_size"):
            check(name, "at least 1", getattr(self, name) >= 1)
        for name in ("crop_pad", "seed"):
            check(name, "at least 0", getattr(self, name) >= 0)
        check("weight_decay", "a finite number of at least 0", 0 <= self.weight_decay < math.inf)
        for name in ("learning_rate", "epsilon"):
            check(name, "a finite number above 0", 0 < getattr(self, name) < math.inf)
        for name in ("validation_fraction", "momentum"):
            check(name, "a number in [0, 1)", 0 <= getattr(self, name) < 1)
        check("decay_factor", "a number in (0, 1]", 0 < self.decay_factor <= 1)
        good = self.limit is None or self.limit >= self.batch_size
        check("limit", f"None or at least batch_size={self.batch_size}", good)
        check("widths", "one width or more, each at least 1", bool(self.widths) and min(self.widths) >= 1)
        for name in ("decay_epochs", "refine_epochs"):
            epochs = (0, *getattr(self, name))
            check(name, "rising epochs, each at least 1", all(a < b for a, b in itertools.pairwise(epochs)))
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            check(name, "None or a finite number above 0", value is None or 0 < value < math.inf)
        good = self.evolution_steps is None or (self.evolution_steps >= 1 and self.evolution != "none")
        check("evolution_steps", "None, or at least 1 beside an evolution", good)
        for name in ("w0_penalty", "p_penalty"):
            value = getattr(self, name)
            good = value == 0 or (0 < value < math.inf and self.evolution != "none")
            check(name, "0, or a finite number above 0 beside an evolution", good)
        check("atol", "None without rtol", self.atol is None or self.rtol is not None)
        if self.rtol is not None:
            check("scheme", "one with an error estimate beside rtol", SCHEMES[self.scheme].b_error is not None)
            check("refine_epochs", "none beside rtol: adaptive steps are not refined", not self.refine_epochs)
        if self.adapt != "none":
            by_tolerance = self.adapt == "tolerance"
            check("adapt", "tolerance beside rtol, and only there", by_tolerance == (self.rtol is not None))
            check("atol", f"None for adapt={self.adapt!r}, which moves it with rtol", self.atol in (None, self.rtol))
            check("adapt_max_steps", "at most 2000", self.adapt_max_steps <= 2000)
            check("refine_epochs", f"none for adapt={self.adapt!r}", not self.refine_epochs)
            solved = self.architecture in ("continuous_net", "node18")
            check("architecture", f"continuous_net or node18 for adapt={self.adapt!r}", solved)
        if self.architecture != "continuous_net":
            name = f"architecture={self.architecture!r}"
            check("refine_epochs", f"none for {name}", not self.refine_epochs)
        if self.architecture in ("node18", "resnet18"):
            check("n_basis", f"1 for {name}", self.n_basis == 1)
        if self.architecture in ("resnet", "resnet18"):
            check("evolution", f"none for {name}", self.evolution == "none")
        if self.evolution in ("configuration_1", "configuration_2"):
            # On one step kernels are read at their start alone, and nothing that moves them is trained.
            allowed = f"at least 2 for evolution={self.evolution!r}, or n_steps of at least 2"
            check("evolution_steps", allowed, (self.evolution_steps or self.n_steps) >= 2)
        if self.architecture == "resnet":
            check("compute_dtype", "None for architecture='resnet'", self.compute_dtype is None)

    def level(self, epoch: int) -> int:
        """Refinements done before the given epoch starts."""
        return sum(e <= epoch for e in self.refine_epochs)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Config:
        """The config that `dataclasses.asdict` and JSON turned into `record`."""
        return cls(**record)
