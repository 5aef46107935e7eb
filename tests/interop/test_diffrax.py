"""Our adjoint in diffrax gives the gradients of diffrax, at the cost that it promises."""

import ast
import inspect
import math
import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import relative
from ode_nets.interop import adjoint, guard, recording, replay, scheme, solver
from ode_nets.interop.diffrax import AdaptiveCheckpointAdjoint

REFERENCE = diffrax.RecursiveCheckpointAdjoint()
PID = diffrax.PIDController(rtol=1e-3, atol=1e-4)
TS = np.array([0.0, 0.1, 0.35, 0.35, 1.3, 2.0])
Y0 = {"a": np.array([2.0, 0.0]), "b": np.arange(1.0, 4.0)}
ARGS = {"mu": np.array(5.0), "w": np.array([0.3, -0.2]), "index": np.array(1)}


def field(t, y, args):
    a, w = y["a"], args["w"]
    assert args["name"] == "a string"
    slope = args["mu"] * (1 - a[0] ** 2) * a[1] - a[0] + jnp.sin(3 * t) * w[args["index"]]
    return {"a": jnp.stack([a[1], slope]), "b": -y["b"] * w.sum() * a[0]}


def integrate(adjoint, scheme, saveat, controller=PID, term=None, max_steps=300):
    """A loss of all that `saveat` asks for, of (y0, args, t0, t1, dt0), with the counts of the solve."""

    def loss(y0, args, t0, t1, dt0):
        solution = diffrax.diffeqsolve(
            term or diffrax.ODETerm(field),
            scheme,
            t0,
            t1,
            dt0,
            y0,
            {**args, "name": "a string"},
            saveat=saveat(args["mu"]) if callable(saveat) else saveat,
            stepsize_controller=controller,
            adjoint=adjoint,
            max_steps=max_steps,
            throw=False,
        )
        leaves = [jnp.where(jnp.isfinite(a), a, 0) for a in jax.tree.leaves((solution.ts, solution.ys))]
        weighed = (jnp.sum(jnp.sin(a) * jnp.arange(1.0, a.size + 1).reshape(a.shape)) for a in leaves)
        return sum(weighed), solution.stats

    return loss


def gradient(adjoint, *problem, argnums=(0, 1), at=(Y0, ARGS, 0.0, 2.0, 1.0), **changes):
    loss = integrate(adjoint, *problem, **changes)
    return jax.jit(jax.grad(loss, argnums, has_aux=True, allow_int=True))(*at)


def everything(mu):
    """All kinds of outputs at once; `fn` closes over an array that is differentiated."""
    return diffrax.SaveAt(
        subs={
            "times": diffrax.SubSaveAt(t0=True, ts=TS, t1=True),
            "mixed": diffrax.SubSaveAt(
                t0=True, ts=TS[1:4], steps=3, t1=True, fn=lambda t, y, args: (mu * y["a"] * t, args["w"])
            ),
        }
    )


SOLVERS = [
    diffrax.Heun(),
    *(
        pytest.param(solver, marks=pytest.mark.slow)
        for solver in (diffrax.Bosh3(), diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8())
    ),
]


@pytest.mark.parametrize("scheme", SOLVERS, ids=lambda s: type(s).__name__)
def test_gradients_are_those_of_diffrax(x64, scheme):
    expected, stats = gradient(REFERENCE, scheme, everything)
    got, again = gradient(AdaptiveCheckpointAdjoint(3), scheme, everything)
    assert stats["num_rejected_steps"] > 0
    assert stats["num_accepted_steps"] > 3
    assert again["num_steps"] == stats["num_steps"]
    assert relative(got, expected) < 1e-12


@pytest.mark.slow
def test_every_number_of_checkpoints_gives_the_same(x64):
    steps = diffrax.SaveAt(steps=True, t0=True, t1=True)
    expected, stats = gradient(REFERENCE, diffrax.Bosh3(), steps)
    assert stats["num_accepted_steps"] > 3 * 4
    for checkpoints in (None, 1, 4):
        got, _ = gradient(AdaptiveCheckpointAdjoint(checkpoints), diffrax.Bosh3(), steps)
        assert relative(got, expected) < 1e-12, checkpoints


CONTROLLERS = {
    "first step chosen, backward": (PID, None, (0.7, -0.4)),
    "last trial rejected": (PID, 2.0, (0.0, 0.5)),
    "constant": (diffrax.ConstantStepSize(), 0.07, (0.0, 0.5)),
    "times given": (diffrax.StepTo(jnp.array([0.0, 0.1, 0.25, 0.3, 0.5])), None, (0.0, 0.5)),
    "times to stop at": (diffrax.ClipStepSizeController(PID, [0.2], [0.3]), 0.3, (0.0, 0.5)),
}


LONG = ("constant", "times given", "last trial rejected", "times to stop at")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in CONTROLLERS]
)
def test_gradients_of_times_are_those_of_diffrax(x64, case):
    controller, dt0, ends = CONTROLLERS[case]
    given = ends if dt0 is None else (*ends, math.copysign(dt0, ends[1] - ends[0]))

    def of_times(adjoint):
        def loss(times, ts, args):
            end = lambda mu: diffrax.SaveAt(ts=ts, t0=True, t1=True)
            whole = integrate(adjoint, diffrax.Heun(), end, controller)
            return whole(Y0, args, *(times if len(times) == 3 else (*times, None)))[0]

        return jax.jit(jax.grad(loss, (0, 1)))(given, jnp.linspace(*ends, 3), ARGS)

    expected = of_times(REFERENCE)
    assert relative(of_times(AdaptiveCheckpointAdjoint()), expected) < 1e-12


@pytest.mark.slow
def test_gradients_under_vmap(x64):
    settings = (diffrax.Bosh3(), diffrax.SaveAt(t1=True))
    scales = jnp.array([1.0, 1.5, 0.2])

    def of(adjoint):
        whole = integrate(adjoint, *settings)
        loss = lambda y0, scale: whole(y0, {**ARGS, "mu": 5 * scale}, 0.0, 2.0, None)[0]
        batch = jax.tree.map(lambda leaf: scales[:, None] * leaf, Y0)
        each = jax.vmap(jax.grad(loss, (0, 1)))(batch, scales)
        both = jax.grad(lambda y0, scales: jax.vmap(loss)(y0, scales).sum(), (0, 1))(batch, scales)
        return each, both

    expected, _ = jax.jit(lambda: of(REFERENCE))()
    each, both = jax.jit(lambda: of(AdaptiveCheckpointAdjoint(3)))()
    assert relative(each, expected) < 1e-12
    assert relative(both, expected) < 1e-12


def test_closed_over_arrays_and_driven_equations(x64):
    path = diffrax.LinearInterpolation(ts=jnp.linspace(0, 2.0, 5), ys=jnp.sin(jnp.arange(5.0))[:, None])

    def of(adjoint):
        def loss(matrix, path):
            term = diffrax.ControlTerm(lambda t, y, args: (jnp.sin(matrix @ y) + t)[:, None], path)
            settings = (diffrax.Euler(), 0.0, 2.0, 0.3, jnp.array([1.0, -1.0]))
            sol = diffrax.diffeqsolve(term, *settings, adjoint=adjoint, saveat=diffrax.SaveAt(ts=TS))
            return jnp.sum(sol.ys**2)

        return jax.jit(jax.grad(loss, (0, 1), allow_int=True))(jnp.array([[0.1, 0.9], [-1.0, 0.2]]), path)

    assert relative(of(AdaptiveCheckpointAdjoint()), of(REFERENCE)) < 1e-12


