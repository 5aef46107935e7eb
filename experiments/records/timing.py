"""One way to time programs: compilation apart from execution, and variants interleaved."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from experiments.records.progress import told


@dataclass(frozen=True)
class Measurement:
    """Seconds of one program; `samples` are seconds a call, each the mean over `calls` calls.

    `output` is what the program returned, for those who would check it; no part of the record.
    """

    samples: tuple[float, ...]
    calls: int
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    output: Any = field(default=None, repr=False, compare=False)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return first, third

    def record(self) -> dict[str, Any]:
        """The plain dictionary that goes into a JSON record, times in seconds to four digits."""
        first, third = self.quartiles
        seconds = {
            "minimum": self.minimum,
            "first_quartile": first,
            "median": self.median,
            "third_quartile": third,
            "lower": self.lower_seconds,
            "compile": self.compile_seconds,
        }
        rounded = {key: None if value is None else float(f"{value:.4g}") for key, value in seconds.items()}
        counts = {"n_samples": len(self.samples), "calls_per_sample": self.calls}
        return rounded | counts | {"temporary_bytes": self.temporary_bytes}


def measure(
    function: Callable[..., Any],
    *args: Any,
    repeats: int = 20,
    min_seconds: float = 0.02,
    compiled: bool = True,
) -> Measurement:
    """Times `function(*args)` by itself; the arguments are those of `compare`."""
    return compare({"": function}, *args, repeats=repeats, min_seconds=min_seconds, compiled=compiled)[""]


def compare(
    variants: Mapping[str, Callable[..., Any]],
    *args: Any,
    repeats: int | Mapping[str, int] = 20,
    min_seconds: float = 0.02,
    compiled: bool = True,
    tell: bool = False,
) -> dict[str, Measurement]:
    """Times functions of the same arguments in turn, so that a change of the machine's load meets them all.

    Args:
        variants: functions by name; those not yet under `jax.jit` are put there.
        args: their common arguments, moved to the device before the first call.
        repeats: samples taken of every variant, or of each by name.
        min_seconds: a sample calls its function as often as is needed to last so long.
        compiled: False calls the functions as they are, for peers that are no JAX programs.
        tell: whether to say which one is compiled or timed.

    Returns:
        A measurement a variant. Every function has run twice before its first sample.
    """
    counts = {name: repeats if isinstance(repeats, int) else repeats[name] for name in variants}
    if min(counts.values()) < 1 or min_seconds < 0:
        raise ValueError(f"repeats is {repeats}, min_seconds {min_seconds}; expected at least 1 and 0.")
    args = jax.block_until_ready(jax.device_put(args)) if compiled else args
    programs, static = {}, {}
    each = lambda doing: told(variants, lambda name: f"{doing} {name}") if tell else iter(variants)
    for name in each("compiling"):
        function = variants[name]
        programs[name], static[name] = _compile(function, args) if compiled else (function, {})
    outputs = {name: jax.block_until_ready(programs[name](*args)) for name in each("running")}
    calls = {name: _calls_for(program, args, min_seconds) for name, program in programs.items()}

    samples: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(max(counts.values())):
        for name, program in programs.items():
            if turn < counts[name]:
                samples[name].append(_seconds(program, args, calls[name]))
    return {
        name: Measurement(tuple(samples[name]), calls[name], **static[name], output=outputs[name]) for name in variants
    }


def _compile(function: Callable[..., Any], args: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    # Neither what the compiler does once nor what an earlier variant has traced counts.
    jax.clear_caches()
    jax.jit(lambda x: x + 1).lower(0.0).compile()
    start = time.perf_counter()
    lowered = jitted.lower(*args)
    between = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    memory = program.memory_analysis()
    static = {
        "lower_seconds": between - start,
        "compile_seconds": end - between,
        "temporary_bytes": None if memory is None else int(memory.temp_size_in_bytes),
    }
    return program, static


def _calls_for(program: Callable[..., Any], args: tuple[Any, ...], min_seconds: float) -> int:
    return max(1, math.ceil(min_seconds / max(_seconds(program, args, 1), 1e-9)))


def _seconds(program: Callable[..., Any], args: tuple[Any, ...], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        # Waiting within each call keeps dispatched calls from overlapping.
        jax.block_until_ready(program(*args))
    return (time.perf_counter() - start) / calls
