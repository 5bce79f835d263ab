"""Bytes as they are made -> a file whose size and SHA-256 are known, gzipped or not.

What an upload needs before its first byte is the length of the whole. A small body stays in
memory, a large one goes to a temporary file that has no name and is gone when it is closed.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Self, cast

from isal import isal_zlib

from errors import Internal

MEMORY_LIMIT_BYTES = 16 * 1024 * 1024

# ISA-L's levels end at 3. Level 2 gives the size of zlib's level 3 in a fifth of its time.
_GZIP_LEVEL = 2
_GZIP_WINDOW_BITS = 31
_PIECE_BYTES = 1024 * 1024

JSON = "application/json"
BINARY = "application/octet-stream"
_THRESHOLDS = "ask for less with node_threshold and edge_threshold"


@dataclass(frozen=True)
class Spooled:
    """A body ready to be sent; close it, or use it as a context manager."""

    file: IO[bytes]
    size: int  # bytes
    sha256: str  # of these bytes, hexadecimal: of the gzipped ones when `compressed`
    compressed: bool
    media_type: str = JSON
    file_name: str | None = None  # of a body that is a file to keep

    def chunks(self) -> Iterator[bytes]:
        """Yield the body from its start."""
        self.file.seek(0)
        while piece := self.file.read(_PIECE_BYTES):
            yield piece

    def close(self) -> None:
        """Free the memory or the disk space."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spool(
    chunks: Iterable[bytes],
    *,
    compress: bool,
    check: Callable[[], None] = lambda: None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Spooled:
    """Write the chunks of a JSON document to a spooled file, through gzip when asked.

    The gzip stream carries no time, so equal chunks give equal bytes.

    Args:
        check: called before each chunk; writing ends with what it raises.
        memory_limit_bytes: a larger body goes to the disk.

    Raises:
        Internal: the disk has no room.
    """
    body = _Body(memory_limit_bytes, check, compress=compress)
    with body.closed_on_failure(_THRESHOLDS):
        for chunk in chunks:
            body.write(chunk)
        return body.end()


def spool_saved(
    save: Callable[[IO[bytes]], None],
    *,
    compress: bool = False,
    check: Callable[[], None] = lambda: None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    file_name: str | None = None,
    advice: str = _THRESHOLDS,
) -> Spooled:
    """Do the same with what a library saves, a binary file. No second copy is in memory.

    Args:
        save: writes to the file that it is given, from the beginning to the end.
        check: called before each MB.
        advice: what a caller can do about a file that is too large for the disk.
    """
    body = _Body(memory_limit_bytes, check, compress=compress)
    with body.closed_on_failure(advice):
        sink = _Sink(body.write)
        try:
            save(cast(IO[bytes], sink))
        finally:
            sink.raise_failure()
        return body.end(media_type=BINARY, file_name=file_name)


class _Body:
    """A spooled file that is being written."""

    def __init__(
        self, memory_limit_bytes: int, check: Callable[[], None], *, compress: bool
    ) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=memory_limit_bytes)  # noqa: SIM115
        self._check = check
        self._digest = hashlib.sha256()
        self._size = 0
        self._compressor = (
            isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW_BITS)
            if compress
            else None
        )

    def write(self, chunk: bytes | memoryview) -> None:
        self._check()
        self._store(chunk if self._compressor is None else self._compressor.compress(chunk))

    def _store(self, stored: bytes | memoryview) -> None:
        self._file.write(stored)
        self._digest.update(stored)
        self._size += len(stored)

    def end(self, **described: Any) -> Spooled:
        """The whole of it, ready to be sent."""
        if self._compressor is not None:
            self._store(self._compressor.flush())
        self._file.seek(0)
        is_compressed = self._compressor is not None
        return Spooled(self._file, self._size, self._digest.hexdigest(), is_compressed, **described)

    @contextmanager
    def closed_on_failure(self, advice: str) -> Iterator[None]:
        """Free what was written when an exception comes, and word the disk's."""
        try:
            yield
        except BaseException as error:
            self._file.close()
            if not isinstance(error, OSError):
                raise
            raise Internal(
                f"the worker's disk did not take the graph after {self._size} bytes "
                f"({error.strerror}); {advice}, or give the worker more disk"
            ) from None


class _Sink:
    """A file for a library to write to, which takes everything.

    torch writes from C++, and an exception on its way through that may end the process. So what
    stops the writing is kept, the rest is dropped, and the caller raises it.
    """

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE_BYTES):
            if self.failure is not None:
                break
            try:
                self._write(view[start : start + _PIECE_BYTES])
            except BaseException as error:
                self.failure = error
        return len(view)

    def flush(self) -> None:
        pass

    def raise_failure(self) -> None:
        """Raise what stopped the writing, if anything did.

        It is kept no longer: its traceback leads to torch's writer, which refers back to this file
        where no garbage collector looks, so that nothing of the graph would ever be freed.
        """
        failure, self.failure = self.failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure
