"""What each array among a network's variables is to its weight functions: the one place that knows it by name.

Variables stay plain nested dictionaries, the form that Flax's path-based masks and serialization, Orbax and optax
read without a template: a weight function as a node of the tree would be one leaf to the former, and would hold the
basis a second time, beside the network's description, which alone is exchanged by `net.clone`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax

from ode_nets.weights import BasisExpansion, Evolved

PyTree = Any
Role = Literal["expansion", "w0", "p", "other"]
COEFFICIENTS = "coefficients"
"""Name of what an `OdeBlock` stacks by basis function or by interval, in every collection."""
EVOLVED = "evolved"
"""Name of the parameters of an `OdeBlock` whose kernels evolve: `w0` and `p`."""


def weight_roles(tree: PyTree) -> PyTree:
    """What each array is to the weight functions theta(t) of a network, as a tree of strings like `tree`.

        "expansion"  coefficients of a basis, stacked: `[n_basis, ...]`   (`BasisExpansion`, ContinuousNet eq. 24)
        "w0", "p"    the start of weights that evolve, and parameters of their q      (`Evolved`, ANODEV2 eq. 5)
        "other"      all else: stem, head, step counts

    Args:
      tree: variables, gradients, or an optimizer's state made of trees like them, as dictionaries with the names that
        an `OdeBlock` gives its own, `coefficients` and `evolved` (no other module may use these); or any tree with
        weight functions in it, which are known by their type.

    Returns:
      A tree of the same structure: labels for `optax.multi_transform`, and masks after a comparison.

    Example:
        >>> import optax
        >>> weight_roles({"block1": {"coefficients": jnp.ones(2)}, "head": jnp.ones(3)})
        {'block1': {'coefficients': 'expansion'}, 'head': 'other'}
        >>> decay = lambda params: jax.tree.map(lambda role: role != "p", weight_roles(params))
        >>> optimizer = optax.adamw(1e-3, mask=decay)  # q's parameters do not decay
        >>> rates = {"w0": 0.1, "p": 0.01, "expansion": 0.1, "other": 0.1}
        >>> optimizer = optax.multi_transform({role: optax.sgd(rate) for role, rate in rates.items()}, weight_roles)
    """

    def role(path: tuple[Any, ...], node: Any) -> Any:
        if isinstance(node, BasisExpansion):
            return jax.tree.map(lambda _: "expansion", node)
        if isinstance(node, Evolved):
            parts = {name: jax.tree.map(lambda _, name=name: name, getattr(node, name)) for name in ("w0", "p")}
            return Evolved(**parts, evolution=node.evolution)
        return _named(path)

    return jax.tree_util.tree_map_with_path(role, tree, is_leaf=lambda node: isinstance(node, BasisExpansion | Evolved))


def _named(path: tuple[Any, ...]) -> Role:
    names = [getattr(key, "key", None) for key in path]
    # The states of optax.multi_transform lie under labels that are the user's own.
    names = [name for name, before in zip(names, (None, *path), strict=False) if not _is_labelled(before)]
    if EVOLVED in names:
        # The parameters of a q may have any names of their own.
        part = names[names.index(EVOLVED) + 1 :][:1]
        return "w0" if part == ["w0"] else "p" if part == ["p"] else "other"
    return "expansion" if COEFFICIENTS in names else "other"


def _is_labelled(key: Any) -> bool:
    # A checkpoint restored without a template has dictionaries in place of optax's tuples.
    return "inner_states" in (getattr(key, "name", None), getattr(key, "key", None))
