"""How training images come to the devices: all of them on each, a part of them on each, or batch by batch.

The images of a step are the same in all three, given seed and epoch, in the same order on the same devices: so none of
them changes a result, and a run goes on in the middle of an epoch with any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments.training.devices import Devices

Feed = Literal["whole", "spread", "stream"]
"""All images on every device; a part of them on each; or on the host, and batches from there."""
Choice = Literal["auto", "whole", "spread", "stream"]
CHOICES = get_args(Choice)
SHARE = 0.25
"""Of a device's memory, which images may take."""
UNKNOWN = 2 << 30
"""Bytes that images may take on devices that do not say how much memory they have."""
AXIS = "data"


def chosen(choice: Choice, images: Any, devices: Devices) -> Feed:
    """The feed that is asked for; by `auto` the first of them that fits.

    Args:
      images: uint8, anything with a shape.
    """
    if choice != "auto":
        return choice
    limit = (devices.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    room, size = UNKNOWN if limit is None else int(SHARE * limit), int(np.prod(images.shape))
    return "whole" if size <= room else "spread" if size <= room * len(devices) else "stream"


def in_parts(array: np.ndarray, n_devices: int) -> np.ndarray:
    """The array, with its first row again until devices can share it equally."""
    missing = -len(array) % n_devices
    return np.concatenate([array, array[:1].repeat(missing, 0)]) if missing else array


def pick(images: jax.Array, labels: jax.Array, index: jax.Array, feed: Feed, mesh: Mesh | None) -> Any:
    """The images and labels of a batch, spread as `index` is.

    Each device of `spread` looks up what it has of the batch, and one exchange of the batch itself brings every image
    to the device that trains on it.

    Args:
      images, labels: all of them; of `stream` those of the batch, in its order.
      index: of the batch, `[batch]`.
    """
    if feed == "stream":
        return images, labels
    if feed == "whole" or mesh is None or mesh.size == 1:
        return images[index], labels[index]
    parts, everywhere = PartitionSpec(AXIS), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(parts, parts, everywhere), out_specs=parts)
    def of_device(images: jax.Array, labels: jax.Array, index: jax.Array) -> Any:
        local = index - jax.lax.axis_index(AXIS) * len(images)
        own = (local >= 0) & (local < len(images))

        def found(array: jax.Array) -> jax.Array:
            rows = jnp.where(own.reshape(-1, *[1] * (array.ndim - 1)), array[jnp.where(own, local, 0)], 0)
            return jax.lax.psum_scatter(rows, AXIS, tiled=True)

        return found(images), found(labels)

    return of_device(images, labels, index)


class _Batches:
    """The batches of an epoch as a source that grain reads from in any order."""

    def __init__(self, images: Any, labels: Any, order: np.ndarray):
        self._images, self._labels, self._order = images, labels, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: Any) -> tuple[np.ndarray, np.ndarray]:
        index = self._order[int(i)]
        return np.asarray(self._images[index]), np.asarray(self._labels[index])


def stream(
    images: Any, labels: Any, order: np.ndarray, devices: Devices, *, start: int = 0, ahead: int = 16
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches of an epoch from a step on, spread over the devices, read ahead by threads.

    Args:
      images, labels: indexed by an array of numbers, such as NumPy's arrays and those mapped from a file.
      order: images of each batch, `[steps_per_epoch, batch_size]`.
      start: the first batch that is wanted.
      ahead: batches that are kept ready, which bound the memory taken.

    A process reads the images of its own devices alone.
    """
    # It takes a second to import, which runs on small sets need not wait for.
    import grain

    sharding = devices.spread()
    n = order.shape[1]
    held = {index[0].indices(n)[:2] for index in sharding.addressable_devices_indices_map((n,)).values() if index}
    rows = np.concatenate([np.arange(*ends) for ends in sorted(held)])
    source: Any = grain.MapDataset.source(_Batches(images, labels, order[:, rows]))[start:]
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=ahead)
    for batch in source.to_iter_dataset(options):
        yield tuple(jax.make_array_from_process_local_data(sharding, part, (n, *part.shape[1:])) for part in batch)