def test_no_time_passes_and_too_few_steps(x64):
    def of(adjoint):
        def loss(y0, t0, t1, ts):
            saveat = lambda mu: diffrax.SaveAt(t0=True, ts=ts, t1=True, steps=2)
            return integrate(adjoint, diffrax.Heun(), saveat, max_steps=5)(y0, ARGS, t0, t1, 1.0)

        run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        return [run(Y0, 0.5, t1, jnp.linspace(0.5, t1, 6)) for t1 in (0.5, 2.5)]

    for got, expected, n_steps in zip(of(AdaptiveCheckpointAdjoint()), of(REFERENCE), (0, 5), strict=True):
        assert expected[1]["num_steps"] == n_steps
        assert relative(got[0], expected[0]) < 1e-12


def test_backward_pass_evaluates_no_rejected_trial_and_no_spare_stage(x64):
    """Evaluations: those of the forward pass, and for each accepted step the stages that its state needs."""
    count = [0]

    def counted(t, y, args):
        jax.debug.callback(lambda: count.__setitem__(0, count[0] + 1))
        return jnp.sin(5 * y) * args

    def loss(y0, args):
        term, scheme = diffrax.ODETerm(counted), diffrax.Dopri5()
        keep = AdaptiveCheckpointAdjoint()
        sol = diffrax.diffeqsolve(term, scheme, 0, 3.0, 3.0, y0, args, stepsize_controller=PID, adjoint=keep)
        return sol.ys.sum(), sol.stats

    counts = []
    for run in (loss, jax.grad(loss, has_aux=True)):
        _, stats = jax.block_until_ready(jax.jit(run)(jnp.ones(2), 2.0))
        jax.effects_barrier()
        counts.append(count[0])
    forward, both = counts[0], counts[1] - counts[0]
    assert stats["num_steps"] > stats["num_accepted_steps"] > 2
    assert both - forward == 6 * stats["num_accepted_steps"]


class OwnStep(diffrax.Heun):
    def step(self, *args):
        return super().step(*args)


NOISE = diffrax.VirtualBrownianTree(0.0, 1.0, 0.1, (1,), jax.random.key(0))
DECAY = diffrax.ODETerm(lambda t, y, args: -y)
STOCHASTIC = diffrax.MultiTerm(DECAY, diffrax.ControlTerm(lambda t, y, args: jnp.ones((2, 1)), NOISE))
REFUSED = {
    "Kvaerno3.*RecursiveCheckpointAdjoint": {"solver": diffrax.Kvaerno3()},
    "ReversibleHeun": {"solver": diffrax.ReversibleHeun()},
    "LeapfrogMidpoint": {"solver": diffrax.LeapfrogMidpoint(), "dt0": 0.1, "stepsize_controller": None},
    "HalfSolver": {"solver": diffrax.HalfSolver(diffrax.Tsit5())},
    "OwnStep": {"solver": OwnStep()},
    "do event": {"event": diffrax.Event(lambda t, y, args, **_: y[0] < 0.5)},
    r"do max_steps=None.*2\*\*20": {"max_steps": None},
    r"do SaveAt\(dense=True\)": {"saveat": diffrax.SaveAt(dense=True, t1=True)},
    r"do SaveAt\(solver_state=True\)": {"saveat": diffrax.SaveAt(t1=True, solver_state=True)},
    r"do SaveAt\(controller_state=True\)": {"saveat": diffrax.SaveAt(t1=True, controller_state=True)},
    "do controller_state": {"controller_state": (jnp.ones(()), jnp.ones(()), False)},
    "args holds an array of dtype complex": {"args": jnp.ones(2, complex)},
    "stochastic terms: use diffrax": {"terms": STOCHASTIC, "dt0": 0.1, "stepsize_controller": None},
}


def decay(y0, adjoint, changes):
    settings = {"terms": DECAY, "solver": diffrax.Heun(), "dt0": None, "stepsize_controller": PID, **changes}
    if settings["stepsize_controller"] is None:
        del settings["stepsize_controller"]
    return diffrax.diffeqsolve(t0=0.0, t1=1.0, y0=y0, adjoint=adjoint, **settings)


