"""The settings of a latent ODE, or of a recurrent network, that is trained on series."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import optax

from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, Naive, RecurrentNet, latent_ode

GradientName = Literal["aca", "backsolve", "naive", "direct", "checkpointed"]
NetName = Literal["latent_ode", "rnn", "gru"]
GRADIENTS = {
    "aca": ACA(),
    "backsolve": Backsolve(),
    "naive": Naive(),
    "direct": Direct(),
    "checkpointed": Checkpointed(),
}


@dataclasses.dataclass(frozen=True)
class SeriesConfig:
    """Everything but the data that decides a result. The same settings, data, versions and device repeat it.

    Raises:
      ValueError: when made, for a value out of range; it names the key and what is allowed.
    """

    net: NetName = "latent_ode"
    """`latent_ode`; or a baseline that predicts from the past alone: `rnn`, told the time since the last observation,
    or `gru`, whose state decays with it."""
    gradient: GradientName = "aca"
    """Gradient method of the generator."""
    observed: float = 0.5
    """Share of the times of each series that the encoder sees, redrawn every batch; all are to be predicted."""
    scale: Literal["range", "max"] = "range"
    """Values are (x - min) / (max - min) of each feature, or (x - min) / max, as in the MuJoCo experiments."""
    span: float = 1.0
    """Length that the times are scaled to."""
    latent: int = 15
    """Length of the latent state."""
    size: int = 30
    """Of the encoder's state; of a baseline's."""
    width: int = 100
    """Hidden layers of both right-hand sides; the paper's are 300."""
    depth: int = 4
    """How many there are."""
    units: int = 100
    """Hidden layers of the encoder's cell and of the heads."""
    encoder_steps: int = 1
    """Euler steps of the encoder from each time to the one before."""
    rtol: float = 1e-3
    """Of the generator, under Dopri5."""
    atol: float = 1e-4
    """Of the generator."""
    max_steps: int = 100
    """Bound on its trial steps; naive and direct keep room for all of them."""
    n_samples: int = 3
    """Samples of the latent state."""
    sigma: float = 0.01
    """Deviation of the noise on scaled values."""
    kl_wait: int = 10
    """Epochs without the divergence; its weight is then 1 - 0.99^(epochs since)."""
    batch_size: int = 50
    """Series a step; an incomplete last batch is left out."""
    epochs: int = 50
    """Passes over the training series."""
    learning_rate: float = 0.01
    """Of Adamax at the start; times 0.999 a step, down to a tenth."""
    validation_fraction: float = 0.1
    """Share of the training series that picks the best epoch: the last of them."""
    test_fraction: float = 0.2
    """Share of all series that tests: the last ones."""
    limit: int | None = None
    """Use this many training series only, validation included."""
    seed: int = 0
    """Of initial values, order, what is observed, and samples."""

    def __post_init__(self) -> None:
        def check(name: str, allowed: str, good: bool) -> None:
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")

        for name, kind in (("net", NetName), ("gradient", GradientName)):
            check(name, f"one of {', '.join(get_args(kind))}", getattr(self, name) in get_args(kind))
        check("scale", "range or max", self.scale in ("range", "max"))
        counts = ("latent", "size", "width", "depth", "units", "encoder_steps", "max_steps", "n_samples", "batch_size")
        for name in (*counts, "epochs"):
            check(name, "at least 1", getattr(self, name) >= 1)
        for name in ("span", "rtol", "atol", "sigma", "learning_rate"):
            check(name, "a finite number above 0", 0 < getattr(self, name) < math.inf)
        check("observed", "a share in (0, 1]", 0 < self.observed <= 1)
        check("limit", "None or at least 1", self.limit is None or self.limit >= 1)
        for name in ("validation_fraction", "test_fraction"):
            check(name, "a share in (0, 1)", 0 < getattr(self, name) < 1)
        check("kl_wait", "at least 0", self.kl_wait >= 0)
        check("seed", "an integer from 0 to 2147483647", 0 <= self.seed <= 2**31 - 1)

    def to_json(self) -> dict[str, Any]:
        """A record that JSON keeps."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> SeriesConfig:
        """The config that `to_json` turned into `record`.

        Raises:
          ValueError: for unknown keys, which are named.
        """
        if unknown := sorted(set(record) - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"a stored config has unknown keys: {', '.join(unknown)}")
        return cls(**record)

    def build(self, n_features: int) -> nn.Module:
        """The network."""
        if self.net != "latent_ode":
            cell = nn.GRUCell(self.size) if self.net == "gru" else nn.SimpleCell(self.size)
            return RecurrentNet(cell, decay=self.net == "gru", units=self.units)
        solver = Adaptive("dopri5", self.rtol, self.atol, max_steps=self.max_steps)
        sizes = {
            "latent": self.latent,
            "size": self.size,
            "width": self.width,
            "depth": self.depth,
            "units": self.units,
        }
        net = latent_ode(n_features, solver=solver, gradient=GRADIENTS[self.gradient], **sizes)
        return net.clone(encoder=net.encoder.clone(solver=FixedStep("euler", self.encoder_steps)))

    def optimizer(self) -> optax.GradientTransformation:
        """Adamax, whose rate decays by the step."""
        rate = optax.exponential_decay(self.learning_rate, 1, 0.999, end_value=self.learning_rate / 10)
        return optax.adamax(rate)
