"""Named configs; each module's docstring has the command, the time and the expected result."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from typing import Annotated, Any

import tyro

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
)
from experiments.training.config import Config
from experiments.training.models import ARCHITECTURES, ModelSettings

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
}
CONFIGS: dict[str, Config] = {name: module.CONFIG for name, module in MODULES.items()}


def with_architecture(config: Config, kind: type[ModelSettings]) -> Config:
    """A config's training of another architecture at its defaults, without what was for the solver of the first."""
    kept: dict[str, Any] = {"refine_epochs": config.refine_epochs if kind.REFINES else ()}
    kept["regularize"] = config.regularize if kind.INTEGRATES else ()
    return dataclasses.replace(config, model=kind(), adapt="none", w0_penalty=0.0, p_penalty=0.0, **kept)


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
        width = max(map(len, MODULES))
        titles = [f"  {name:{width}} {(module.__doc__ or '').splitlines()[0]}" for name, module in MODULES.items()]
        print(f"usage: {prog} CONFIG [--key value ...]\n\nconfigs:", *titles, "", sep="\n")
        print(f"{prog} CONFIG --help lists the keys; --model {{{','.join(ARCHITECTURES)}}}, given first among them,")
        print("takes another architecture with its own defaults")
        sys.exit(0 if name else 2)
    if name not in MODULES:
        close = difflib.get_close_matches(name, MODULES, n=1)
        hint = f", did you mean {close[0]}?" if close else "."
        sys.exit(f"error: there is no config {name!r}{hint} The configs are {', '.join(MODULES)}")
    config = CONFIGS[name]
    if keys[:1] == ["--model"]:
        _, wanted, *keys = [*keys, ""] if len(keys) == 1 else keys
        if wanted not in ARCHITECTURES:
            sys.exit(f"error: there is no architecture {wanted!r}: --model takes one of {', '.join(ARCHITECTURES)}")
        config = with_architecture(config, ARCHITECTURES[wanted])
    both: Any = dataclasses.make_dataclass(
        "Settings",
        [
            # The keys of an architecture have its prefix, those of training and of the run have none.
            ("config", Annotated[Config, tyro.conf.arg(name="")], dataclasses.field(default=config)),
            ("run", Annotated[options, tyro.conf.arg(name="")], dataclasses.field(default_factory=options)),
        ],
    )
    try:
        settings, unknown = tyro.cli(
            both, prog=f"{prog} {name}", description=MODULES[name].__doc__, args=keys, return_unknown_args=True
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    if unknown:
        kinds: dict[str, Any] = {"": Config, "model.": type(config.model), " ": options}
        names = [prefix.strip() + field.name for prefix, kind in kinds.items() for field in dataclasses.fields(kind)]
        allowed = [f"--{key.replace('_', '-')}" for key in names if key != "model"]
        own = f"--model.{unknown[0].removeprefix('--')}"
        close = [own] if own in allowed else difflib.get_close_matches(unknown[0], allowed, n=1)
        hint = f", did you mean {close[0]}?" if close else "."
        if unknown[0] == "--model":
            hint = f": give it directly after {name!r}."
        sys.exit(f"error: there is no key {unknown[0]}{hint} The keys are {', '.join(allowed)}")
    return name, settings.config, settings.run
