"""Named configs; each module's docstring has the command, the time and the expected result."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.configs import (
    anodev2,
    augmented_digits,
    cifar10_small,
    continuous_net,
    digits,
    digits_euler,
    node18,
    node18_small,
    resnet18_small,
    two_cores,
)
from experiments.configs.keys import print_help
from experiments.records.command import flags_of, folded, refuse_values_of_flags
from experiments.records.tables import show
from experiments.training.config import Config
from experiments.training.models import ARCHITECTURES, ModelSettings, OwnSettings

MODULES: dict[str, Any] = {
    "digits": digits,
    "digits_euler": digits_euler,
    "augmented_digits": augmented_digits,
    "cifar10_small": cifar10_small,
    "node18_small": node18_small,
    "resnet18_small": resnet18_small,
    **continuous_net.FAMILY,
    **node18.FAMILY,
    **anodev2.FAMILY,
    **two_cores.FAMILY,
}
CONFIGS: dict[str, Config] = {name: module.CONFIG for name, module in MODULES.items()}


def with_architecture(config: Config, model: ModelSettings) -> Config:
    """A config's training of another architecture, without what was for the blocks and the solver of the first."""
    kept: dict[str, Any] = {"refine_epochs": config.refine_epochs if type(model) is type(config.model) else ()}
    kept["regularize"] = config.regularize if model.INTEGRATES else ()
    return dataclasses.replace(config, model=model, adapt="none", w0_penalty=0.0, p_penalty=0.0, **kept)


def architecture(wanted: str) -> ModelSettings:
    """The settings of an architecture at their defaults, by its name, or by PACKAGE.MODULE:FUNCTION of the user's own.

    Raises:
      ValueError: for a name that is none.
    """
    names = [name for name in ARCHITECTURES if name != "own"]
    if ":" in wanted:
        return OwnSettings(wanted)
    if wanted not in names:
        raise ValueError(
            f"there is no architecture {wanted!r}: --model takes one of {', '.join(names)}, or your own as "
            "PACKAGE.MODULE:FUNCTION"
        )
    return ARCHITECTURES[wanted]()


def command_line(options: type[Any], prog: str, args: list[str] | None = None) -> tuple[str, Config, Any]:
    """Read `NAME [--model ARCHITECTURE] [--key value ...]` from the command line.

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
        console, table = Console(highlight=False), Table("config", "", box=None, pad_edge=False)
        for config, module in MODULES.items():
            table.add_row(config, escape((module.__doc__ or "").splitlines()[0]))
        named = ", ".join(name for name in ARCHITECTURES if name != "own")
        console.print(f"usage: {prog} CONFIG [--key value ...]\n", soft_wrap=True, markup=False)
        show(table, console)
        about = (
            f"{prog} CONFIG --help lists the keys. --model NAME, given first among them, takes another architecture "
            f"with its own defaults ({named}), and --model PACKAGE.MODULE:FUNCTION one of your own."
        )
        console.print(escape(folded(about, console.width)))
        sys.exit(0 if name else 2)
    if name not in MODULES:
        close = difflib.get_close_matches(name, MODULES, n=1)
        hint = f", did you mean {close[0]}? {prog} lists all" if close else f". The configs are {', '.join(MODULES)}"
        sys.exit(f"error: there is no config {name!r}{hint}")
    config = CONFIGS[name]
    if keys[:1] == ["--model"]:
        _, wanted, *keys = [*keys, ""] if len(keys) == 1 else keys
        try:
            config = with_architecture(config, architecture(wanted))
        except ValueError as error:
            sys.exit(f"error: {error}")
    return name, *keyed(config, options(), f"{prog} {name}", MODULES[name].__doc__, keys)


def keyed(config: Config, options: Any, prog: str, description: str | None, keys: list[str]) -> tuple[Config, Any]:
    """A config and options with what `--key value ...` overrides; errors end the process, as of `command_line`."""
    both: Any = dataclasses.make_dataclass(
        "Settings",
        [
            # The keys of an architecture have its prefix, those of training and of the run have none.
            ("config", Annotated[Config, tyro.conf.arg(name="")], dataclasses.field(default=config)),
            ("run", Annotated[type(options), tyro.conf.arg(name="")], dataclasses.field(default=options)),
        ],
    )
    refuse_values_of_flags(keys, flags_of(Config, type(options)) | flags_of(type(config.model), prefix="model."))
    if {"-h", "--help"} & set(keys):
        print_help(prog, description, config, options, Console(highlight=False))
        sys.exit(0)
    try:
        settings, unknown = tyro.cli(both, prog=prog, args=keys, return_unknown_args=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if unknown:
        kinds: dict[str, Any] = {"": Config, "model.": type(config.model), " ": options}
        names = [prefix.strip() + field.name for prefix, kind in kinds.items() for field in dataclasses.fields(kind)]
        allowed = [f"--{key.replace('_', '-')}" for key in names if key != "model"]
        own = f"--model.{unknown[0].removeprefix('--')}"
        close = [own] if own in allowed else difflib.get_close_matches(unknown[0], allowed, n=1)
        hint = f", did you mean {close[0]}? --help lists all" if close else f". The keys are {', '.join(allowed)}"
        if unknown[0] == "--model":
            hint = ": give it directly after the name of a config"
        sys.exit(f"error: there is no key {unknown[0]}{hint}")
    return settings.config, settings.run
