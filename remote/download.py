"""Download an uploaded graph. The file is in place only once it is what the worker uploaded."""

import functools
import hashlib
import secrets
import tempfile
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
_PIECE_BYTES = 65_536
# A connection that brings this much before it breaks is only slow; with less, a download might be
# tried for ever.
_FURTHER_BYTES = 1_000_000
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
    transfer = functools.partial(_Transfer, receipt, url, on_progress)
    with replacing(path) as file:
        if not receipt.compressed:
            transfer(file).run(patience or Patience())
            return
        with tempfile.TemporaryFile(dir=path.parent) as stored:
            transfer(stored).run(patience or Patience())
            stored.seek(0)
            _unpack(stored, receipt, file)


class _Transfer:
    """The stored bytes on their way into a file. What has come stays when a connection breaks."""

    def __init__(
        self, receipt: UploadReceipt, url: str, on_progress: OnProgress, file: IO[bytes]
    ) -> None:
        self._receipt = receipt
        self._url = url
        self._on_progress = on_progress
        self._file = file
        self._size = 0
        self._digest = hashlib.sha256()
        self._furthest = 0  # the size at which the patience last began anew

    def run(self, patience: Patience) -> None:
        """Get all of them, and check them."""
        with new_session({}) as session:
            patience.retry(
                lambda: self._attempt(session),
                "the store",
                on_retry=lambda sentence: self._on_progress(Progress("download", sentence)),
            )
        self._check()

    def _attempt(self, session: requests.Session) -> None:
        # Without this, stores may decompress the object, and proxies may compress it.
        headers = {"Accept-Encoding": "gzip" if self._receipt.compressed else "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
        with _get(session, self._url, Limits(self._receipt.bytes), headers=headers) as response:
            if not self._goes_on(response):
                self._begin_again()
                if response.status_code != 200:  # it has no range of the object
                    raise TemporaryFailure("the store did not go on where the download broke off")
            try:
                for piece in response.raw.stream(_PIECE_BYTES, decode_content=False):
                    self._take(piece)
            except HTTPError:
                came_further = self._size >= self._furthest + _FURTHER_BYTES
                if came_further:
                    self._furthest = self._size
                raise TemporaryFailure(
                    f"the download broke off after {self._size} of {self._receipt.bytes} bytes",
                    came_further=came_further,
                ) from None

    def _goes_on(self, response: requests.Response) -> bool:
        """Whether the answer has the bytes after those that have come.

        Raises:
            NotAllowed: the store refuses the URL.
        """
        status = response.status_code
        asked_for_a_range = self._size > 0
        if status != 200 and not (asked_for_a_range and status in {206, 416}):
            raise NotAllowed(
                f"the store answered {status} to the download: the URL has expired, is of another "
                f"object, or allows no GET; the graph is at {self._receipt.url}"
            )
        begins = f"bytes {self._size}-"
        return status == 206 and response.headers.get("Content-Range", "").startswith(begins)

    def _begin_again(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._size, self._digest = 0, hashlib.sha256()

    def _take(self, piece: bytes) -> None:
        self._size += len(piece)
        whole = self._receipt.bytes
        if self._size > whole:
            raise NotTheGraph(f"the object is larger than the graph's {whole} bytes")
        self._digest.update(piece)
        self._file.write(piece)
        megabytes = f"{self._size / 1e6:.1f} of {whole / 1e6:.1f} MB"
        self._on_progress(Progress("download", megabytes, self._size / whole))

    def _check(self) -> None:
        receipt, found = self._receipt, self._digest.hexdigest()
        if self._size != receipt.bytes:
            raise NotTheGraph(f"the object has {self._size} bytes, the graph has {receipt.bytes}")
        if found != receipt.sha256:
            raise NotTheGraph(
                f"the object's SHA-256 is {found[:16]}..., the graph's is "
                f"{receipt.sha256[:16]}...: something else was stored there, or it was damaged"
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
    # The digest stands for a long name, which with the rest would be longer than names may be.
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


def _unpack(stored: IO[bytes], receipt: UploadReceipt, file: IO[bytes]) -> None:
    most = max(receipt.bytes * _LARGEST_RATIO, _SMALL_BYTES)
    try:
        for content in unpacked(iter(lambda: stored.read(_PIECE_BYTES), b""), most=most):
            file.write(content)
    except TooLarge as error:
        raise NotTheGraph(f"the object has {error} when it is unpacked: it is no graph") from None
    except Damaged as error:
        raise NotTheGraph(f"the object can't be unpacked, the graph was gzipped: {error}") from None
