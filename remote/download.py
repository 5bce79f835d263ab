"""An uploaded graph -> a file, in place only once it is known to be what the worker sent."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import requests
from urllib3.exceptions import HTTPError

from remote.connection import (
    CONNECT_TIMEOUT_S,
    PassingTrouble,
    Patience,
    new_session,
    raise_if_passing,
    reason,
    try_again,
)
from remote.errors import NotAllowed, NotTheGraph, Unreachable, WrongTarget
from remote.jobs import OnProgress, Progress
from schemas import UploadReceipt

_READ_TIMEOUT_S = 60.0
_PIECE_BYTES = 1024 * 1024
_GZIP_WINDOW_BITS = 31


def download(
    receipt: UploadReceipt,
    url: str,
    path: Path,
    *,
    on_progress: OnProgress | None = None,
    patience: Patience | None = None,
) -> None:
    """Download a graph, check its size and SHA-256, and write it to `path` as plain JSON.

    Both are of the bytes as they are stored: the gzipped ones when `receipt.compressed`.

    Args:
        url: a presigned GET of the object, or a public address.

    Raises:
        NotAllowed: the store refuses the URL.
        NotTheGraph: what is there is not what the receipt says. `path` is as it was.
        Unreachable: the store could not be read within the patience.
        OSError: `path` can't be written.
    """
    report = on_progress or (lambda _: None)

    def on_trouble(words: str) -> None:
        report(Progress("download", words))

    with new_session({}) as session, replacing(path) as file:
        try_again(
            lambda: _attempt(session, receipt, url, file, report),
            "the store",
            patience or Patience(),
            on_trouble=on_trouble,
        )


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that becomes `path` when all went well, and is gone when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _attempt(
    session: requests.Session,
    receipt: UploadReceipt,
    url: str,
    file: IO[bytes],
    report: OnProgress,
) -> None:
    # Stores decompress, and proxies compress, for those who don't ask for the form that is stored.
    wanted = {"Accept-Encoding": "gzip" if receipt.compressed else "identity"}
    timeout = (CONNECT_TIMEOUT_S, _READ_TIMEOUT_S)
    try:
        response = session.get(url, headers=wanted, stream=True, timeout=timeout)
    except requests.exceptions.SSLError as error:
        raise Unreachable(f"the store: {reason(error)}") from None
    except requests.ConnectionError as error:
        raise PassingTrouble(reason(error)) from None
    except requests.Timeout as error:
        raise PassingTrouble(reason(error)) from None
    except requests.RequestException as error:
        raise WrongTarget(f"the download URL can't be used ({type(error).__name__})") from None
    with response:
        raise_if_passing(response, is_repeatable=True)
        if response.status_code != 200:
            raise NotAllowed(
                f"the store answered {response.status_code} to the download: the URL has expired, "
                f"is of another object, or allows no GET; the graph is at {receipt.url}"
            )
        _write(response, receipt, file, report)


def _write(
    response: requests.Response, receipt: UploadReceipt, file: IO[bytes], report: OnProgress
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
            report(
                Progress(
                    "download",
                    f"{size / 1e6:.1f} of {receipt.bytes / 1e6:.1f} MB",
                    size / receipt.bytes,
                )
            )
    except zlib.error:
        raise NotTheGraph("the object is not gzipped, the graph was") from None
    except HTTPError:
        raise PassingTrouble(
            f"the download broke off after {size} of {receipt.bytes} bytes"
        ) from None
    if size != receipt.bytes:
        raise NotTheGraph(f"the object has {size} bytes, the graph has {receipt.bytes}")
    if digest.hexdigest() != receipt.sha256:
        raise NotTheGraph(
            f"the object's SHA-256 is {digest.hexdigest()[:16]}..., the graph's is "
            f"{receipt.sha256[:16]}...: something else was stored there, or it was damaged"
        )
