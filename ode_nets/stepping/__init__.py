"""Schemes: how one step is computed."""

from ode_nets.stepping.arrays import TracedTableau, pad_scheme
from ode_nets.stepping.hyper import Hyper, hyper_loss
from ode_nets.stepping.measured import Measured, Quantified
from ode_nets.stepping.reversible import Coupled
from ode_nets.stepping.runge_kutta import RungeKutta, all_finite, combine
from ode_nets.stepping.scheme import END, START, Evaluate, Node, OneState, Scheme, Stage, Step
from ode_nets.tableaus import Tableau, get_tableau

__all__ = [
    "END",
    "START",
    "Coupled",
    "Evaluate",
    "Hyper",
    "Measured",
    "Node",
    "OneState",
    "Quantified",
    "RungeKutta",
    "Scheme",
    "Stage",
    "Step",
    "TracedTableau",
    "all_finite",
    "combine",
    "get_scheme",
    "hyper_loss",
    "pad_scheme",
]


def get_scheme(scheme: Scheme | Tableau | str) -> Scheme:
    """A scheme from the key of a tableau, a tableau, or itself.

    Raises:
      ValueError: for anything else, with the keys.

    Example:
        >>> get_scheme("dopri5").error_order
        4
    """
    if isinstance(scheme, (str, Tableau)):
        return RungeKutta(get_tableau(scheme))
    if isinstance(scheme, type) or not isinstance(scheme, Scheme):
        raise ValueError(
            f"scheme={scheme!r}: expected the key of a tableau ('euler', 'rk4', 'dopri5', ...; see ode_nets.SCHEMES), "
            "a Tableau, or a scheme such as ode_nets.interop.diffrax.DiffraxScheme(diffrax.Kvaerno5())"
        )
    return scheme
