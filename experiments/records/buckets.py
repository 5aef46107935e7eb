"""Folders of runs in buckets of Google Cloud Storage: whether one can be reached, and what lies there.

An object is written whole or not at all. There are no folders but in the names of objects, and nothing can be appended
to, renamed at once or locked. gcsfs is imported where a bucket is asked for, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 10
"""How long one answer of a bucket is waited for before a run begins."""
NETWORK = "see to the network, or give a folder of this machine"
DENIED = ("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED", "Invalid Credentials")
CUT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "retry attempts failed")
"""What gcsfs and TensorStore say where a bucket may not be used, and where it does not answer."""
LOGIN = (
    "log in by `gcloud auth application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS, of an "
    "account that may list, read, write and delete there (role Storage Object User)"
)


class BucketError(OSError):
    """What a bucket does not do, and why."""


def path(address: str) -> Path:
    """A path in a bucket: that of etils, which Orbax takes, and which is like one of pathlib without being one."""
    import fsspec
    from etils import epath

    # One way to buckets, whatever else is installed: not TensorFlow's, and no probe for kinds of buckets by gRPC.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # gcsfs logs traces of errors that it raises, which are said in a line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)
    # TensorStore and other processes write there too, which lists that are kept would not know of.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    found: Any = epath.Path(address)
    return found


def reach(folder: Path, to_write: bool = False) -> None:
    """See whether a folder of a bucket can be read, and written, by both that a run uses: gcsfs and TensorStore.

    Raises:
      BucketError: if not, within seconds, with what was tried and what to do.
    """
    who = "gcsfs, which is not there"
    try:
        gcs = _gcs()
        account = getattr(gcs.credentials.credentials, "service_account_email", "the credentials found")
        who = f"gcsfs {f'with {account}' if gcs.credentials.credentials else 'without credentials'}"
        _list(gcs, folder)
        who = "TensorStore, which checkpoints are read and written by"
        _exchange(folder, to_write)
    except Exception as error:
        raise BucketError(f"{folder} cannot be reached by {who}: {_reason(error, folder)}") from error


def _gcs() -> Any:
    import fsspec

    # With the arguments of etils, so that it is the same one.
    return fsspec.filesystem("gcs", finalize_on_close=True)


def _list(gcs: Any, folder: Path) -> None:
    from fsspec.asyn import sync

    # Not found is then the bucket, as a folder without objects is an empty list.
    wanted = {"prefix": "/".join(folder.parts[3:]) + "/", "maxResults": 1}
    sync(gcs.loop, gcs._call, "GET", "b/{}/o", folder.parts[2], **wanted, timeout=SECONDS)


def _exchange(folder: Path, to_write: bool) -> None:
    import tensorstore

    place = {"bucket": folder.parts[2], "path": "/".join(folder.parts[3:]) + "/"}
    spec = {"driver": os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs"), **place}
    spec["context"] = {"gcs_request_retries": {"max_retries": 2}}
    store = tensorstore.KvStore.open(spec).result(timeout=SECONDS)
    store.read("manifest.json").result(timeout=SECONDS)
    if to_write:
        name = f"writable-{uuid.uuid4().hex}"
        store.write(name, b"?").result(timeout=SECONDS)
        store.write(name, None).result(timeout=SECONDS)


def _reason(error: Exception, folder: Path) -> str:
    """What an error comes down to, and what to do."""
    said = (str(error).strip().splitlines() or [""])[-1][:200]
    if isinstance(error, ImportError):
        return "python -m pip install gcsfs, or the extra `gcs` of this package"
    if isinstance(error, FileNotFoundError) or said.startswith("NOT_FOUND"):
        bucket = f"gs://{folder.parts[2]}"
        return f"there is no bucket {bucket}: give one that is there, or `gcloud storage buckets create {bucket}`"
    if isinstance(error, TimeoutError):
        # gcsfs tries again, too, where a login has expired.
        return f"no answer within {SECONDS} s: {NETWORK}; if the network is right, {LOGIN}"
    is_denied = getattr(error, "code", None) == 401 or any(word in str(error) for word in DENIED)
    return f"{said or type(error).__name__}: {LOGIN if is_denied else NETWORK}"


def is_lost(error: BaseException) -> bool:
    """Whether an error, or what it comes from, tells of the way to a bucket and not of what lies there."""
    kind, kinds = type(error), (BucketError, ConnectionError, TimeoutError)
    if kind.__name__ == "HttpError" or kind.__module__.startswith(("aiohttp", "requests", "google.auth")):
        return True
    if isinstance(error, kinds) or any(word in str(error) for word in (*DENIED, *CUT)):
        return True
    return error.__cause__ is not None and is_lost(error.__cause__)


@contextlib.contextmanager
def answering(where: Path) -> Iterator[None]:
    """Within it, an error of gcsfs other than that there is nothing is a `BucketError` that names the place."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[-1][:200]
        raise BucketError(f"{where}: the bucket fails ({type(error).__name__}: {said})") from error


def read(where: Path) -> bytes:
    """What an object holds."""
    with answering(where):
        return bytes(_gcs().cat_file(str(where)))


def write(where: Path, content: bytes) -> None:
    """Write an object whole or not at all."""
    with answering(where):
        _gcs().pipe_file(str(where), content)


def remove_tree(folder: Path) -> None:
    """Delete all objects below a folder."""
    with answering(folder), contextlib.suppress(FileNotFoundError):
        _gcs().rm(str(folder), recursive=True)


def move(source: Path, target: Path) -> None:
    """Copy all objects below a folder, which stay whole where a kill comes in between, and delete them."""
    with answering(source):
        gcs, start = _gcs(), len(str(source).removeprefix("gs://"))
        for name in gcs.find(str(source)):
            gcs.cp_file(name, f"{target}{name[start:]}")
    remove_tree(source)


def holds_files(folder: Path) -> bool:
    """Whether there are objects below a folder."""
    with answering(folder):
        return bool(_gcs().find(str(folder)))
