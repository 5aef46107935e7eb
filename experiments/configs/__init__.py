"""Named configs; each module's docstring has the command, the time and the expected result."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from typing import Any

import tyro

from experiments.configs import (
    anodev2,
    cifar10,
    cifar10_small,
    cifar100_wide,
    digits,
    digits_euler,
    node18,
    node18_small,
)
from experiments.training.config import Config

MODULES: dict[str, Any] = {
    "digits": digits,
    "digits_euler": digits_euler,
    "cifar10": cifar10,
    "cifar10_small": cifar10_small,
    "cifar100_wide": cifar100_wide,
    "node18_small": node18_small,
    **node18.FAMILY,
    **anodev2.FAMILY,
}
CONFIGS: dict[str, Config] = {name: module.CONFIG for name, module in MODULES.items()}


def command_line(options: type[Any], prog: str, args: list[str] | None = None) -> tuple[str, Config, Any]:
    """Read `NAME [--key value ...]` from the command line.

    Args:
      options: a dataclass of settings that do not change a result, read beside the config's.
      prog: how the command is called, for its help.
      args: default the process's.

    Returns:
      Name of the config, the config with what was overridden, and the options. A wrong name, key or value
      ends the process with a message that says what is allowed.
    """
    name, *keys = (sys.argv[1:] if args is None else args) or [""]
    if name in ("", "-h", "--help"):
        width = max(map(len, MODULES))
        titles = [f"  {name:{width}} {(module.__doc__ or '').splitlines()[0]}" for name, module in MODULES.items()]
        print(f"usage: {prog} CONFIG [--key value ...]\n\nconfigs:", *titles, "", sep="\n")
        print(f"{prog} CONFIG --help lists the keys")
        sys.exit(0 if name else 2)
    if name not in MODULES:
        sys.exit(f"error: there is no config {name!r}; the configs are {', '.join(MODULES)}")
    both: Any = dataclasses.make_dataclass(
        "Settings",
        [
            ("config", Config, dataclasses.field(default=CONFIGS[name])),
            ("run", options, dataclasses.field(default_factory=options)),
        ],
    )
    settings, unknown = tyro.cli(
        both,
        prog=f"{prog} {name}",
        description=MODULES[name].__doc__,
        args=keys,
        config=(tyro.conf.OmitArgPrefixes,),
        return_unknown_args=True,
    )
    if unknown:
        names = [field.name for kind in (Config, options) for field in dataclasses.fields(kind)]
        allowed = [f"--{name.replace('_', '-')}" for name in names]
        close = difflib.get_close_matches(unknown[0], allowed, n=1)
        hint = f", did you mean {close[0]}?" if close else "."
        sys.exit(f"error: there is no key {unknown[0]}{hint} The keys are {', '.join(allowed)}")
    return name, settings.config, settings.run
