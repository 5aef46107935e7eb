"""Architectures: the settings of each, how it is built from them, and the name that it is known by.

A new one is a dataclass here with `build`, and a line in `ARCHITECTURES`; its keys are then `--model.KEY`. `own` stands
for any network of the user's, `--model PACKAGE.MODULE:FUNCTION`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import flax.linen as nn

from experiments.training.architecture import BASES, BasisName, ModelSettings
from experiments.training.own import OwnSettings
from ode_nets.fields.residual import Order
from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, GradientMethod, Naive
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.nn import ANODEV2, NODE18, AugmentedNet, ContinuousNet, ResNet, ResNet18
from ode_nets.tableaus import SCHEMES, get_tableau
from ode_nets.weights import (
    RDA,
    Evolution,
    FlowStep,
    PiecewiseConstant,
    Still,
    configuration_1,
    configuration_2,
)

if TYPE_CHECKING:
    from experiments.training.config import Config

EvolutionName = Literal["none", "still", "configuration_1", "configuration_2"]
GradientName = Literal["direct", "checkpointed_step", "checkpointed_block", "aca", "backsolve", "naive"]
DTYPES = (None, "float32", "bfloat16", "float16")

GRADIENTS: dict[str, GradientMethod] = {
    "direct": Direct(),
    "checkpointed_step": Checkpointed("step"),
    "checkpointed_block": Checkpointed("block"),
    "aca": ACA(),
    "backsolve": Backsolve(),
    "naive": Naive(),
}


# ---------------------------------------------------------------------------------------------------------
# What networks of ODE blocks share
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OdeSettings(ModelSettings):
    """What every network of ODE blocks is told: solver, gradient method, precision, and how kernels evolve."""

    scheme: str = "rk4"
    """Runge-Kutta scheme."""
    n_steps: int = 1
    """N_t, steps a block before any refinement; without meaning where rtol is given."""
    rtol: float | None = None
    """Relative tolerance of adaptive steps under an embedded scheme; default: n_steps fixed ones."""
    atol: float | None = None
    """Absolute tolerance; default that of rtol."""
    max_steps: int = 4096
    """Bound on the trial steps of an adaptive solve; `direct` and `checkpointed_step` keep room for all of them."""
    gradient: GradientName = "checkpointed_step"
    """Gradient method."""
    compute_dtype: str | None = None
    """What convolutions compute in, e.g. `bfloat16`; default float32."""
    evolution: EvolutionName = "none"
    """How kernels change in depth (ANODEV2), if not in the basis: not at all (`still`), or by reaction, diffusion and
    advection, read at every one of evolution_steps steps (`configuration_1`) or before and after ten of their own."""
    evolution_steps: int | None = None
    """The grid in depth that evolving kernels are read on; default n_steps. No refinement changes it."""

    def __post_init__(self) -> None:
        self.check_choice("scheme", tuple(SCHEMES))
        self.check_choice("gradient", get_args(GradientName))
        self.check_choice("compute_dtype", DTYPES)
        self.check_choice("evolution", get_args(EvolutionName))
        self.check_counts("n_steps", "max_steps")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            self.check(name, "None or a finite number above 0", value is None or 0 < value < math.inf)
        self.check("atol", "None without rtol", self.atol is None or self.rtol is not None)
        embedded = self.rtol is None or SCHEMES[self.scheme].b_error is not None
        self.check("scheme", "one with an error estimate beside rtol", embedded)
        searched = self.gradient != "naive" or self.rtol is not None
        self.check("gradient", "another one without rtol: naive differentiates the search for steps", searched)
        good = self.evolution_steps is None or (self.evolution_steps >= 1 and self.evolution != "none")
        self.check("evolution_steps", "None, or at least 1 beside an evolution", good)
        if self.evolution in ("configuration_1", "configuration_2"):
            # On one step kernels are read at their start alone, and nothing that moves them is trained.
            allowed = f"at least 2 for evolution={self.evolution!r}, or n_steps of at least 2"
            self.check("evolution_steps", allowed, (self.evolution_steps or self.n_steps) >= 2)

    def solver(self, level: int = 0) -> Adaptive | FixedStep:
        """The solver of each block, with N_t doubled `level` times."""
        tableau = get_tableau(self.scheme)
        if self.rtol is None:
            return FixedStep(tableau, self.n_steps * 2**level)
        return Adaptive(tableau, self.rtol, self.rtol if self.atol is None else self.atol, max_steps=self.max_steps)

    def evolved(self) -> Evolution | None:
        """How the kernels of each block evolve, at every level of refinement."""
        n_steps = self.evolution_steps or self.n_steps
        match self.evolution:
            case "still":
                return Evolution(Still(), FlowStep(1), PiecewiseConstant(1))
            case "configuration_1":
                return configuration_1(RDA(), n_steps)
            case "configuration_2":
                return configuration_2(RDA(), n_steps, 10 * (n_steps - 1))
        return None


# ---------------------------------------------------------------------------------------------------------
# The architectures
# ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ContinuousNetSettings(OdeSettings):
    """ContinuousNet: theta(t) in a basis, refined in depth while it trains."""

    REFINES: ClassVar[bool] = True
    ADAPTS: ClassVar[bool] = True
    INTEGRATES: ClassVar[bool] = True

    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each block."""
    basis: BasisName = "piecewise_constant"
    """Basis of theta(t)."""
    n_basis: int = 1
    """M, coefficients a block before any refinement."""
    epsilon: float = 1.0
    """Scale of the right-hand side."""
    order: Order = "bn-relu-conv"
    """Layers of the residual unit."""
    skip_init: bool = True
    """Scale each unit by a scalar that starts at zero."""
    final_norm: bool = False
    """Normalize, and apply a ReLU, before the mean over space."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths()
        self.check_counts("n_basis")
        self.check_choice("basis", get_args(BasisName))
        self.check_choice("order", get_args(Order))
        self.check("epsilon", "a finite number above 0", 0 < self.epsilon < math.inf)

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        basis = BASES[self.basis](self.n_basis)
        for _ in range(level):
            basis = basis.refined(2)
        return ContinuousNet(
            n_classes=n_classes,
            widths=self.widths,
            basis=basis,
            solver=self.solver(level),
            gradient=GRADIENTS[self.gradient],
            epsilon=self.epsilon,
            order=self.order,
            skip_init=self.skip_init,
            final_norm=self.final_norm,
            dtype=self.compute_dtype,
            evolution=self.evolved(),
        )


@dataclasses.dataclass(frozen=True)
class ResNetSettings(ModelSettings):
    """The residual network that ContinuousNet under Euler is."""

    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each block."""
    n_steps: int = 1
    """Units a block."""
    skip_init: bool = True
    """Scale each unit by a scalar that starts at zero."""
    final_norm: bool = False
    """Normalize, and apply a ReLU, before the mean over space."""

    def __post_init__(self) -> None:
        self.check_widths()
        self.check_counts("n_steps")

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        return ResNet(n_classes, self.widths, self.n_steps, self.skip_init, self.final_norm)


