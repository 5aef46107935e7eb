"""SHA-256 digests of arrays and of plain records: what was saved is what is read, or it is said that it is not."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

PyTree = Any


def digest(array: Any) -> str:
    """SHA-256 over dtype, shape and bytes of one array, in hexadecimal digits."""
    array = np.asarray(array)
    found = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return found.hexdigest()


def digests(tree: PyTree) -> dict[str, str]:
    """The digest of every array in a tree, by its path; several at a time, as hashing lets go of Python's lock."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest, [leaf for _, leaf in leaves]), strict=True))


def differing(expected: dict[str, str], tree: PyTree) -> list[str]:
    """Paths of the arrays in a tree that are not those whose digests are expected; expected ones beside are passed."""
    return [path for path, found in digests(tree).items() if expected.get(path) != found]


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record of plain data with its own digest, under `sha256`."""
    return record | {"sha256": _seal(record)}


def unsealed(record: Any) -> dict[str, Any]:
    """A record without its digest.

    Raises:
      ValueError: for a record that is not the one that was sealed.
    """
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, expected a record")
    plain = {key: value for key, value in record.items() if key != "sha256"}
    if record.get("sha256") != _seal(plain):
        raise ValueError("it differs from what its SHA-256 digest was made of")
    return plain


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_digest(path: Path) -> str:
    """Write the digest of a file beside it as <name>.sha256, which `sha256sum --check` reads; the digest."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{found}  {path.name}\n")
    return found
