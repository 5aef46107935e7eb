import gc
import os
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
"""Flags of XLA for programs that are run once: less time to compile them, and slower ones."""


def pytest_configure(config):
    """The default run compiles for speed of compilation, where this jaxlib knows how; `-m slow` as users do.

    Workers and programs that tests start inherit it.
    """
    # Tracing makes millions of small objects that live on: looking through them all takes a fifth of the time.
    gc.set_threshold(50_000, 20, 100)
    if "not slow" not in config.option.markexpr or "PYTEST_XDIST_WORKER" in os.environ:
        return
    flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    # An unknown flag ends the process that reads it.
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(start, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield
