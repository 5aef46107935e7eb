"""What tests of experiments share to change settings and to write them as a command line."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.training.config import Config, flat


def changed(config: Config, **changes: Any) -> Config:
    """A config with other settings, those of training and those of its architecture side by side."""
    own = {field.name for field in dataclasses.fields(Config)}
    model = changes.pop("model", config.model)
    model = dataclasses.replace(model, **{key: value for key, value in changes.items() if key not in own})
    return dataclasses.replace(config, model=model, **{key: value for key, value in changes.items() if key in own})


def arguments(config: Config) -> list[str]:
    """The arguments that ask for a config, whatever named one they follow."""
    settings = flat(config)
    del settings["version"]
    args = ["--model", settings.pop("model")]
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            # The prefix of an architecture's key comes before the "no".
            prefix, _, last = name.rpartition(".")
            args += [f"--{name}" if value else f"--{prefix}{'.' if prefix else ''}no-{last}"]
        else:
            args += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return args
