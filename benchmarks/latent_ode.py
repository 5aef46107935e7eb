"""One training step's loss and gradient of the latent ODE at the paper's sizes, beside the same model elsewhere.

    python -m benchmarks.latent_ode
    python -m benchmarks.latent_ode --repeats 3 --batch 10

50 series of 100 times and 14 values, 10 % of the times observed, 3 samples, Dopri5 at rtol 1e-3 and atol 1e-4, random
values and initial weights. In diffrax the encoder's Euler steps are written out in a scan, the fairest for it, and the
generator runs under `RecursiveCheckpointAdjoint`. Where PyTorch is installed (extra `bench`) the generator runs under
torchdiffeq's `odeint` and `odeint_adjoint` as well, the encoder as a loop of PyTorch, as it is written there. All have
the same parameters and draws; how far loss and gradient are apart is recorded. Writes
benchmarks/results/latent_ode_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, torch_peers
from experiments.records.command import command_line
from experiments.series.steps import observe
from ode_nets import (
    ACA,
    Backsolve,
    Checkpointed,
    Direct,
    Gaussian,
    LatentODE,
    gaussian_kl,
    gaussian_log_likelihood,
    importance_bound,
    latent_ode,
)

PyTree = Any
METHODS = {"ACA": ACA(), "Checkpointed": Checkpointed(), "Direct": Direct(), "Backsolve": Backsolve()}
PEER = "diffrax RecursiveCheckpointAdjoint"
N_SAMPLES, MAX_STEPS = 3, 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    batch: int = 50
    """Series."""
    observed: float = 0.1
    """Share of the times that the encoder sees."""
    repeats: int = 10
    """Samples of each program."""
    methods: tuple[str, ...] = ("ACA", "Checkpointed", "Backsolve")
    """Of ours, beside diffrax."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/latent_ode_<platform>.json."""


def objective(z0: Gaussian, x: jax.Array, values: jax.Array) -> jax.Array:
    """The loss of a batch."""
    return -importance_bound(gaussian_log_likelihood(x, values, None, 1e-3).mean(1), gaussian_kl(*z0).mean(), 0.5)


def peer(net: LatentODE, params: PyTree, times: Any, values: Any, seen: Any, key: jax.Array) -> jax.Array:
    """The same loss with diffrax in the generator and Euler steps written out in the encoder."""
    encoder, of = net.encoder, params["encoder"]
    zeros = jnp.zeros((len(values), encoder.size))
    inputs, there = jnp.concatenate([jnp.where(seen, values, 0), seen], -1), seen.any(-1, keepdims=True)

    def body(state: Gaussian, row: Any) -> tuple[Gaussian, None]:
        gap, x, there = row
        state = state._replace(mean=state.mean + gap * encoder.unit.apply(of["field"], state.mean)[0])
        new = encoder.cell.apply({"params": of["update"]}, state, x)
        return jax.tree.map(lambda new, old: jnp.where(there, new, old), new, state), None

    gaps = jnp.append(times[:-1] - times[1:], 0)
    rows = gaps, inputs.swapaxes(0, 1), there.swapaxes(0, 1)
    state, _ = jax.lax.scan(body, Gaussian(zeros, zeros), rows, reverse=True)
    first, second = of["head"]["Dense_0"], of["head"]["Dense_1"]
    y = jnp.tanh(jnp.concatenate(state, -1) @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    mean, std = jnp.split(y, 2, axis=-1)
    z0 = Gaussian(mean, jnp.abs(std) + 1e-6)
    noise = jax.random.normal(key, (N_SAMPLES, *mean.shape))
    # The norm over the whole state, and the interpolant, are what ours has.
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, theta: net.unit.apply(theta, z)[0]),
        diffrax.Dopri5(),
        times[0],
        times[-1],
        None,
        z0.mean + z0.std * noise,
        params["field"],
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-4),
        adjoint=diffrax.RecursiveCheckpointAdjoint(),
        max_steps=MAX_STEPS,
    )
    z = jnp.moveaxis(solution.ys, 0, -2)
    return objective(z0, z @ params["decoder"]["kernel"] + params["decoder"]["bias"], values)


def own(net: LatentODE, params: PyTree, times: Any, values: Any, seen: Any, key: jax.Array) -> jax.Array:
    """The loss by the module, with the same draws."""
    variables = {"params": params}
    z0: Any = net.apply(variables, times, values, seen, method="encode")
    noise = jax.random.normal(key, (N_SAMPLES, *z0.mean.shape))
    z: Any = net.apply(variables, z0.mean + z0.std * noise, times[0], times, method="generate")
    x: Any = net.apply(variables, z, method="decode")
    return objective(z0, x, values)


