"""Flax shells: thin modules around pure fields, weight functions and solves."""

from ode_nets.nn.anodev2 import ANODEV2, anodev2_net, regularization
from ode_nets.nn.continuous_net import ContinuousNet, WideContinuousNet
from ode_nets.nn.linen import LinenUnit
from ode_nets.nn.node18 import NODE18, ResNet18
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.nn.resnet import ResNet, as_resnet
from ode_nets.nn.roles import weight_roles

__all__ = [
    "ANODEV2",
    "NODE18",
    "ContinuousNet",
    "LinenUnit",
    "OdeBlock",
    "ResNet",
    "ResNet18",
    "WideContinuousNet",
    "anodev2_net",
    "as_resnet",
    "regularization",
    "weight_roles",
]
