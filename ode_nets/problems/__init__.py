"""Initial value problems with known answers, as pure functions: a module a problem, each with its `field`."""

from ode_nets.problems import images, linear, van_der_pol

__all__ = ["images", "linear", "van_der_pol"]
