"""Flax shells: thin modules around pure fields, weight functions and solves."""

from ode_nets.nn.anodev2 import ANODEV2, anodev2_net, regularization
from ode_nets.nn.augmented import AugmentedNet
from ode_nets.nn.bound import gaussian_kl, gaussian_log_likelihood, importance_bound
from ode_nets.nn.continuous_net import ContinuousNet, WideContinuousNet
from ode_nets.nn.latent_ode import LatentODE, Paths, latent_ode
from ode_nets.nn.linen import LinenUnit
from ode_nets.nn.node18 import NODE18, ResNet18
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.nn.recurrent import Gaussian, GaussianGRU, OdeRnn, RecurrentNet, recur
from ode_nets.nn.resnet import ResNet, as_resnet
from ode_nets.nn.roles import weight_roles

__all__ = [
    "ANODEV2",
    "NODE18",
    "AugmentedNet",
    "ContinuousNet",
    "Gaussian",
    "GaussianGRU",
    "LatentODE",
    "LinenUnit",
    "OdeBlock",
    "OdeRnn",
    "Paths",
    "RecurrentNet",
    "ResNet",
    "ResNet18",
    "WideContinuousNet",
    "anodev2_net",
    "as_resnet",
    "gaussian_kl",
    "gaussian_log_likelihood",
    "importance_bound",
    "latent_ode",
    "recur",
    "regularization",
    "weight_roles",
]
