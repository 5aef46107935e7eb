"""Flax shells: thin modules around pure fields, weight functions and solves."""

from ode_nets.nn.continuous_net import ContinuousNet, WideContinuousNet
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.nn.resnet import ResNet, as_resnet

__all__ = ["ContinuousNet", "OdeBlock", "ResNet", "WideContinuousNet", "as_resnet"]
