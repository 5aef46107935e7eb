"""Rooted trees and the order conditions of Runge-Kutta schemes that they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement

Number = Fraction | float
Tree = tuple["Tree", ...]  # the subtrees at the root; the single node is ()


@cache
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with `order` nodes, each once: 1, 1, 2, 4, 9, 20, 48, ... of them."""
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    return tuple(_forests(order - 1, order - 1))


def _forests(nodes: int, largest: int) -> Iterator[Tree]:
    """Multisets of rooted trees with `nodes` nodes in all, none with more than `largest`."""
    if nodes == 0:
        yield ()
        return
    for size in range(min(nodes, largest), 0, -1):
        for count in range(nodes // size, 0, -1):
            for rest in _forests(nodes - size * count, size - 1):
                for chosen in combinations_with_replacement(rooted_trees(size), count):
                    yield chosen + rest


def density(tree: Tree) -> int:
    """gamma(tree): the order condition of a tree reads sum_i b_i Phi_i(tree) = 1/gamma(tree)."""
    return n_nodes(tree) * math.prod(density(child) for child in tree)


def n_nodes(tree: Tree) -> int:
    """How many nodes a tree has, its root among them: the order of the condition that it stands for."""
    return 1 + sum(n_nodes(child) for child in tree)


def formula(tree: Tree) -> str:
    """The left-hand side of a tree's order condition in letters, as `sum_ij b_i c_i a_ij c_j`."""
    letters, used = iter("jklmnopqrstuvwxyz"), ["i"]

    def factors(node: Tree, name: str) -> list[str]:
        leaves = sum(child == () for child in node)
        parts = [f"c_{name}" + (f"^{leaves}" if leaves > 1 else "")] if leaves else []
        for child in node:
            if child != ():
                index = next(letters)
                used.append(index)
                parts += [f"a_{name}{index}", *factors(child, index)]
        return parts

    product = " ".join(["b_i", *factors(tree, "i")])
    return f"sum_{''.join(used)} {product}"


def elementary_weights(a: Sequence[Sequence[Number]], tree: Tree) -> tuple[Number, ...]:
    """Phi_i(tree) = prod over the subtrees s at the root of sum_j a_ij Phi_j(s), one number a stage."""
    inner = [elementary_weights(a, child) for child in tree]
    return tuple(math.prod((dot(row, phi[: len(row)]) for phi in inner), start=Fraction(1)) for row in a)


def dot(weights: Sequence[Number], values: Sequence[Number]) -> Number:
    """sum_i w_i v_i, exact where all of them are."""
    return sum((w * v for w, v in zip(weights, values, strict=True)), Fraction(0))
