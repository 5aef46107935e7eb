"""Bridges to other libraries, each imported by its own name: `import ode_nets.interop.diffrax`."""
