"""The settings of a training run: those of training, and those of the architecture, checked when they are made."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any, Literal, get_args

from experiments.training import optimizers, regularize
from experiments.training.models import ARCHITECTURES, ContinuousNetSettings, ModelSettings, name_of

VERSION = 2
"""Of stored configs; 0.1.0 stored none, and its settings were flat."""
Extent = Literal["global", "local"]
AdaptName = Literal["none", "step", "settled_step", "tolerance"]
ScheduleName = Literal["step", "cosine"]


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
    image_size: int | None = None
    """Height and width that images are brought to, the middle square of each; default what they have."""
    crop_pad: int = 4
    """Pixels of zero padding for the random crop; 0 for none."""
    flip: bool = True
    """Flip half of the images left to right."""

    model: ModelSettings = dataclasses.field(default_factory=ContinuousNetSettings)
    """The architecture and its settings, of `experiments.training.models`."""
    adapt: AdaptName = "none"
    """Adapt the solver to the model every 50 steps (Ott algorithm 1): the number of `step`s, the same without the
    paper's oscillation (`settled_step`), or the `tolerance`, which starts at rtol."""
    adapt_max_steps: int = 64
    """Most steps of an adapted number of steps; there is room for a state of the batch before each of them."""
    w0_penalty: float = 0.0
    """Weight of |w0|^2 / 2 of evolving kernels in the objective, R of ANODEV2 eq. 5a."""
    p_penalty: float = 0.0
    """Weight of |p|^2 / 2 of the parameters of their equation."""
    regularize: tuple[str, ...] = ()
    """What to penalize along the solutions of the ODE blocks, with weights: `kinetic=0.01 jacobian=0.01` (RNODE), and
    `local_error` or `stiffness` of the scheme's own steps."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step; an incomplete last batch is left out."""
    optimizer: str = "sgd"
    """An optimizer of optax by its name: sgd, adamw, lion, muon, ..."""
    learning_rate: float = 0.1
    """At the start, or after `warmup_epochs`."""
    schedule: ScheduleName = "step"
    """How the learning rate falls: in steps before `decay_epochs`, or along a cosine, to 0 after the last epoch."""
    warmup_epochs: float = 0.0
    """Epochs, or parts of one, in which the learning rate rises linearly."""
    decay_epochs: tuple[int, ...] = (30, 60, 90)
    """Epochs before which the learning rate of `step` is multiplied by `decay_factor`; late ones never come."""
    decay_factor: float = 0.1
    """Factor of the step decay."""
    momentum: float = 0.9
    """Of SGD and other optimizers that take one."""
    weight_decay: float = 5e-4
    """Of all parameters: the optimizer's own where it has one, as AdamW, and else an L2 penalty."""
    clip_norm: float | None = None
    """Longest gradient, in the norm over all parameters; longer ones are scaled down."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    ema_decay: float = 0.0
    """Of an average of the weights over training, which then is what is evaluated, saved for use and loaded; 0 for
    none. In early steps it is (1 + step) / (10 + step), if that is less."""
    refine_epochs: tuple[int, ...] = ()
    """Epochs before which M and N_t are doubled (ContinuousNet sec. 5.2); late ones never come."""
    batch_statistics: Extent = "global"
    """Over what batch norm takes mean and variance in training: the `global` batch, for which devices exchange them at
    every norm, or the `local` part of it that a device has."""
    step_control: Extent = "global"
    """Whose error sizes adaptive steps: that of the `global` batch, for which devices exchange a number a trial, or of
    the `local` part of each, which then takes steps of its own."""
    seed: int = 0
    """Of initial values, data order, augmentation and the validation split."""

    def __post_init__(self) -> None:
        for name in ("decay_epochs", "refine_epochs", "regularize"):
            # A list, which JSON has in a tuple's place, could not be hashed.
            object.__setattr__(self, name, tuple(getattr(self, name)))

        def check(name: str, allowed: str, good: bool) -> None:
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")

        check("adapt", f"one of {', '.join(get_args(AdaptName))}", self.adapt in get_args(AdaptName))
        for name in ("batch_statistics", "step_control"):
            check(name, f"one of {', '.join(get_args(Extent))}", getattr(self, name) in get_args(Extent))
        for name in ("adapt_max_steps", "epochs", "batch_size"):
            check(name, "at least 1", getattr(self, name) >= 1)
        check("image_size", "None or 1 to 4096", self.image_size is None or 1 <= self.image_size <= 4096)
        check("crop_pad", "at least 0", self.crop_pad >= 0)
        check("seed", "an integer from 0 to 2147483647", 0 <= self.seed <= 2**31 - 1)
        optimizers.find(self.optimizer)
        check("schedule", f"one of {', '.join(get_args(ScheduleName))}", self.schedule in get_args(ScheduleName))
        check("warmup_epochs", f"at least 0 and at most epochs={self.epochs}", 0 <= self.warmup_epochs <= self.epochs)
        check("clip_norm", "None or a number above 0", self.clip_norm is None or self.clip_norm > 0)
        check("weight_decay", "a finite number of at least 0", 0 <= self.weight_decay < math.inf)
        check("learning_rate", "a finite number above 0", 0 < self.learning_rate < math.inf)
        for name in ("validation_fraction", "momentum", "label_smoothing", "ema_decay"):
            check(name, "a number in [0, 1)", 0 <= getattr(self, name) < 1)
        check("decay_factor", "a number in (0, 1]", 0 < self.decay_factor <= 1)
        good = self.limit is None or self.limit >= self.batch_size
        check("limit", f"None or at least batch_size={self.batch_size}", good)
        for name in ("decay_epochs", "refine_epochs"):
            epochs = (0, *getattr(self, name))
            check(name, "rising epochs, each at least 1", all(a < b for a, b in itertools.pairwise(epochs)))

        # What training asks of the architecture.
        model: Any = self.model
        name, rtol = name_of(model), getattr(model, "rtol", None)
        good = rtol is None or self.step_control == "global" or self.batch_statistics == "local"
        check("step_control", "global beside model.rtol, unless batch_statistics is local too", good)
        evolves = getattr(model, "evolution", "none") != "none"
        for key in ("w0_penalty", "p_penalty"):
            value = getattr(self, key)
            good = value == 0 or (0 < value < math.inf and evolves)
            check(key, "0, or a finite number above 0 beside model.evolution", good)
        regularize.weights_of(self.regularize)
        measured = not self.regularize or model.INTEGRATES
        check("regularize", f"none for a {name}, which integrates nothing along its blocks", measured)
        check("refine_epochs", f"none for a {name}, which has no levels", not self.refine_epochs or model.REFINES)
        fixed = not self.refine_epochs or rtol is None
        check("refine_epochs", "none beside model.rtol: adaptive steps are not refined", fixed)
        if self.adapt != "none":
            check("adapt", f"none for a {name}, whose solver cannot be adapted", model.ADAPTS)
            by_tolerance = self.adapt == "tolerance"
            check("adapt", "tolerance beside model.rtol, and only there", by_tolerance == (rtol is not None))
            check("adapt", "none beside model.atol, which would have to move with rtol", model.atol in (None, rtol))
            check("adapt_max_steps", "at most 2000", self.adapt_max_steps <= 2000)
            check("refine_epochs", f"none for adapt={self.adapt!r}", not self.refine_epochs)

    def level(self, epoch: int) -> int:
        """Refinements done before the given epoch starts."""
        return sum(e <= epoch for e in self.refine_epochs)

    def to_json(self) -> dict[str, Any]:
        """A record that JSON keeps, with the version of these settings and the architecture's name."""
        model = {"architecture": name_of(self.model)} | dataclasses.asdict(self.model)
        record = {"version": VERSION} | dataclasses.asdict(self) | {"model": model}
        return json.loads(json.dumps(record))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Config:
        """The config that `to_json`, of this version or of 0.1.0, turned into `record`; missing keys are defaults.

        Raises:
          ValueError: for a later version, an unknown architecture or unknown keys, which are named.
        """
        version = record.get("version", 1)
        if version not in (1, VERSION):
            raise ValueError(f"version={version!r} of a stored config: expected at most {VERSION}; update experiments/")
        keys = {key: value for key, value in record.items() if key != "version"}
        keys = _upgraded(keys) if version == 1 else keys
        stored = dict(keys.pop("model", {}))
        name = stored.pop("architecture", "continuous_net")
        if name not in ARCHITECTURES:
            raise ValueError(f"architecture={name!r} of a stored config: expected one of {', '.join(ARCHITECTURES)}")
        kind = ARCHITECTURES[name]
        unknown = sorted(set(keys) - _keys(cls)) + [f"model.{key}" for key in sorted(set(stored) - _keys(kind))]
        if unknown:
            raise ValueError(f"a stored config has unknown keys, perhaps of a later version: {', '.join(unknown)}")
        return cls(**keys, model=kind(**stored))


