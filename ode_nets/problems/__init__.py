"""Initial value problems with known answers, as pure functions: a module a problem, each with its `field`."""

from ode_nets.problems import images, landscape, linear, pendulum, spheres, three_bodies, van_der_pol

__all__ = ["images", "landscape", "linear", "pendulum", "spheres", "three_bodies", "van_der_pol"]
