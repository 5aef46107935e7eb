"""ANODEV2 Table 3: parameters of the twelve networks, ours beside the paper's.

    python -m experiments.anodev2.parameters

Baselines are exact. What the further batch norms of a block and tau, v and rho add cannot be recovered from the
paper; ours is one batch norm a step of the state and four numbers an output channel of an evolving kernel.
Seconds; nothing is computed but shapes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.configs import anodev2 as cells
from experiments.records.tables import show
from experiments.training import models
from ode_nets.remanifest import n_parameters


def counts() -> dict[str, dict[str, int]]:
    """Parameters by network and form."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def count(network: str, form: str) -> int:
        net = models.build(cells.cell(network, form), 10)
        return n_parameters(jax.eval_shape(net.init, jax.random.key(0), images))

    return {network: {form: count(network, form) for form in cells.FORMS} for network in cells.NETWORKS}


def main() -> None:
    """Print the table."""
    table = Table(title="parameters, ours / the paper's in thousands (difference)", title_justify="left")
    table.add_column("")
    for network in cells.NETWORKS:
        table.add_column(network, justify="right")
    found = counts()
    for form in cells.FORMS:
        line = []
        for network in cells.NETWORKS:
            ours, paper = found[network][form], cells.PARAMETERS[network][form]
            line.append(f"{ours:,} / {paper:.2f}K ({ours / 10 / paper - 100:+.2f} %)")
        table.add_row(form.replace("_", " "), *line)
    show(table, Console(highlight=False))


if __name__ == "__main__":
    main()
