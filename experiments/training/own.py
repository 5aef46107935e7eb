"""A network of the user's own: what a function of a module of theirs returns, found by its name."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any, ClassVar, get_args

import flax.linen as nn

from experiments.records.files import RunError, say
from experiments.training.architecture import BASES, BasisName, ModelSettings
from ode_nets.integrate import FixedStep
from ode_nets.remanifest import check_exchangeable
from ode_nets.tableaus import SCHEMES
from ode_nets.weights import Basis


@dataclasses.dataclass(frozen=True)
class OwnSettings(ModelSettings):
    """A network of your own, `--model PACKAGE.MODULE:FUNCTION`, and what of it is exchanged."""

    REFINES: ClassVar[bool] = True

    make: str
    """`PACKAGE.MODULE:FUNCTION`, found from the current folder; called as `FUNCTION(n_classes=10, ...)`, it returns a
    flax.linen module."""
    args: tuple[str, ...] = ()
    """Further arguments of the function, `NAME=VALUE` each: `width=8`."""
    basis: BasisName | None = None
    """Basis of theta(t) in place of the network's own."""
    n_basis: int | None = None
    """M, coefficients a block before any refinement, in place of the network's own."""
    scheme: str | None = None
    """Runge-Kutta scheme of fixed steps in place of the network's own."""
    n_steps: int | None = None
    """N_t, steps a block before any refinement, in place of the network's own."""

    def __post_init__(self) -> None:
        # A list, which JSON has in a tuple's place, could not be hashed.
        object.__setattr__(self, "args", tuple(self.args))
        module, _, function = self.make.partition(":")
        named = all(part.isidentifier() for part in (*module.split("."), function))
        self.check("make", "PACKAGE.MODULE:FUNCTION, as my_package.my_module:make", named)
        names = ["n_classes", *(entry.partition("=")[0] for entry in self.args if "=" in entry)]
        good = len(names) == 1 + len(self.args) == len(set(names)) and all(name.isidentifier() for name in names)
        self.check("args", "NAME=VALUE each, no name twice and none n_classes", good)
        if self.basis is not None:
            self.check_choice("basis", get_args(BasisName))
        if self.scheme is not None:
            self.check_choice("scheme", tuple(SCHEMES))
        self.check_counts(*(name for name in ("n_basis", "n_steps") if getattr(self, name) is not None))

    def build(self, n_classes: int, level: int = 0) -> nn.Module:
        """The network after `level` refinements.

        Raises:
          RunError: where the function is not found, fails, or returns no linen module, and for a network without the
            parts that are to be exchanged or refined.
        """
        net: Any = self._made(n_classes)
        try:
            if self.basis or self.n_basis or level:
                check_exchangeable(net, "basis")
                net = net.clone(basis=self._basis(net.basis, level))
            if self.scheme or self.n_steps or level:
                check_exchangeable(net, "solver")
                net = net.clone(solver=self._solver(net.solver, level))
        except ValueError as error:
            raise RunError(f"model.make={self.make!r}: {error}") from error
        return net

    def _basis(self, own: Basis, level: int) -> Basis:
        n_basis = self.n_basis or own.n_basis
        basis = BASES[self.basis](n_basis) if self.basis else dataclasses.replace(own, n_basis=n_basis)
        for _ in range(level):
            basis = basis.refined(2)
        return basis

    def _solver(self, own: Any, level: int) -> FixedStep:
        fixed = isinstance(own, FixedStep)
        if not fixed and not (self.scheme and self.n_steps):
            raise ValueError(f"net.solver={own!r}: only a FixedStep has a number of steps to change or to refine")
        return FixedStep(self.scheme or own.scheme, (self.n_steps or own.n_steps) * 2**level)

    def _made(self, n_classes: int) -> nn.Module:
        module, _, name = self.make.partition(":")
        function = getattr(_imported(module, self.make), name, None)
        if not callable(function):
            close = difflib.get_close_matches(name, vars(sys.modules[module]), n=1)
            hint = f", did you mean {close[0]}?" if close else f" in {sys.modules[module].__file__}"
            raise RunError(f"model.make={self.make!r}: there is no function {name}{hint}")
        given = (entry.partition("=") for entry in self.args)
        keywords = {"n_classes": n_classes} | {key: _value(text) for key, _, text in given}
        call = f"{name}({', '.join(f'{key}={value!r}' for key, value in keywords.items())})"
        try:
            net = function(**keywords)
        except Exception as error:
            raise RunError(f"model.make={self.make!r}: {call} fails with {_said(error)}") from error
        if not isinstance(net, nn.Module):
            what = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
            raise RunError(f"model.make={self.make!r}: {call} returns {what}, expected a flax.linen module")
        if wrong := [field.name for field in dataclasses.fields(net) if not _hashable(getattr(net, field.name, None))]:
            raise RunError(
                f"model.make={self.make!r}: {', '.join(wrong)} of a {type(net).__name__} cannot be hashed, expected "
                "tuples in place of lists, and no arrays"
            )
        return net


def source_of(config: Any) -> dict[str, str] | None:
    """Where the function of a config lies: a folder to import from, the file below it and its SHA-256 digest.

    `None` of an architecture of the library.
    """
    model = getattr(config, "model", None)
    if not isinstance(model, OwnSettings):
        return None
    module = model.make.partition(":")[0]
    path = Path(_imported(module, model.make).__file__ or "").absolute()
    # A package's file is one level further down than its name says.
    folder = path.parents[module.count(".") + (path.name == "__init__.py")]
    return {"folder": str(folder), "file": str(path.relative_to(folder)), "sha256": _digest(path)}


def find(config: Any, source: dict[str, str] | None) -> None:
    """Let the function of a run be found where it was, if it is not here, and say so if it has changed since."""
    if source is None:
        return
    if source["folder"] not in sys.path and Path(source["folder"]).is_dir():
        # Last, so that what lies here comes before it.
        sys.path.append(source["folder"])
    now = source_of(config)
    if now is not None and now["sha256"] != source["sha256"]:
        say(f"{now['file']} in {now['folder']} is not what it was when the run was started: its weights may not fit it")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _imported(module: str, make: str) -> Any:
    """A module, found where Python looks for it, or in the current folder.

    Raises:
      RunError: where it is not there, or cannot be imported.
    """
    # Commands start there and find it; a script or a notebook that loads a run may lie elsewhere.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise RunError(
                f"model.make={make!r}: there is no module {error.name}; go to the folder that holds it, which is not "
                f"{here}, or name that folder in PYTHONPATH"
            ) from error
        raise RunError(f"model.make={make!r}: importing {module} fails with {_said(error)}") from error


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _said(error: Exception) -> str:
    """An error in one line, with the place that it comes from."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} ({at.filename}, line {at.lineno})"


def _value(text: str) -> Any:
    """What Python reads in a text: a number, a tuple, a string in quotes; any other text is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
