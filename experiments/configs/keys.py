"""The keys of a config, listed by what they are about: the `--help` of commands that take one."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from experiments.records.command import folded

GROUPS = {
    "data": ("dataset", "data_dir", "limit", "validation_fraction", "image_size", "crop_pad", "flip"),
    "model": (),
    "optimizer": (
        *("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "warmup_epochs", "decay_epochs"),
        *("decay_factor", "momentum", "weight_decay", "clip_norm", "label_smoothing", "ema_decay", "seed"),
    ),
    "refinement, adaptation and penalties": (
        *("refine_epochs", "adapt", "adapt_max_steps", "regularize", "w0_penalty", "p_penalty"),
    ),
    "run": ("run_dir", "resume", "overwrite", "checkpoint_seconds", "accept_new_data", "quiet"),
    "devices": (
        *("feed", "steps_per_dispatch", "n_devices", "batch_statistics", "step_control", "distributed", "coordinator"),
        *("n_processes", "process_id", "local_device_ids", "lost_after"),
    ),
}
"""Which keys are listed together, in this order, by their fields; those of no group come last, as `other`."""
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def print_help(usage: str, about: str | None, config: Any, options: Any, console: Console) -> None:
    """What a config is, and every key with its default, in groups, at the width of the console.

    Args:
      usage: how the command is called.
      about: the config's docstring.
      config: its settings, with those of the architecture as `model`.
      options: those of the run.
    """
    keys = lines_of(config) | lines_of(options)
    keys.pop("model")
    groups = {title: [keys.pop(name) for name in names if name in keys] for title, names in GROUPS.items()}
    groups["model"] = list(lines_of(config.model, "model.").values())
    groups["other"] = list(keys.values())
    console.print(escape(folded(about or "", console.width)), end="\n\n")
    console.print(escape(f"usage: {usage} [--key value ...]"), soft_wrap=True)
    for title, lines in groups.items():
        if lines:
            console.print(f"\n[bold]{title}[/]")
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(width=min(30, console.width // 3), overflow="fold")
            table.add_column(overflow="fold")
            for key, text in lines:
                table.add_row(escape(key), escape(text))
            console.print(Padding(table, (0, 0, 0, 2)))


def lines_of(settings: Any, prefix: str = "") -> dict[str, tuple[str, str]]:
    """By field of a dataclass, how its key is spelled, and what is said of it with its default."""
    kind = type(settings)
    hints, docs = get_type_hints(kind), docs_of(kind)
    lines = {}
    for field in dataclasses.fields(kind):
        name, of = field.name.replace("_", "-"), hints[field.name]
        default: Any = getattr(settings, field.name)
        if isinstance(default, bool):
            default = f"--{prefix}{name}" if default else f"--{prefix}no-{name}"
        elif isinstance(default, tuple):
            default = " ".join(map(str, default))
        key = f"--{prefix}{name}, --{prefix}no-{name}" if of is bool else f"--{prefix}{name} {placeholder(of)}".rstrip()
        about = [docs.get(field.name, "")]
        if choices := choices_of(of):
            about.append(f"One of {', '.join(choices)}.")
        if default not in (None, ""):
            about.append(f"[{default}]")
        lines[field.name] = (key, " ".join(about))
    return lines


def choices_of(of: Any) -> list[str]:
    """The values of an annotation that names them."""
    return [str(value) for value in get_args(of)] if get_origin(of) is Literal else []


def placeholder(of: Any) -> str:
    """What stands for a value of an annotation."""
    if choices_of(of):
        return "NAME"
    if get_origin(of) is types.UnionType:
        return placeholder(next(kind for kind in get_args(of) if kind is not types.NoneType))
    if get_origin(of) is tuple:
        return f"{placeholder(get_args(of)[0])} ..."
    return KINDS.get(of, "")


def docs_of(kind: type[Any]) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, those it inherits too, by the names of the fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        below = zip(tree.body, tree.body[1:], strict=False)  # type: ignore[attr-defined]
        for field, text in below:
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
