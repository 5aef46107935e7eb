"""The PyTorch programs of benchmarks.gradients: the same fields and weights in PyTorch's layout, and back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

Case = Literal["mlp", "node18"]
PyTree = Any
PLACES: dict[Case, tuple[tuple[Any, str], ...]] = {
    "mlp": ((0, "kernel"), (0, "bias"), (1, "kernel"), (1, "bias")),
    "node18": (
        ("conv1", "kernel"), ("bn1", "scale"), ("bn1", "bias"),
        ("conv2", "kernel"), ("bn2", "scale"), ("bn2", "bias"),
    ),
}  # fmt: skip
"""Where theta holds the parameters of a field, in the order that its PyTorch module lists them."""
KERNEL_AXES = {"mlp": (1, 0), "node18": (3, 2, 0, 1)}
STATE_AXES = {"mlp": (0, 1), "node18": (0, 3, 1, 2)}
ALMOST_ONE = 0.999
"""TorchDiffEqPack takes a step that reaches the end without looking at its error; this one it looks at."""


class Ran(NamedTuple):
    """What one call of a program gave: its counts, and tensors in PyTorch's layout."""

    counts: dict[str, int]
    state: Any
    state_bar: Any = None
    theta_bar: tuple[Any, ...] = ()


def is_installed() -> bool:
    """Whether PyTorch and both solver libraries are there."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torchdiffeq", "TorchDiffEqPack"))


def state_of(case: Case, ran: Ran) -> np.ndarray:
    """The end state in our layout."""
    return _to_ours(ran.state, STATE_AXES[case])


def gradient_of(case: Case, ran: Ran) -> PyTree:
    """The gradient with respect to x0 and theta, in our layout and with leaves in our order."""
    theta_bar: dict[Any, dict[str, np.ndarray]] = {}
    for (layer, name), leaf in zip(PLACES[case], ran.theta_bar, strict=True):
        theta_bar.setdefault(layer, {})[name] = _to_ours(leaf, _axes(case, name, leaf.ndim))
    return _to_ours(ran.state_bar, STATE_AXES[case]), theta_bar


def _axes(case: Case, name: str, ndim: int) -> tuple[int, ...]:
    return KERNEL_AXES[case] if name == "kernel" else tuple(range(ndim))


def _to_ours(tensor: Any, axes: tuple[int, ...]) -> np.ndarray:
    return tensor.detach().cpu().numpy().transpose(np.argsort(axes))


def make_field(case: Case, theta: PyTree, device: Any) -> Any:
    """The field of `make_case` as a module that counts its evaluations and, in torchdiffeq, its trials."""
    import torch
    from torch import nn

    size = np.shape(theta[PLACES[case][0][0]]["kernel"])[-1]

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nfe = self.n_accepted = self.n_rejected = 0
            if case == "mlp":
                (n_in, hidden), (_, n_out) = (np.shape(layer["kernel"]) for layer in theta)
                self.net = nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_out))
            else:
                conv = lambda: nn.Conv2d(size, size, 3, padding=1, bias=False)
                norm = lambda: nn.BatchNorm2d(size, track_running_stats=False)
                self.net = nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm(), nn.ReLU())

        def forward(self, t: Any, x: Any) -> Any:
            self.nfe += 1
            return self.net(x)

        def callback_accept_step(self, t: Any, x: Any, dt: Any) -> None:
            self.n_accepted += 1

        def callback_reject_step(self, t: Any, x: Any, dt: Any) -> None:
            self.n_rejected += 1

    field = Field()
    with torch.no_grad():
        for parameter, (layer, name) in zip(field.parameters(), PLACES[case], strict=True):
            ours = np.asarray(theta[layer][name])
            parameter.copy_(torch.tensor(ours.transpose(_axes(case, name, ours.ndim)).copy()))
    return field.to(device)


def torch_programs(case: Case, scheme: str, tol: float, x: jax.Array, theta: PyTree) -> dict[str, Callable[[], Ran]]:
    """Programs by name, each of which runs once and waits for its device; none where PyTorch is missing."""
    if not is_installed():
        return {}
    import torch
    import torchdiffeq
    import TorchDiffEqPack

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    field = make_field(case, theta, device)
    x0 = torch.tensor(np.asarray(x).transpose(STATE_AXES[case]).copy(), device=device)
    times = torch.tensor([0.0, 1.0], device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def run(integrate: Callable[[Any], tuple[Any, dict[str, int]]]) -> Callable[[], Ran]:
        def once() -> Ran:
            field.nfe = field.n_accepted = field.n_rejected = 0
            field.zero_grad()
            start = x0.clone().requires_grad_(True)
            y, counts = integrate(start)
            forward = field.nfe
            (y**2).sum().backward()
            wait()
            counts = {"nfe": forward, "nfe_backward": field.nfe - forward} | counts
            return Ran(counts, y.detach(), start.grad, tuple(p.grad for p in field.parameters()))

        return once

    def by_torchdiffeq(solver: Callable[..., Any]) -> Callable[[Any], tuple[Any, dict[str, int]]]:
        options = {"first_step": 1.0}
        method = {"heun_euler": "adaptive_heun", "dopri5": "dopri5"}[scheme]

        def integrate(x: Any) -> tuple[Any, dict[str, int]]:
            y = solver(field, x, times, rtol=tol, atol=tol, method=method, options=options)[-1]
            return y, {"n_accepted": field.n_accepted, "n_rejected": field.n_rejected}

        return integrate

    pack = {"method": {"heun_euler": "RK12", "dopri5": "Dopri5"}[scheme], "h": ALMOST_ONE, "t0": 0.0, "t1": 1.0,
            "rtol": tol, "atol": tol, "print_neval": False, "neval_max": 500000}  # fmt: skip

    def by_pack(x: Any) -> tuple[Any, dict[str, int]]:
        y = TorchDiffEqPack.odesolve_adjoint(field, x, options=dict(pack))
        return y, {"n_accepted": len(y.grad_fn.steps)}

    def forward_only() -> Ran:
        field.nfe = field.n_accepted = field.n_rejected = 0
        with torch.no_grad():
            y, counts = by_torchdiffeq(torchdiffeq.odeint)(x0)
        wait()
        return Ran({"nfe": field.nfe} | counts, y)

    return {
        "TorchDiffEqPack ACA": run(by_pack),
        "torchdiffeq odeint": run(by_torchdiffeq(torchdiffeq.odeint)),
        "torchdiffeq odeint_adjoint": run(by_torchdiffeq(torchdiffeq.odeint_adjoint)),
        "torchdiffeq odeint, forward only": forward_only,
    }