@pytest.mark.parametrize(("message", "changes"), REFUSED.items())
@pytest.mark.filterwarnings("ignore:Complex dtype support")
def test_refusals_of_derivatives_name_what_and_what_instead(message, changes):
    with pytest.raises(ValueError, match=message):
        jax.grad(lambda y0: decay(y0, AdaptiveCheckpointAdjoint(), changes).ys.sum())(jnp.ones(2))


@pytest.mark.parametrize("message", [message for message in REFUSED if message != "do controller_state"])
@pytest.mark.filterwarnings("ignore:Complex dtype support")
def test_what_has_no_derivative_is_solved_by_diffrax(message):
    changes = REFUSED[message]
    got, expected = (decay(jnp.ones(2), adjoint, changes) for adjoint in (AdaptiveCheckpointAdjoint(), REFERENCE))
    arrays = lambda solution: [leaf for leaf in jax.tree.leaves(solution) if isinstance(leaf, jax.Array)]
    assert len(arrays(got)) == len(arrays(expected)) > 3
    for one, other in zip(arrays(got), arrays(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_field_closes_over_is_refused_too():
    def loss(matrix):
        term = diffrax.ODETerm(lambda t, y, args: matrix @ y)
        return decay(jnp.ones(2), AdaptiveCheckpointAdjoint(), {"terms": term, "solver": diffrax.Kvaerno3()}).ys.sum()

    with pytest.raises(ValueError, match="Kvaerno3"):
        jax.grad(loss)(-jnp.eye(2))


def test_refuses_differentiated_controllers_and_no_checkpoint():
    settings = (0.0, 1.0, 0.1, jnp.ones(2))
    ours = AdaptiveCheckpointAdjoint()

    def loss(rtol):
        controller = diffrax.PIDController(rtol=rtol, atol=0.1)
        return diffrax.diffeqsolve(
            DECAY, diffrax.Heun(), *settings, adjoint=ours, stepsize_controller=controller
        ).ys.sum()

    with pytest.raises(ValueError, match="stepsize_controller holds an array that is differentiated"):
        jax.grad(loss)(0.1)
    with pytest.raises(ValueError, match="checkpoints=0"):
        AdaptiveCheckpointAdjoint(0)


MODULES = (
    "ode_nets",
    "__future__",
    "collections",
    "fractions",
    "functools",
    "jax.extend",
    "jax.interpreters",
    "typing",
)


@pytest.mark.parametrize("module", [adjoint, guard, recording, replay, scheme, solver], ids=lambda m: m.__name__)
def test_only_public_names_are_used(module):
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module.startswith(MODULES), node.module
            assert not any(re.match("_(?!_)", name.name) for name in node.names), ast.unparse(node)
        if isinstance(node, ast.Import):
            assert {name.name for name in node.names} <= {
                "dataclasses",
                "diffrax",
                "equinox",
                "jax",
                "jax.numpy",
                "numpy",
            }
        if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
            assert node.attr == "_replace" or ast.unparse(node.value) in ("self", "other"), ast.unparse(node)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "eqx":
            assert node.attr != "internal"


def test_diffrax_calls_an_adjoint_as_the_bridge_expects():
    """`loop` is not public in diffrax: a version that calls it otherwise is told by this test, not by a user."""
    needed = ["args", "terms", "solver", "stepsize_controller", "event", "saveat", "t0", "t1", "dt0", "max_steps"]
    needed += ["throw", "init_state", "passed_solver_state", "passed_controller_state", "progress_meter"]
    for kind in (diffrax.AbstractAdjoint, AdaptiveCheckpointAdjoint):
        _, *parameters = inspect.signature(kind.loop).parameters.values()
        assert [parameter.name for parameter in parameters] == needed
        assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
