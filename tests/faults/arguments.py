"""Wrong arguments for every public name: all end in an error that names the argument, or in what is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import ode_nets as on
from ode_nets import problems, remanifest, validity
from tests.faults.tally import Trials, outcome_of

Accepts = Callable[[Any], bool]


def _number(v: Any) -> bool:
    plain = isinstance(v, int | float | np.integer | np.floating) and not isinstance(v, bool)
    array = isinstance(v, np.ndarray | jax.Array) and v.ndim == 0 and v.dtype.kind in "iuf"
    return (plain or array) and not math.isnan(float(v))


def _integer(v: Any) -> bool:
    return _number(v) and (isinstance(v, int | np.integer) or getattr(v, "dtype", np.dtype(float)).kind in "iu")


def _pair(v: Any) -> bool:
    several = isinstance(v, tuple | list | range) or (isinstance(v, np.ndarray) and v.ndim == 1)
    return several and len(v) == 2 and all(map(_number, v)) and -math.inf < v[0] < v[1] < math.inf


def _one(*kinds: Any) -> Accepts:
    return lambda v: isinstance(v, kinds) and not isinstance(v, type)


def optional(accepts: Accepts) -> Accepts:
    return lambda v: v is None or accepts(v)


def reals(*shape: int | None, lists: bool = False) -> Accepts:
    """Arrays of real numbers of a shape, in which `None` is any size; with `lists`, lists of numbers too."""

    def accepts(v: Any) -> bool:
        listed = lists and isinstance(v, tuple | list) and all(isinstance(entry, int | float) for entry in v)
        array = isinstance(v, np.ndarray | jax.Array) and v.dtype.kind in "iuf"
        if not listed and not array:
            return False
        return np.ndim(v) == len(shape) and all(n in (None, size) for n, size in zip(shape, np.shape(v), strict=True))

    return accepts


def scalar(v: Any) -> bool:
    """A real number, NaN included."""
    return NUMERIC(v) and np.shape(v) == ()


def among(*names: Any) -> Accepts:
    return lambda v: isinstance(v, str | int) and not isinstance(v, bool) and v in names


def several(accepts: Accepts, least: int = 0) -> Accepts:
    return lambda v: (
        (isinstance(v, tuple | list | range) or (isinstance(v, np.ndarray) and v.ndim == 1))
        and len(v) >= least
        and all(map(accepts, v))
    )


COUNT: Accepts = lambda v: _integer(v) and 1 <= int(v) < 2**31
COUNTS: Accepts = lambda v: (
    COUNT(v) or (isinstance(v, np.ndarray | jax.Array) and v.dtype.kind in "iu" and bool(np.min(v, initial=1) >= 1))
)
NATURAL: Accepts = lambda v: _integer(v) and v >= 0
FINITE: Accepts = lambda v: _number(v) and math.isfinite(v)
POSITIVE: Accepts = lambda v: FINITE(v) and v > 0
NOT_NEGATIVE: Accepts = lambda v: FINITE(v) and v >= 0
SHARE: Accepts = lambda v: FINITE(v) and 0 <= v <= 1
FLAG: Accepts = _one(bool, np.bool_)
FUNCTION: Accepts = lambda v: callable(v) and not isinstance(v, type)
NUMERIC: Accepts = lambda v: (
    _number(v)
    or (isinstance(v, float | np.floating) and math.isnan(v))
    or (isinstance(v, np.ndarray | jax.Array | np.number) and v.dtype.kind in "iuf")
)
NEVER: Accepts = lambda v: False
"""Of keys, and of arrays of shapes that none of the values has."""
BASIS = _one(on.Basis)
GRADIENT = optional(lambda v: isinstance(v, on.GradientMethod) and not isinstance(v, type))
SOLVER = _one(on.FixedStep, on.Adaptive)


class Call(NamedTuple):
    """A public name with arguments that are right, and what each of them may be."""

    function: Any
    good: dict[str, Any]
    accepts: dict[str, Accepts]


FIELD = lambda t, x, k: -x
RK4, TWO = on.FixedStep("rk4", 2), on.PiecewiseConstant(2)
W = on.BasisExpansion(TWO, jnp.array([1.0, 3.0]))
NET = on.OdeBlock(on.MLP(2), TWO, RK4)
VARIABLES = {"params": {"coefficients": jnp.array([1.0, 3.0])}}
OWN, FINER = remanifest.Manifestation("euler", 4), remanifest.Manifestation("euler", 8)
PROBLEM = on.make_problem(FIELD, jnp.ones((3, 1)))
X, KEY = np.linspace(0.1, 1, 8), jax.random.key(0)
BODIES = problems.three_bodies.random_start(KEY)
POINTS = np.random.default_rng(0).normal(size=(2, 4, 2))


def _tolerance(good: Accepts) -> Accepts:
    """A number, or several, an entry or a leaf each; a state may have None in the place of a leaf."""

    def accepts(v: Any) -> bool:
        if v is W or (isinstance(v, dict) and v == {"a": 1}):
            return True
        if isinstance(v, tuple | list):
            entries = [entry for entry in v if entry is not None]
        else:
            entries = list(np.ravel(v)) if isinstance(v, np.ndarray | jax.Array) else [v]
        return bool(entries) and all(_number(entry) and good(entry) for entry in entries)

    return accepts


def _time(v: Any) -> bool:
    """A number, or NaN, at which theta is NaN."""
    return _number(v) or (isinstance(v, float | np.floating) and v != v)


def _bases() -> dict[str, Call]:
    kinds = ("PiecewiseConstant", "PiecewiseLinear", "Legendre", "Chebyshev", "Fourier")
    return {kind: Call(getattr(on, kind), {"n_basis": 2}, {"n_basis": COUNT}) for kind in kinds}


def _nets() -> dict[str, Call]:
    common = {"n_classes": COUNT, "momentum": SHARE, "gradient": lambda v: v is not None and GRADIENT(v)}
    images = common | {"widths": several(COUNT, 1)}
    pick = lambda accepts, *names: {name: accepts[name] for name in names}
    return {
        "ContinuousNet": Call(
            on.ContinuousNet, {}, images | {"basis": BASIS, "epsilon": FINITE, "stitch_scale": FINITE}
        ),
        "NODE18": Call(on.NODE18, {}, images | {"n_blocks": NATURAL}),
        "ResNet": Call(on.ResNet, {}, pick(images, "n_classes", "momentum", "widths") | {"n_units": NATURAL}),
        "ResNet18": Call(on.ResNet18, {}, pick(images, "n_classes", "momentum", "widths") | {"n_blocks": NATURAL}),
        "ANODEV2": Call(on.ANODEV2, {}, common | {"network": among("alexnet", "resnet4", "resnet10")}),
        "WideContinuousNet": Call(on.WideContinuousNet, {}, images),
        "anodev2_net": Call(
            on.anodev2_net,
            {"network": "resnet4", "form": "baseline"},
            {
                "network": among("alexnet", "resnet4", "resnet10"),
                "form": among("baseline", "neural_ode", "configuration_1", "configuration_2"),
            },
        ),
        "AugmentedNet": Call(
            on.AugmentedNet,
            {},
            pick(common, "n_classes", "gradient") | {"augment": NATURAL, "filters": COUNT, "basis": BASIS},
        ),
        "OdeBlock": Call(
            on.OdeBlock,
            {"unit": on.MLP(2), "basis": TWO, "solver": RK4},
            {"basis": BASIS, "epsilon": FINITE, "momentum": SHARE, "t0": FINITE, "t1": FINITE, "augment": NATURAL}
            | {"keep_augmented": FLAG, "ts": optional(several(FINITE))},
        ),
        "latent_ode": Call(
            on.latent_ode,
            {"n_features": 2},
            dict.fromkeys(("n_features", "latent", "size", "width", "depth", "units"), COUNT)
            | {"gradient": GRADIENT, "flow": FLAG},
        ),
        "LatentODE": Call(on.LatentODE, {"encoder": None, "unit": None, "decoder": None}, {"gradient": GRADIENT}),
        "GaussianGRU": Call(on.GaussianGRU, {}, {"units": COUNT}),
        "OdeRnn": Call(on.OdeRnn, {"latent": 2}, dict.fromkeys(("latent", "size", "units"), COUNT)),
        "RecurrentNet": Call(on.RecurrentNet, {"cell": None}, {"units": COUNT, "decay": FLAG}),
        "LinenUnit": Call(
            on.LinenUnit,
            {"module": __import__("flax.linen").linen.Dense(2), "shape": (1, 2)},
            {"shape": several(NATURAL), "module": _one(__import__("flax.linen").linen.Module)},
        ),
    }


def _solves() -> dict[str, Call]:
    times = {"t0": lambda v: FINITE(v) and not isinstance(v, bool), "t1": FINITE}
    flags = {"has_aux": lambda v: FLAG(v) and not v, "dense": FLAG}
    end = lambda **options: on.solve(x0=jnp.ones(2), **({"field": FIELD, "solver": RK4} | options)).x
    until = lambda **options: (
        on.solve_until(x0=jnp.ones(()), **({"field": FIELD, "event": lambda t, x: x - 0.5, "solver": RK4} | options)).x
    )
    return {
        "solve": Call(
            end,
            {},
            times | flags | {"throw": FLAG, "solver": SOLVER, "gradient": GRADIENT, "field": lambda v: v is FIELD},
        ),
        "solve_until": Call(
            until,
            {},
            times
            | flags
            | {"throw": FLAG, "direction": lambda v: _integer(v) and v in (-1, 0, 1), "gradient": GRADIENT}
            | {"solver": SOLVER, "event": lambda v: False, "field": lambda v: v is FIELD},
        ),
        "make_problem": Call(
            lambda **o: on.make_problem(**({"field": FIELD, "x0": jnp.ones(2)} | o)),
            {},
            times | {"has_aux": lambda v: FLAG(v) and not v, "field": lambda v: v is FIELD},
        ),
    }


def _rolled(**changes: Any) -> Any:
    """Particles that have no time to come to rest: what is said of them is no fault of the argument at hand."""
    try:
        return problems.landscape.generate(**({"key": KEY, "n": 2, "t_max": 0.02, "h": 0.01} | changes))
    except ValueError as error:
        if "come to rest" in str(error) or "ran away" in str(error) or "half of the distance" in str(error):
            return str(error)
        raise


def _solvers() -> dict[str, Call]:
    return {
        "ACA": Call(on.ACA, {}, {"checkpoints": lambda v: v is None or v == "auto" or COUNT(v)}),
        "Adaptive": Call(
            on.Adaptive,
            {"scheme": "dopri5"},
            {
                "scheme": among(*(name for name, scheme in on.SCHEMES.items() if scheme.b_error)),
                "rtol": _tolerance(lambda v: v > 0),
                "atol": _tolerance(lambda v: v >= 0),
                "max_steps": COUNT,
                "first_step": optional(lambda v: _number(v) and v > 0),
                "min_step": optional(lambda v: _number(v) and v > 0),
                "controller": _one(on.StepController),
                "norm": among("batch", "sample"),
                "outputs": optional(among("interpolate", "clip")),
            },
        ),
        "Backsolve": Call(
            on.Backsolve, {}, {"rtol": optional(POSITIVE), "atol": optional(NOT_NEGATIVE), "seminorm": FLAG}
        ),
        "Checkpointed": Call(on.Checkpointed, {}, {"unit": among("step", "block")}),
        "FixedStep": Call(
            on.FixedStep,
            {"scheme": "rk4", "n_steps": 2},
            {"scheme": among(*on.SCHEMES), "n_steps": COUNTS, "max_steps": COUNT},
        ),
        "pad": Call(
            on.pad,
            {"solver": RK4, "n_stages": 4},
            {"solver": _one(on.FixedStep), "n_stages": lambda v: COUNT(v) and v >= 4},
        ),
        "Recorded": Call(lambda solution: on.Recorded(solution), {}, {"solution": _one(on.Solution)}),
        "StepController": Call(
            on.StepController,
            {},
            {
                "safety": lambda v: FINITE(v) and 0 < v <= 1,
                "min_factor": lambda v: FINITE(v) and 0 < v < 1,
                "max_factor": lambda v: FINITE(v) and v > 1,
                "integral": POSITIVE,
                "proportional": NOT_NEGATIVE,
                "shrink_accepted": FLAG,
            },
        ),
    }


def _weights() -> dict[str, Call]:
    return {
        "Constant": Call(on.Constant, {"theta": 1.0}, {"domain": _pair}),
        "Constant.at": Call(on.Constant(1.0).at, {"t": 0.5}, {"t": NUMERIC}),
        "BasisExpansion": Call(
            on.BasisExpansion,
            {"basis": TWO, "coefficients": jnp.ones(2)},
            {"basis": lambda v: BASIS(v) and v.n_basis == 2, "domain": _pair},
        ),
        "BasisExpansion.at": Call(lambda t: W.at(t), {"t": 0.5}, {"t": _time}),
        "BasisExpansion.projected": Call(W.projected, {"basis": TWO}, {"basis": BASIS}),
        "BasisExpansion.interpolated": Call(W.interpolated, {"basis": TWO}, {"basis": BASIS}),
        "BasisExpansion.refined": Call(W.refined, {"factor": 2}, {"factor": COUNT}),
        "Joint": Call(on.Joint, {"parts": {"a": W}}, {"parts": lambda v: False}),
        "Box": Call(on.Box, {"width": 0.5}, {"width": POSITIVE}),
        "Exponential": Call(on.Exponential, {"rate": 0.5}, {"rate": POSITIVE}),
        "FlowStep": Call(on.FlowStep, {"n_steps": 2}, {"n_steps": COUNT}),
        "Evolution": Call(
            on.Evolution,
            {"q": on.Still(), "solver": on.FlowStep(2), "basis": TWO},
            {"basis": lambda v: v == TWO, "domain": _pair, "grid": optional(lambda v: COUNT(v) and v == 2)}
            | {"gradient": lambda v: v is not None and GRADIENT(v)},
        ),
        "Evolved": Call(
            on.Evolved,
            {"w0": jnp.ones(2), "p": {}, "evolution": on.configuration_1(on.Still(), 2)},
            {"evolution": _one(on.Evolution)},
        ),
        "configuration_1": Call(on.configuration_1, {"q": on.Still(), "n_steps": 2}, {"n_steps": COUNT}),
        "configuration_2": Call(
            on.configuration_2,
            {"q": on.Still(), "n_steps": 2, "n_weight_steps": 4},
            {"n_steps": lambda v: COUNT(v) and v in (1, 2, 3, 5), "n_weight_steps": COUNT},
        ),
        "RDA": Call(
            on.RDA,
            {},
            {"diffusion": optional(POSITIVE), "advection": optional(FINITE), "reaction": optional(FINITE)}
            | {"sigma": optional(FUNCTION), "sharing": among("global", "tensor", "filter")},
        ),
        "advance_filter": Call(
            on.advance_filter,
            {"w": jnp.ones((3, 3, 1, 1)), "h": 1.0},
            {"w": NEVER, "h": _time, "diffusion": lambda v: _number(v) and v >= 0, "reaction": _time},
        ),
    }


def _fields() -> dict[str, Call]:
    return {
        "MLP": Call(
            on.MLP,
            {"size": 2},
            {"size": COUNT, "hidden": several(COUNT), "activation": FUNCTION, "time_aware": FLAG},
        ),
        "ResidualUnit": Call(
            on.ResidualUnit,
            {"channels": 2},
            dict.fromkeys(("channels", "stride", "kernel_size", "n_convolutions"), COUNT)
            | {"in_channels": optional(COUNT), "skip_init": FLAG, "bias": FLAG, "time_aware": FLAG}
            | {"order": among("bn-relu-conv", "conv-bn-relu", "conv-relu-bn")},
        ),
        "SecondOrder": Call(on.SecondOrder, {"acceleration": FIELD}, {"acceleration": FUNCTION}),
        "Coupled": Call(
            on.Coupled,
            {"tableau": "rk4"},
            {"tableau": among(*on.SCHEMES), "coupling": lambda v: _number(v) and 0 < v <= 1},
        ),
        "Hyper": Call(
            on.Hyper,
            {"scheme": "euler", "correction": FIELD, "params": 0.0},
            {"scheme": among(*on.SCHEMES), "correction": FUNCTION},
        ),
        "Measured": Call(on.Measured, {"scheme": "rk4"}, {"scheme": among(*on.SCHEMES)}),
        "RungeKutta": Call(on.RungeKutta, {"tableau": on.get_tableau("rk4")}, {"tableau": _one(on.Tableau)}),
        "get_scheme": Call(on.get_scheme, {"scheme": "rk4"}, {"scheme": among(*on.SCHEMES)}),
        "get_tableau": Call(on.get_tableau, {"scheme": "rk4"}, {"scheme": among(*on.SCHEMES)}),
    }


def _arrays() -> dict[str, Call]:
    """Functions of arrays whose shapes are told by their annotations."""
    pair, layer = jnp.ones(2), {"key": KEY, "shape": (2, 3)}
    image, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    norm = {"scale": pair, "bias": pair}
    mask = lambda v: isinstance(v, np.ndarray | jax.Array) and v.dtype == bool and v.shape == (2, 3)
    series = {"times": pair, "values": jnp.ones((2, 3)), "mask": jnp.ones((2, 3), bool)}
    return {
        "convolution": Call(
            on.convolution,
            {"x": image, "kernel": kernel[:, :, :1], "groups": 2},
            {"x": NEVER, "kernel": NEVER, "groups": lambda v: COUNT(v) and v == 2},
        ),
        "batch_norm": Call(
            on.batch_norm,
            {"x": pair, "params": norm},
            {"x": lambda v: reals(2)(v) and v.dtype.kind == "f", "params": NEVER},
        ),
        "jacobian_frobenius": Call(on.jacobian_frobenius, {"key": KEY}, {"key": NEVER}),
        "uniform_layer": Call(on.uniform_layer, layer, {"key": NEVER, "shape": several(COUNT, 1)}),
        "kaiming_layer": Call(on.kaiming_layer, layer, {"key": NEVER, "shape": several(COUNT, 1)}),
        "recur": Call(
            lambda **o: on.recur(lambda s, x: s + x[..., :1], lambda s, t, dt: s, jnp.zeros(1), **(series | o)),
            {},
            {"times": reals(2), "values": lambda v: reals(2, 3)(v) and v.dtype.kind == "f", "mask": mask},
        ),
        "gaussian_kl": Call(on.gaussian_kl, {"mean": pair, "std": pair}, {"mean": reals(2), "std": reals(2)}),
        "gaussian_log_likelihood": Call(
            on.gaussian_log_likelihood,
            {"x": jnp.ones((2, 3)), "values": jnp.ones((2, 3))},
            {"x": reals(2, 3), "values": reals(2, 3), "sigma": lambda v: scalar(v) and v > 0},
        ),
        "importance_bound": Call(
            on.importance_bound,
            {"log_likelihood": pair, "kl": 0.5},
            {
                "log_likelihood": lambda v: (reals(None)(v) or reals(None, None)(v)) and len(v) > 0,
                "kl": scalar,
                "weight": scalar,
            },
        ),
        "orientation": Call(
            validity.orientation,
            dict.fromkeys("abc", POINTS[0]),
            dict.fromkeys("abc", NEVER) | {"margin": NOT_NEGATIVE},
        ),
        "images.field": Call(
            problems.images.field, {"t": 0.0, "x": image, "kernel": kernel}, {"x": NEVER, "kernel": NEVER}
        ),
        "images.spectrum": Call(
            problems.images.spectrum,
            {"kernel": kernel, "height": 4, "width": 4},
            {"kernel": NEVER, "height": COUNT, "width": COUNT},
        ),
        "pendulum.energy": Call(problems.pendulum.energy, {"x": pair}, {"x": reals(2)}),
        "van_der_pol.power": Call(problems.van_der_pol.power, {"y": pair, "mu": 0.15}, {"y": reals(2)}),
        "three_bodies.energies": Call(
            problems.three_bodies.energies,
            {"r": BODIES.r, "v": BODIES.v, "masses": BODIES.masses},
            {"r": NEVER, "v": NEVER, "masses": reals(3, lists=True)},
        ),
        "three_bodies.random_start": Call(
            problems.three_bodies.random_start,
            {"key": KEY},
            {"key": NEVER, "virial": lambda v: FINITE(v) and 0 < v < 1},
        ),
    }


def _manifestations() -> dict[str, Call]:
    return {
        "refine": Call(
            on.refine,
            {"net": NET, "variables": VARIABLES, "factor": 2},
            {"net": lambda v: v is NET, "variables": lambda v: v == {} and isinstance(v, dict), "factor": COUNT},
        ),
        "project": Call(
            on.project,
            {"net": NET, "variables": VARIABLES, "basis": TWO},
            {"net": lambda v: v is NET, "variables": lambda v: v == {} and isinstance(v, dict), "basis": BASIS},
        ),
        "interpolate": Call(
            on.interpolate,
            {"net": NET, "variables": VARIABLES, "basis": TWO},
            {"net": lambda v: v is NET, "variables": lambda v: v == {} and isinstance(v, dict), "basis": BASIS},
        ),
        "pareto_front": Call(on.pareto_front, {"points": [(1, 0.5)]}, {"points": several(lambda v: False)}),
        "n_parameters": Call(on.n_parameters, {"variables": VARIABLES}, {"variables": lambda v: False}),
        "with_quantities": Call(
            lambda field, has_aux=False: on.with_quantities(field, has_aux=has_aux, kinetic=on.kinetic_energy),
            {"field": FIELD},
            {"field": FUNCTION, "has_aux": FLAG},
        ),
        "as_resnet": Call(on.as_resnet, {"variables": {}}, {"net": lambda v: False}),
        "Manifestation": Call(
            remanifest.Manifestation,
            {"scheme": "rk4", "n_steps": 2},
            {"n_steps": COUNT, "rtol": optional(POSITIVE), "scheme": lambda v: isinstance(v, str) and v != ""},
        ),
        "nfe": Call(remanifest.nfe, {"solver": RK4}, {"solver": _one(on.FixedStep), "n_blocks": COUNT}),
        "check_exchangeable": Call(remanifest.check_exchangeable, {"net": NET}, {"net": lambda v: v is NET}),
        "quantize": Call(remanifest.quantize, {"variables": VARIABLES}, {"variables": lambda v: False}),
        "dequantize": Call(
            remanifest.dequantize, {"variables": VARIABLES}, {"variables": lambda v: isinstance(v, dict)}
        ),
        "padded": Call(remanifest.padded, {"function": FIELD}, {"function": FUNCTION, "sizes": several(COUNT, 1)}),
        "make_swap": Call(
            remanifest.make_swap,
            {"net": NET, "score": FIELD},
            {"score": FUNCTION, "lanes": COUNT, "net": lambda v: v is NET},
        ),
        "stack_solvers": Call(
            remanifest.stack_solvers,
            {"solvers": [RK4], "n_stages": 4},
            {"n_stages": lambda v: COUNT(v) and v >= 4, "solvers": several(_one(on.FixedStep), 1)},
        ),
    }


def _problems() -> dict[str, Call]:
    return {
        "polynomial": Call(
            problems.landscape.Polynomial,
            {"coefficients": (1.0,), "exponents": ((2,),)},
            {"coefficients": lambda v: several(FINITE)(v) and len(v) == 1, "exponents": lambda v: False},
        ),
        "landscape.generate": Call(
            _rolled,
            {},
            dict.fromkeys(("gamma", "speed", "reach"), POSITIVE) | {"n": COUNT, "x_range": _pair, "key": NEVER},
        ),
        "spheres.generate": Call(
            problems.spheres.generate,
            {"key": KEY, "n": 3, "dimension": 2},
            {"key": NEVER, "n": COUNT, "dimension": COUNT, "shells": NEVER},
        ),
        "pendulum.pairs": Call(
            problems.pendulum.pairs,
            {"n": 2, "dt": 0.1},
            {
                "n": COUNT,
                "dt": POSITIVE,
                "key": optional(NEVER),
                "rho0": lambda v: FINITE(v) and abs(v) < math.pi,
                "g": lambda v: FINITE(v) and v < 0,
            },
        ),
        "pendulum.period": Call(
            problems.pendulum.period,
            {},
            {"rho0": lambda v: FINITE(v) and abs(v) < math.pi, "g": lambda v: FINITE(v) and v < 0},
        ),
        "random_kernel": Call(
            problems.images.random_kernel,
            {"key": KEY, "channels": 1},
            {"key": NEVER, "channels": COUNT, "size": lambda v: COUNT(v) and v % 2 == 1},
        ),
        "linear.solution": Call(
            problems.linear.solution, {"t": 1.0, "z0": 1.0, "k": 1.0}, dict.fromkeys(("t", "z0", "k"), NUMERIC)
        ),
    }


def _adaptations() -> dict[str, Call]:
    return {
        "step_adaptation": Call(
            validity.step_adaptation, {}, {"max_steps": lambda v: COUNT(v) and v > 1, "span": POSITIVE}
        ),
        "settled_step_adaptation": Call(
            validity.settled_step_adaptation, {}, {"max_steps": lambda v: COUNT(v) and v > 1, "span": POSITIVE}
        ),
        "adaptation": Call(
            validity.adaptation,
            {"lowest": 0.1, "highest": 1.0},
            {
                "lowest": lambda v: POSITIVE(v) and v < 1,
                "highest": lambda v: POSITIVE(v) and v > 0.1,
                "threshold": lambda v: FINITE(v) and 0 < v < 1,
                "shrink": lambda v: FINITE(v) and 0 < v < 1,
                "grow": lambda v: FINITE(v) and v > 1,
                "calm": lambda v: FINITE(v) and 0 < v <= 1,
                "memory": optional(lambda v: FINITE(v) and 0.5 <= v < 1),
                "revert": FLAG,
            },
        ),
        "steps_of": Call(
            validity.steps_of, {"h": 0.1}, {"h": lambda v: NUMERIC(v) and np.all(np.asarray(v) > 0), "span": POSITIVE}
        ),
        "find_dip": Call(
            validity.find_dip,
            {"n_steps": [1, 2, 4], "errors": [1.0, 1.0, 1.0], "trained": 2},
            {
                "n_steps": lambda v: several(COUNT)(v) and len(v) == 3 and v[0] < v[1] < v[2] and 2 in v[:2],
                "errors": lambda v: several(NOT_NEGATIVE)(v) and len(v) == 3,
                "trained": lambda v: COUNT(v) and v in (1, 2),
                "tolerance": POSITIVE,
                "floor": NOT_NEGATIVE,
            },
        ),
        "fit_slope": Call(
            validity.fit_slope,
            {"h": X[::-1], "errors": X[::-1]},
            {"h": lambda v: False, "errors": lambda v: False},
        ),
        "distance": Call(
            validity.distance,
            {"outputs": POINTS, "reference": POINTS},
            {"outputs": lambda v: False, "reference": lambda v: False},
        ),
        "critical_training_step": Call(
            validity.critical_training_step,
            {"passed": {1: True}},
            {"passed": lambda v: isinstance(v, dict) and v in ({}, {1: True}), "span": POSITIVE},
        ),
    }


def _validity() -> dict[str, Call]:
    run = lambda solver: jnp.ones((2, 1)) * solver.n_steps
    return {
        "Quality": Call(
            validity.Quality,
            {"values": {OWN: 0.5, FINER: 0.5}, "measure": "accuracy"},
            {"values": lambda v: v == {} and isinstance(v, dict), "tolerance": optional(POSITIVE)}
            | {"floor": optional(NOT_NEGATIVE), "measure": among("accuracy", "error", "disagreement", "cross_entropy")},
        ),
        "exchange": Call(
            validity.exchange,
            {"quality": validity.Quality({OWN: 0.5, FINER: 0.5}, "accuracy"), "trained": OWN},
            {"quality": lambda v: False, "trained": lambda v: False, "span": POSITIVE},
        ),
        "convergence": Call(
            validity.convergence,
            {"run": run, "schemes": ["euler"], "n_steps": [1, 2]},
            {"run": lambda v: False, "n_steps": several(COUNT, 1), "span": POSITIVE, "tolerance": POSITIVE},
        ),
        "order_changes": Call(
            validity.order_changes,
            {"states": POINTS[..., 0], "t": np.arange(4.0)},
            {"states": NEVER, "t": NEVER, "margin": NOT_NEGATIVE},
        ),
        "chord_heights": Call(validity.chord_heights, {"states": POINTS}, {"states": lambda v: False}),
        "segment_crossings": Call(
            validity.segment_crossings,
            {"states": POINTS},
            {"states": lambda v: False, "margin": lambda v: NOT_NEGATIVE(v) or np.shape(v) == (2, 3)},
        ),
        "crossings": Call(
            validity.crossings,
            {"problem": PROBLEM, "solver": RK4},
            {
                "problem": lambda v: False,
                "n_samples": COUNT,
                "substeps": optional(COUNT),
                "margin": optional(NOT_NEGATIVE),
            },
        ),
        "of_field": Call(
            lambda **o: validity.of_field(
                **({"field": FIELD, "theta": 1.0, "x0": jnp.ones((2, 1)), "solver": RK4} | o)
            ),
            {},
            {"solver": SOLVER, "t0": FINITE, "t1": FINITE, "readout": FUNCTION},
        ),
    }


def calls() -> dict[str, Call]:
    """All public functions, and classes that are made by hand."""
    tables = (
        *(_solvers, _weights, _fields, _arrays, _manifestations, _problems),
        *(_adaptations, _validity, _bases, _nets, _solves),
    )
    return {name: call for table in tables for name, call in table().items()}


WITHOUT = {
    "protocols and aliases": ("Basis", "Field", "GradientMethod", "Scheme", "Unit", "WeightFunction"),
    "results, which the library makes": (
        *("Gaussian", "Interpolation", "Paths", "Problem", "Result", "Solution", "Steps", "Stopped"),
    ),
    "no arguments": ("Direct", "Dirac", "Naive", "Reversible", "SCHEMES", "Still"),
    "rooms": ("problems", "remanifest", "validity"),
    "any tree of arrays": (
        *("Flattened", "Quantified", "TracedTableau", "kinetic_energy", "of_steps", "regularization"),
        *("weight_roles", "hyper_loss"),
    ),
    "whole programs, tried by their parts": ("export_inference", "swap_solvers"),
    "checked against the order conditions": ("Tableau",),
}
"""Public names that no wrong argument is tried on, by the reason."""

PLAIN = [
    None, True, False, "", "x",
    b"x", 1.5, -1, 0, 1, 2, math.nan, math.inf, -math.inf, 1j, [], (), {}, [1, 2], (0.0, 1.0),
    [1.5, "x"], {"a": 1}, {1: True}, int, object, on.PiecewiseConstant, on.FixedStep, object(), FIELD, Ellipsis,
    Fraction(1, 2), 10**30, -(10**30), np.int64(2), np.int8(-1), np.uint8(3), np.float32(0.5), np.float64("nan"),
    np.bool_(True), np.str_("x"), np.array(2), np.array(0.5), np.array([1, 2]), np.array(["a"]), np.array([None]),
    np.array([]), np.zeros((2, 3)), jnp.array(2), jnp.array(0.5), jnp.array([1.0, 2.0]),
    RK4, TWO, on.ACA(), on.Direct(),
    on.Adaptive("bosh3"), W, NET, range(2), {1, 2}, complex("nan"), "rk4", "auto",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(PLAIN),
    st.integers(-5, 8),
    st.floats(width=32),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-2, 5), st.floats(width=16), st.none()), max_size=3),
    st.tuples(st.floats(width=16), st.floats(width=16)),
    st.builds(np.int32, st.integers(-5, 8)),
    st.builds(np.float32, st.floats(width=32)),
)
SMALL = 12
"""Counts up to which a call that is right is also made: larger ones cost memory and tell nothing more."""


def trial(name: str, call: Call, argument: str, value: Any) -> tuple[str, str, str]:
    """One wrong, or right, argument in a call that is right otherwise."""
    accepted = bool(_quietly(call.accepts[argument], value))
    run = lambda: call.function(**(call.good | {argument: value}))
    # Numbers of steps that are right by themselves may not fit each other.
    named = (argument, "a number of weight steps")
    outcome, what = outcome_of(run, named, lambda _: accepted, (ValueError, TypeError))
    if accepted and outcome == "clear error":
        outcome, what = "unclear", f"refused though right: {what}"
    return "arguments", outcome, f"{name}({argument}={_shown(value)}) {what}"


def _quietly(accepts: Accepts, value: Any) -> bool:
    try:
        return bool(accepts(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _has_errors_of_its_own(argument: str, value: Any) -> bool:
    """Of a function that is called: what it raises on arguments that it was not written for is its own."""
    return (
        argument in ("event", "field", "run")
        and callable(value)
        and not isinstance(value, type)
        and (argument, value) != ("field", FIELD)
    )


def _left_out(call: Call, argument: str, value: Any) -> bool:
    accepted = _quietly(call.accepts[argument], value)
    return (_too_large(value) and accepted) or _has_errors_of_its_own(argument, value)


def _too_large(value: Any) -> bool:
    try:
        return bool(abs(float(value)) > SMALL)
    except (TypeError, ValueError, OverflowError):
        return _integer(value)


def trials(n: int, first: int = 0) -> Trials:
    """Wrong arguments, drawn by hypothesis; from a seed, but also by its version and by what is imported."""
    table = calls()
    places = [(name, argument) for name, call in sorted(table.items()) for argument in sorted(call.accepts)]
    found: list[tuple[str, str, str]] = []

    @seed(first)
    @settings(
        max_examples=n,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(places), VALUES)
    def tried(place: tuple[str, str], value: Any) -> None:
        name, argument = place
        call = table[name]
        if not _left_out(call, argument, value):
            found.append(trial(name, call, argument, value))

    tried()
    yield from found


def every(stride: int = 1, offset: int = 0) -> Trials:
    """Every one of `PLAIN` at every argument, or each `stride`-th: the same in every process."""
    at_places = (
        (name, call, argument, value)
        for name, call in sorted(calls().items())
        for argument in sorted(call.accepts)
        for value in PLAIN
    )
    for name, call, argument, value in itertools.islice(at_places, offset, None, stride):
        if not _left_out(call, argument, value):
            yield trial(name, call, argument, value)
