"""What a compression shows: the front of accuracy against field evaluations, and what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.records.swaps import Row, outcome
from experiments.records.tables import show


def print_front(front: list[Row], trained: Row, chosen: Row, console: Console) -> None:
    """The front, with the trained network and the one chosen."""
    table = Table(title="Validation accuracy against field evaluations: the front", title_justify="left")
    for name in ("basis", "M", "parameters", "scheme", "N_t", "NFE", "accuracy %, loss", ""):
        table.add_column(name, justify="left" if name in ("basis", "scheme", "") else "right")
    extra = [row for row in (chosen, trained) if row not in front]
    for row in sorted(front + extra, key=lambda row: (row["nfe"], row["accuracy"])):
        what = " ".join(name for name, one in (("trained", trained), ("chosen", chosen)) if row is one)
        numbers = (str(row["nfe"]), outcome(row))
        size = (row["basis"].replace("_", " "), str(row["n_basis"]), f"{row['n_parameters']:,}")
        table.add_row(*size, row["scheme"], str(row["n_steps"]), *numbers, what)
    show(table, console)


def print_results(
    out: Path, trained: Row, chosen: Row, results: dict[str, Any], parent: dict[str, Any], console: Console
) -> None:
    """What was chosen, what it costs, and the files that were written."""
    before = parent.get("results", {}).get("test_accuracy")
    lines = [
        f"chosen: {out.name}, {chosen['nfe']} of {trained['nfe']} field evaluations, {chosen['n_parameters']:,} of "
        f"{trained['n_parameters']:,} parameters; test accuracy {100 * results['test_accuracy']:.2f} %"
        + (f" (before: {100 * before:.2f} %)" if before is not None else "")
    ]
    if "test_accuracy_before_int8" in results:
        points = 100 * (results["test_accuracy_before_int8"] - results["test_accuracy"])
        lines.append(f"eight bits: {points:.2f} points of test accuracy lost by them")
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in results["bytes"].items())
    lines.append(
        f"{results['exported']} runs without ode_nets; its logits differ by {results['export_difference']:.1e}"
    )
    if "onnx_difference" in results:
        lines.append(f"the ONNX file runs in onnxruntime; its logits differ by {results['onnx_difference']:.1e}")
    lines.append(f"written: {sizes}, in {out}")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
