"""Devices and processes: the mesh that a batch is spread over, and what the processes of a run agree on.

Training is data parallel: the state lies on every device, of each batch a device has its share, and
`experiments.training.parallel` says what is reduced over them and when. By default whatever is a mean over the batch is
one over the global batch: loss and gradients, the statistics of batch norm, and the error norm that adaptive steps
follow. So any number of devices takes the same steps and computes the same, but for the order of the sums.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

PyTree = Any


def join(
    coordinator: str | None,
    n_processes: int | None,
    process_id: int | None,
    local_device_ids: tuple[int, ...] | None = None,
    *,
    timeout: int,
) -> None:
    """Join the other processes of a run; call it before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0; on a TPU pod, under Slurm and under Open MPI all three may be `None`.
      n_processes, process_id: how many there are, and which of them this is.
      local_device_ids: devices of its host that this process takes. By default all, but under Slurm and Open MPI
        the one of its rank on the host.
      timeout: seconds without a sign of life after which a process counts as lost. The others then end, wherever
        they wait.
    """
    jax.distributed.initialize(
        coordinator, n_processes, process_id, local_device_ids, heartbeat_timeout_seconds=timeout
    )


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices in a row, over which batches are spread.

    Attributes:
      mesh: one axis, `data`, over the devices of all processes.
    """

    mesh: jax.sharding.Mesh

    @classmethod
    def take(cls, n: int | None = None) -> Devices:
        """The first `n` devices, all of them by default.

        Raises:
          ValueError: if there are not so many, or some process would have none of them.
        """
        devices = jax.devices()[:n]
        if n is not None and len(devices) < n:
            raise ValueError(f"n_devices={n}: expected at most the {len(devices)} that there are")
        if len({device.process_index for device in devices}) < jax.process_count():
            raise ValueError(f"n_devices={n}: expected enough for each of {jax.process_count()} processes to have one")
        return cls(jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,)))

    def __len__(self) -> int:
        return self.mesh.size

    @property
    def everywhere(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def spread(self, axis: int = 0) -> NamedSharding:
        """A share of an axis on every device; its length must be a multiple of their number."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "data"))

    def put(self, tree: PyTree, sharding: NamedSharding) -> PyTree:
        """Host arrays, which every process has in full, as global ones; a process copies its devices' shares alone."""

        def leaf(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(leaf, tree)


def is_first() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Agreement:
    """What any process asks for, heard by all of them after the same step.

    Processes that left the loop or saved at different steps would wait for each other for ever. With one process a
    wish is heard at once; otherwise `LAG` steps later, so that no device waits for a host.
    """

    LAG = 10

    def __init__(self, devices: Devices):
        self._devices = devices
        self._any = jax.jit(lambda asked: asked.max(0), out_shardings=devices.everywhere)
        self.forget()

    def forget(self) -> None:
        """Drop what has been asked and not yet heard."""
        self._waiting: deque[jax.Array] = deque()

    def hear(self, *asked: bool) -> tuple[bool, ...]:
        """Ask after a step, and hear for each question whether any process asked it."""
        if jax.process_count() == 1:
            return asked
        self._waiting.append(self._share(asked))
        if len(self._waiting) <= self.LAG:
            return (False,) * len(asked)
        return tuple(bool(answer) for answer in np.asarray(self._waiting.popleft()))

    def hear_now(self, *asked: bool) -> tuple[bool, ...]:
        """The same, waiting for all processes."""
        if jax.process_count() == 1:
            return asked
        return tuple(bool(answer) for answer in np.asarray(self._share(asked)))

    def _share(self, asked: tuple[bool, ...]) -> jax.Array:
        mine = np.tile(np.asarray(asked), (len(self._devices.mesh.local_devices), 1))
        shape = (len(self._devices), len(asked))
        return self._any(jax.make_array_from_process_local_data(self._devices.spread(), mine, shape))
