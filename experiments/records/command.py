"""What all commands share: settings read from the command line, and a help that fits the terminal."""

from __future__ import annotations

import inspect
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from experiments.records.files import expand

T = TypeVar("T")
_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")


def command_line(options: type[T], prog: str, about: str | None, args: Sequence[str] | None = None) -> T:
    """The settings that a command was called with, paths with the home folder in the place of `~`.

    Args:
      options: a dataclass, whose fields are the keys and whose field docstrings are their help.
      prog: how the command is called.
      about: the script's docstring, which `--help` shows above the keys, folded to the width of the terminal.
      args: in place of those of the process.

    Raises:
      SystemExit: after `--help`, and for what is no setting, or no place on this machine, with a message that says
        what is.
    """
    given = list(sys.argv[1:] if args is None else args)
    refuse_values_of_flags(given, flags_of(options))
    if {"-h", "--help"} & set(given):
        print(folded(about or "", shutil.get_terminal_size().columns), end="\n\n")
    found = tyro.cli(options, prog=prog, description="", args=given)
    try:
        expand(found)
    except ValueError as error:
        sys.exit(f"error: {error}")
    return found


def check_settings(options: Any, *rules: tuple[str, Any, str]) -> None:
    """Refuse settings of a command, by the names of its flags.

    Args:
      options: its dataclass.
      *rules: name, whether its value is good, and what is allowed.

    Raises:
      ValueError: for the first that is not good; names it, its value and what is allowed.
    """
    for name, good, allowed in rules:
        if not good:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)!r}: expected {allowed}")


def flags_of(*kinds: Any, prefix: str = "") -> set[str]:
    """The keys of dataclasses and functions that are switches, as the command line spells them."""
    parameters = (parameter for kind in kinds for parameter in inspect.signature(kind).parameters.values())
    return {f"--{prefix}{p.name.replace('_', '-')}" for p in parameters if p.annotation in (bool, "bool")}


def refuse_values_of_flags(args: Sequence[str], flags: set[str]) -> None:
    """End the process where a switch is given a value.

    Raises:
      SystemExit: for `--flip True`, with the two ways in which it is written.
    """
    for arg, value in itertools.pairwise([*args, ""]):
        key, is_given, joined = arg.replace("_", "-").partition("=")
        value = joined if is_given else value
        if key in flags and value.lower() in BOOLEANS:
            head, _, name = key.removeprefix("--").rpartition(".")
            off = f"--{head}{'.' if head else ''}no-{name}"
            sys.exit(f"error: {key} takes no value, and was given {value!r}: {key} says yes, {off} says no")


def folded(text: str, width: int) -> str:
    """A docstring at a width: paragraphs and items are filled, what is indented breaks only where it is too long."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join("\n".join(_lines(block, max(40, width))) for block in blocks)


def _lines(block: str, width: int) -> Iterator[str]:
    # A line of its own begins where text is indented, and with an item; other lines go on with the one above.
    starts = r"(?m)^(?= {4}|- )"
    for part in filter(None, re.split(starts, block)):
        if part.startswith(" "):
            yield from _indented(part.rstrip("\n"), width)
        else:
            below = "  " if part.startswith("- ") else ""
            yield from textwrap.wrap(" ".join(part.split()), width, subsequent_indent=below, **_WORDS)


def _indented(line: str, width: int) -> list[str]:
    """A command or a formula; where it is too long, a remark that stands at some distance goes below it."""
    if len(line) <= width:
        return [line]
    below = re.match(" +", line)[0] + "    "  # type: ignore[index]
    apart = re.match(r"(.*?\S)\s{2,}(\S.*)$", line)
    command, remark = apart.groups() if apart else (line, "")
    found = textwrap.wrap(command, width, subsequent_indent=below, **_WORDS)
    return found + textwrap.wrap(remark, width, initial_indent=below, subsequent_indent=below, **_WORDS)