def differences(stored: Any, wanted: Any) -> list[str]:
    """What two configs differ in, a sentence a key."""
    before, after = flat(stored), flat(wanted)
    return [
        f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in {**after, **before}
        if before.get(key) != after.get(key)
    ]


def flat(config: Any) -> dict[str, Any]:
    """All settings by the names that the command line has for them, an architecture as `model`."""
    record = config.to_json()
    model = record.pop("model", None)
    if model is None:
        return dict(record)
    return record | {"model": model.pop("architecture")} | {f"model.{key}": value for key, value in model.items()}


def _keys(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


# ---------------------------------------------------------------------------------------------------------
# 0.1.0: one flat dataclass for all architectures, without a version
# ---------------------------------------------------------------------------------------------------------


OF_MODELS = {
    *("architecture", "widths", "n_blocks", "basis", "n_basis", "scheme", "n_steps", "rtol", "atol", "max_steps"),
    *("evolution", "evolution_steps", "epsilon", "order", "skip_init", "gradient", "compute_dtype"),
}
"""Its keys that belonged to some architecture."""


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """The record of 0.1.0 in today's form; a setting that its architecture did not read is left out."""
    name = record.get("architecture", "continuous_net")
    model = {"architecture": name}
    if name in ("alexnet", "resnet4", "resnet10"):
        model = {"architecture": "anodev2", "network": name}
    read = _keys(ARCHITECTURES.get(model["architecture"], ModelSettings))
    model |= {key: value for key, value in record.items() if key in OF_MODELS and key in read}
    return {key: value for key, value in record.items() if key not in OF_MODELS} | {"model": model}
