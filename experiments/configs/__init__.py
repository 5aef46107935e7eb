"""Named configs; each module's docstring has the command, the time and the expected result."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import tyro

from experiments.config import Config
from experiments.configs import cifar10, cifar10_small, cifar100_wide, digits, digits_euler

CONFIGS: dict[str, Config] = {
    "digits": digits.CONFIG,
    "digits_euler": digits_euler.CONFIG,
    "cifar10": cifar10.CONFIG,
    "cifar10_small": cifar10_small.CONFIG,
    "cifar100_wide": cifar100_wide.CONFIG,
}


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
    args = sys.argv[1:] if args is None else args
    if not args or args[0] not in CONFIGS:
        if args and args[0] not in ("-h", "--help"):
            sys.exit(f"error: there is no config {args[0]!r}; the configs are {', '.join(CONFIGS)}")
        lines = [f"  {name}: {dataclasses.asdict(config)}" for name, config in CONFIGS.items()]
        print(f"usage: {prog} CONFIG [--key value ...]\n\n" + "\n".join(lines))
        sys.exit(0 if args else 2)
    name = args[0]
    both = dataclasses.make_dataclass(
        "Settings",
        [
            ("config", tyro.conf.OmitArgPrefixes[Config], dataclasses.field(default=CONFIGS[name])),
            ("options", tyro.conf.OmitArgPrefixes[options], dataclasses.field(default_factory=options)),
        ],
    )
    try:
        settings = tyro.cli(both, prog=f"{prog} {name}", args=args[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    return name, settings.config, settings.options
