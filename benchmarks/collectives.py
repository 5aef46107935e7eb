"""What a compiled program exchanges between devices, read from its text."""

from __future__ import annotations

import math
import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVE = re.compile(r" = (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
CALL = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)


def find_collectives(text: str) -> dict[str, dict[str, int]]:
    """Collectives of a compiled program: of its top level, and of each loop by the ODE block that it belongs to.

    Args:
      text: of the optimized program, `compiled.as_text()`.

    Returns:
      `{where: {"collectives", "bytes"}}` with where "outside loops", "<block> forward" or "<block> backward" for
      one iteration of a solver's loop, or "other loops". Bytes are those of the results, on one device.
    """
    own: dict[str, list[int]] = {}
    calls: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
            name = "ENTRY" if head.group(1) else head.group(2)
            own[name], calls[name] = [], []
        if found := COLLECTIVE.search(line):
            shapes = SHAPE.findall(found.group(1))
            own[name].append(
                sum(BYTES.get(kind, 4) * math.prod(map(int, filter(None, n.split(",")))) for kind, n in shapes)
            )
        where = _loop(line) if " while(" in line else ""
        for several, one in CALL.findall(line):
            calls[name] += [(called.strip(" %"), where) for called in (several or one).split(",")]
    totals: dict[str, dict[str, int]] = {}

    def visit(computation: str, where: str) -> None:
        for size in own.get(computation, ()):
            total = totals.setdefault(where, {"collectives": 0, "bytes": 0})
            total["collectives"] += 1
            total["bytes"] += size
        for called, inside in calls.get(computation, ()):
            visit(called, inside if where == "outside loops" and inside else where)

    visit("ENTRY", "outside loops")
    return totals


def _loop(line: str) -> str:
    """Whose loop a `while` is, from the name of the operation that it was compiled from."""
    path = re.search(r'op_name="([^"]*)"', line)
    block = re.search(r"ode\d+_\d+", path.group(1)) if path else None
    if path is None or block is None:
        return "other loops"
    return f"{block.group(0)} {'backward' if 'transpose' in path.group(1) else 'forward'}"
