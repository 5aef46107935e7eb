"""What a measured number depends on beside its settings: device, versions, revision, time and load."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PEERS = ("gradsolve", "torch", "torchdiffeq", "TorchDiffEqPack")
"""What benchmarks compare with; recorded where it is installed."""
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "diffrax", "orbax-checkpoint")


def environment() -> dict[str, Any]:
    """Hardware, versions, revision, time and load, as every record keeps them."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "platform": device.platform,
        "n_devices": jax.device_count(),
        "n_processes": jax.process_count(),
        "cpu": _cpu_model(),
        "n_cores": os.cpu_count(),
        "load_average": _load(),
        "python": platform.python_version(),
        "versions": _versions(),
        "x64": bool(jax.config.read("jax_enable_x64")),
    } | _revision()


def _load() -> list[float] | None:
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):  # Windows has none, and containers may hide it
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    peers = {package: found for package in PEERS if (found := _version(package)) is not None}
    return {package: _version(package) for package in PACKAGES} | peers


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> dict[str, Any]:
    """The commit of this file's repository and whether tracked files differ from it; None outside git."""

    def git(*command: str) -> str | None:
        try:
            folder = Path(__file__).parent
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    revision = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if revision is None or changes is None else changes != ""}
