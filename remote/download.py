"""Download an uploaded graph. The file is in place only once it is what the worker uploaded."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import requests
from urllib3.exceptions import HTTPError

from remote.connection import new_session, send
from remote.errors import NotAllowed, NotTheGraph
from remote.jobs import OnProgress, Progress, ignore_progress
from remote.retries import Patience, TemporaryFailure
from schemas import UploadReceipt

_READ_TIMEOUT_S = 60.0
_PIECE_BYTES = 1024 * 1024
_GZIP_WINDOW_BITS = 31


def download(
    receipt: UploadReceipt,
    url: str,
    path: Path,
    *,
    on_progress: OnProgress = ignore_progress,
    patience: Patience | None = None,
) -> None:
    """Download a graph, check its size and SHA-256, and write it to `path` as plain JSON.

    Size and SHA-256 are of the stored bytes, gzipped ones when `receipt.compressed`.

    Args:
        url: a presigned GET of the object, or a public address.

    Raises:
        NotAllowed: the store refuses the URL.
        NotTheGraph: the object isn't what the receipt describes. `path` is unchanged.
        Unreachable: the store could not be read within the patience.
        WrongTarget: the URL is not valid.
        OSError: `path` can't be written.
    """
    # Without this, stores may decompress the object, and proxies may compress it.
    headers = {"Accept-Encoding": "gzip" if receipt.compressed else "identity"}

    def attempt() -> None:
        with send(
            session,
            "GET",
            url,
            name="the store",
            is_repeatable=True,
            read_timeout_s=_READ_TIMEOUT_S,
            headers=headers,
            stream=True,
        ) as response:
            if response.status_code != 200:
                raise NotAllowed(
                    f"the store answered {response.status_code} to the download: the URL has "
                    "expired, is of another object, or allows no GET; the graph is at "
                    f"{receipt.url}"
                )
            _write(response, receipt, file, on_progress)

    with new_session({}) as session, replacing(path) as file:
        (patience or Patience()).retry(
            attempt,
            "the store",
            on_retry=lambda sentence: on_progress(Progress("download", sentence)),
        )


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` at the end, or is deleted after an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(
    response: requests.Response, receipt: UploadReceipt, file: IO[bytes], on_progress: OnProgress
) -> None:
    file.seek(0)
    file.truncate()
    digest = hashlib.sha256()
    expand = zlib.decompressobj(_GZIP_WINDOW_BITS).decompress if receipt.compressed else bytes
    size = 0
    try:
        for piece in response.raw.stream(_PIECE_BYTES, decode_content=False):
            digest.update(piece)
            size += len(piece)
            if size > receipt.bytes:
                raise NotTheGraph(f"the object is larger than the graph's {receipt.bytes} bytes")
            file.write(expand(piece))
            megabytes = f"{size / 1e6:.1f} of {receipt.bytes / 1e6:.1f} MB"
            on_progress(Progress("download", megabytes, size / receipt.bytes))
    except zlib.error:
        raise NotTheGraph("the object is not gzipped, the graph was") from None
    except HTTPError:
        raise TemporaryFailure(
            f"the download broke off after {size} of {receipt.bytes} bytes"
        ) from None
    if size != receipt.bytes:
        raise NotTheGraph(f"the object has {size} bytes, the graph has {receipt.bytes}")
    if digest.hexdigest() != receipt.sha256:
        raise NotTheGraph(
            f"the object's SHA-256 is {digest.hexdigest()[:16]}..., the graph's is "
            f"{receipt.sha256[:16]}...: something else was stored there, or it was damaged"
        )
