"""Download an uploaded graph. The file is in place only once it is what the worker uploaded."""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

from remote.connection import send
from remote.errors import NotAllowed, NotTheGraph, WrongTarget
from remote.jobs import OnProgress, Progress, ignore_progress
from remote.retries import Patience, TemporaryFailure
from remote.unpacking import Damaged, TooLarge, unpacked
from remote.wire import Limits, new_session
from schemas import UploadReceipt

_READ_TIMEOUT_S = 60.0
_PIECE_BYTES = 1024 * 1024
# A graph's JSON packs to a tenth. What becomes a hundred times as large is made to fill a disk.
_LARGEST_RATIO = 100
_SMALL_BYTES = 1_000_000
_MOST_REDIRECTS = 5
_LONGEST_NAME = 200  # bytes of a file's name that fit into its part's


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
        with _get(session, url, Limits(receipt.bytes), headers=headers) as response:
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


def _get(session: requests.Session, url: str, limits: Limits, **options: Any) -> requests.Response:
    """Get what is at a URL, or where the store sends from there. No key is sent along."""
    for _ in range(_MOST_REDIRECTS + 1):
        response = send(
            session,
            "GET",
            url,
            name="the store",
            is_repeatable=True,
            read_timeout_s=_READ_TIMEOUT_S,
            limits=limits,
            **options,
        )
        if not response.is_redirect:
            return response
        response.close()
        try:
            location = urljoin(url, response.headers["Location"])
            schemes = urlsplit(url).scheme, urlsplit(location).scheme
        except ValueError:
            raise WrongTarget("the store: it redirects to what is no URL") from None
        if schemes == ("https", "http"):
            raise WrongTarget("the store: it redirects from https to a place without it")
        url = location
    raise WrongTarget(f"the store: more than {_MOST_REDIRECTS} redirects")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `path` at the end, or is deleted after an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(_part_name(path.name))
    try:
        with _naming(path):
            file = part.open("wb")
        with file:
            yield file
        with _naming(path):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _part_name(name: str) -> str:
    # Of a long name the digest, since the longest that a file may have leaves no room.
    if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        name = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    # Two clients may write one file: on two machines with the same process id too.
    return f".{name}.{secrets.token_hex(8)}.part"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors name the file that was wanted, and not the part that nobody knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write(
    response: requests.Response, receipt: UploadReceipt, file: IO[bytes], on_progress: OnProgress
) -> None:
    file.seek(0)
    file.truncate()
    digest = hashlib.sha256()
    size = 0

    def stored() -> Iterator[bytes]:
        nonlocal size
        for piece in response.raw.stream(_PIECE_BYTES, decode_content=False):
            digest.update(piece)
            size += len(piece)
            if size > receipt.bytes:
                raise NotTheGraph(f"the object is larger than the graph's {receipt.bytes} bytes")
            yield piece
            megabytes = f"{size / 1e6:.1f} of {receipt.bytes / 1e6:.1f} MB"
            on_progress(Progress("download", megabytes, size / receipt.bytes))

    most = max(receipt.bytes * _LARGEST_RATIO, _SMALL_BYTES)
    try:
        for content in unpacked(stored(), most=most) if receipt.compressed else stored():
            file.write(content)
    except TooLarge as error:
        raise NotTheGraph(f"the object has {error} when it is unpacked: it is no graph") from None
    except Damaged as error:
        raise NotTheGraph(f"the object can't be unpacked, the graph was gzipped: {error}") from None
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
