"""Weights brought from the disk into memory while Python is still importing the libraries.

Imports and disk don't wait for each other: files are read, and the system keeps what it read for
whoever reads it next. Advice to read (POSIX_FADV_WILLNEED) would take less CPU time, but is cut to
what a disk reads ahead by itself, often 128 KB of what is asked for; and after `sendfile` to
nowhere loading took twice the CPU time. Importing this module imports no torch.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

_Ranges = Callable[[Path], Iterable[tuple[int, int]]]

# Bytes read at once. Between two calls the thread waits for its turn among those that import.
_CHUNK = 32 << 20

# Where a container reads how much memory it may have: Linux's control groups, version 2 and 1.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def read_ahead(files: Sequence[Path], later: Sequence[str] = ()) -> threading.Thread:
    """Start to have files read, in their order, and return the thread that does it.

    It ends by itself: when all is read, or half of the memory, beyond which what came
    first would be gone before it is used. A file that can't be read is left to whoever loads
    it, whose error says more. Only Linux can be asked so.

    Args:
        later: how the names of tensors start, in safetensors files, that loading leaves on the
            disk: they come last, for the first job, and only where all files fit.
    """
    thread = threading.Thread(
        target=_read_all, args=(tuple(files), tuple(later)), name="read ahead", daemon=True
    )
    thread.start()
    return thread


def _read_all(files: tuple[Path, ...], later: tuple[str, ...]) -> None:
    if sys.platform != "linux":
        return
    started = time.perf_counter()
    limit = memory_bytes() // 2
    n_bytes = _read(files, lambda path: ranges_in(path, later), limit)
    if later and _size(files) <= limit:
        n_bytes += _read(files, lambda path: ranges_in(path, later, of_those=True), limit)
    seconds = time.perf_counter() - started
    logger.debug("read %.6f MB of weights ahead in %.1f s", n_bytes / 1e6, seconds)


def _read(files: tuple[Path, ...], ranges: _Ranges, limit: int) -> int:
    """Have ranges of files read, up to `limit` bytes, and return how many those were."""
    n_bytes = 0
    buffer = memoryview(bytearray(_CHUNK))
    for path in files:
        try:
            wanted = list(ranges(path))
            with path.open("rb", buffering=0) as file:
                for begin, end in wanted:
                    while begin < end and n_bytes < limit:
                        size = min(_CHUNK, end - begin, limit - n_bytes)
                        n_read = os.preadv(file.fileno(), [buffer[:size]], begin)
                        if not n_read:
                            break
                        begin, n_bytes = begin + n_read, n_bytes + n_read
        except (OSError, ValueError, TypeError, OverflowError) as error:
            logger.debug("%s is not read ahead: %s", path.name, error)
    return n_bytes


def _size(files: tuple[Path, ...]) -> int:
    return sum(path.stat().st_size for path in files if path.is_file())


def memory_bytes(limits: Sequence[Path] = _MEMORY_LIMITS) -> int:
    """The machine's memory, or what a container may have of it; file pages count there too.

    Args:
        limits: files that hold a limit in bytes, or "max", or aren't there.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in limits:
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return min(found)


def ranges_in(
    path: Path, prefixes: tuple[str, ...], *, of_those: bool = False
) -> Iterator[tuple[int, int]]:
    """Where in a file (begin, end) the tensors are whose names have none of the prefixes.

    Args:
        of_those: the tensors whose names have one instead.

    Raises:
        OSError: it can't be read.
        ValueError: it is called `.safetensors` and is none.
    """
    size = path.stat().st_size
    if not prefixes or path.suffix != ".safetensors":
        if not of_those:
            yield 0, size
        return
    try:
        with safe_open(path, framework="np") as checked:
            names = checked.keys()
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    for name in names:
        if name.startswith(prefixes) == of_those:
            begin, end = header[name]["data_offsets"]
            yield start + begin, start + end