def torch_programs(params: PyTree, times: Any, values: Any, seen: Any, key: jax.Array) -> dict[str, Any]:
    """The same loss and gradient by torchdiffeq, in the leaves' order of `params`; none where PyTorch is missing."""
    if not torch_peers.is_installed():
        return {}
    import torch
    import torchdiffeq

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensor = lambda array: torch.tensor(np.array(array), device=device)
    weights = jax.tree.map(lambda leaf: tensor(leaf).requires_grad_(True), params)
    leaves = jax.tree.leaves(weights)
    ts, v, mask = tensor(times), tensor(values), tensor(seen)
    noise = tensor(jax.random.normal(key, (N_SAMPLES, len(values), params["decoder"]["kernel"].shape[0])))
    inputs, there = torch.cat([v * mask, mask.float()], -1), mask.any(-1, keepdim=True)

    def perceptron(layers: Any, x: Any) -> Any:
        for i, layer in enumerate(layers):
            x = (torch.tanh(x) if i else x) @ layer["kernel"] + layer["bias"]
        return x

    dense = lambda layers: [layers[f"Dense_{i}"] for i in range(2)]

    def update(mean: Any, std: Any, x: Any) -> tuple[Any, Any]:
        cell, read = weights["encoder"]["update"], torch.cat([mean, std, x], -1)
        keep, reset = (torch.sigmoid(perceptron(dense(cell[name]), read)) for name in ("keep", "reset"))
        new = perceptron(dense(cell["new"]), torch.cat([reset * mean, reset * std, x], -1))
        new_mean, new_std = new.chunk(2, -1)
        return (1 - keep) * new_mean + keep * mean, ((1 - keep) * new_std.abs() + keep * std).abs()

    def encode() -> tuple[Any, Any]:
        size = weights["encoder"]["field"][-1]["bias"].shape[0]
        mean = std = torch.zeros(len(v), size, device=device)
        for k in reversed(range(len(ts))):
            if k + 1 < len(ts):
                mean = mean + (ts[k] - ts[k + 1]) * perceptron(weights["encoder"]["field"], mean)
            now = there[:, k]
            mean, std = (
                torch.where(now, *pair) for pair in zip(update(mean, std, inputs[:, k]), (mean, std), strict=True)
            )
        y_mean, y_std = perceptron(dense(weights["encoder"]["head"]), torch.cat([mean, std], -1)).chunk(2, -1)
        return y_mean, y_std.abs() + 1e-6

    class Field(torch.nn.Module):
        def forward(self, t: Any, z: Any) -> Any:
            return perceptron(weights["field"], z)

    def run(integrate: Any) -> Any:
        def once() -> tuple[float, list[np.ndarray]]:
            for leaf in leaves:
                leaf.grad = None
            mean, std = encode()
            z = integrate(mean + std * noise).movedim(0, -2)
            x = z @ weights["decoder"]["kernel"] + weights["decoder"]["bias"]
            square = ((v - x) / 1e-3).square().mean((-2, -1)) / 2
            likelihood = (-square - math.log(1e-3) - math.log(2 * math.pi) / 2).mean(1)
            kl = ((mean**2 + std**2 - 1) / 2 - std.log()).mean()
            loss = math.log(N_SAMPLES) - torch.logsumexp(likelihood - 0.5 * kl, 0)
            loss.backward()
            return float(loss.detach()), [leaf.grad.cpu().numpy() for leaf in leaves]

        return once

    field, common = Field(), {"rtol": 1e-3, "atol": 1e-4, "method": "dopri5"}
    adjoint = {"adjoint_params": tuple(jax.tree.leaves(weights["field"]))}
    return {
        "torchdiffeq odeint": run(lambda z0: torchdiffeq.odeint(field, z0, ts, **common)),
        "torchdiffeq odeint_adjoint": run(lambda z0: torchdiffeq.odeint_adjoint(field, z0, ts, **common, **adjoint)),
    }


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    keys = jax.random.split(jax.random.key(0), 5)
    times, values = jnp.arange(100) / 200, jax.random.normal(keys[0], (options.batch, 100, 14))
    seen = observe(keys[1], jnp.ones(values.shape, bool), options.observed)
    base = latent_ode(14)
    solver = dataclasses.replace(base.solver, max_steps=MAX_STEPS)
    params = base.init({"params": keys[2], "latent": keys[3]}, times, values, seen)["params"]
    nets = {name: base.clone(solver=solver, gradient=METHODS[name]) for name in options.methods}
    programs = {name: jax.value_and_grad(lambda *a, net=net: own(net, *a)) for name, net in nets.items()}
    programs[PEER] = jax.value_and_grad(lambda *a: peer(base, *a))
    found = harness.compare(programs, params, times, values, seen, keys[4], repeats=options.repeats)
    torch = torch_programs(params, times, values, seen, keys[4])
    # The adjoint starts anew between each two of the times, and takes a hundred times as long as the others.
    repeats = {name: 1 if "adjoint" in name else options.repeats for name in torch}
    found |= harness.compare(torch, repeats=repeats, compiled=False) if torch else {}

    reference, rows, records = found[PEER].output, [], {}
    for name, measurement in found.items():
        loss, slope = measurement.output
        far = [float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (slope, reference[1])), strict=True)]
        apart = max(far) / max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(reference[1]))
        ratio = measurement.median / found[options.methods[0]].median
        differs = {"loss": float(loss), "gradient_apart": apart, "times_slower": ratio}
        records[name] = measurement.record() | differs
        megabytes = (measurement.temporary_bytes or 0) / 2**20
        rows.append([name, 1e3 * measurement.median, ratio, measurement.compile_seconds, megabytes, apart])
    title = f"loss and gradient of a batch of {options.batch}"
    harness.show(title, ("", "ms", f"by {options.methods[0]}", "compile s", "MiB", "gradient apart"), rows)
    path = options.out or harness.default_path("latent_ode")
    results = {"settings": {"batch": options.batch, "observed": options.observed}, "programs": records}
    print("written to", harness.write(path, "latent_ode", results))


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.latent_ode", __doc__))