@dataclasses.dataclass(frozen=True)
class Node18Settings(OdeSettings):
    """NODE18: ResNet18 with an ODE block in place of all residual blocks of a stage but the first."""

    ADAPTS: ClassVar[bool] = True
    INTEGRATES: ClassVar[bool] = True

    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage; the paper's are 64, 128, 256, 512."""
    n_blocks: int = 1
    """ODE blocks a stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_widths()
        self.check_counts("n_blocks")

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        gradient, dtype = GRADIENTS[self.gradient], self.compute_dtype
        solver, evolution = self.solver(level), self.evolved()
        return NODE18(n_classes, self.widths, self.n_blocks, solver, gradient, dtype=dtype, evolution=evolution)


@dataclasses.dataclass(frozen=True)
class ResNet18Settings(ModelSettings):
    """ResNet18, the discrete twin of NODE18."""

    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage; the paper's are 64, 128, 256, 512."""
    n_blocks: int = 1
    """Basic blocks a stage beyond the first."""
    compute_dtype: str | None = None
    """What convolutions compute in, e.g. `bfloat16`; default float32."""

    def __post_init__(self) -> None:
        self.check_widths()
        self.check_counts("n_blocks")
        self.check_choice("compute_dtype", DTYPES)

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        return ResNet18(n_classes, self.widths, self.n_blocks, dtype=self.compute_dtype)


@dataclasses.dataclass(frozen=True)
class Anodev2Settings(OdeSettings):
    """The networks of ANODEV2, whose kernels evolve."""

    network: Literal["alexnet", "resnet4", "resnet10"] = "resnet4"
    """Which of them."""
    basis: BasisName = "piecewise_constant"
    """Basis of theta(t)."""
    n_basis: int = 1
    """M, coefficients a block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("network", ("alexnet", "resnet4", "resnet10"))
        self.check_choice("basis", get_args(BasisName))
        self.check_counts("n_basis")

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        basis, gradient = BASES[self.basis](self.n_basis), GRADIENTS[self.gradient]
        solver, dtype = self.solver(level), self.compute_dtype
        return ANODEV2(self.network, n_classes, basis, solver, self.evolved(), gradient, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class AugmentedSettings(OdeSettings):
    """One ODE block on the image and channels of zeros beside it (ANODE)."""

    ADAPTS: ClassVar[bool] = True
    INTEGRATES: ClassVar[bool] = True

    augment: int = 5
    """Channels of zeros."""
    filters: int = 64
    """Channels between the convolutions of the right-hand side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("augment", "at least 0", self.augment >= 0)
        self.check_counts("filters")

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        solver, gradient, evolution = self.solver(level), GRADIENTS[self.gradient], self.evolved()
        options: dict[str, Any] = {"dtype": self.compute_dtype, "evolution": evolution}
        return AugmentedNet(n_classes, self.augment, self.filters, solver=solver, gradient=gradient, **options)


ARCHITECTURES: dict[str, type[ModelSettings]] = {
    "continuous_net": ContinuousNetSettings,
    "resnet": ResNetSettings,
    "node18": Node18Settings,
    "resnet18": ResNet18Settings,
    "anodev2": Anodev2Settings,
    "own": OwnSettings,
    "augmented": AugmentedSettings,
}


def name_of(model: ModelSettings) -> str:
    """The name of an architecture, from its settings."""
    return next(name for name, kind in ARCHITECTURES.items() if kind is type(model))


def build(config: Config, n_classes: int, level: int = 0) -> nn.Module:
    """The network of a config after `level` refinements."""
    return config.model.build(n_classes, level)


def training(net: nn.Module) -> dict[str, Any]:
    """What a network is called with in training; one that does the same then need not take `train`."""
    return {"train": True} if "train" in inspect.signature(type(net).__call__).parameters else {}
