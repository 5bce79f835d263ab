"""Weights brought from the disk into memory while Python is still importing the libraries.

Imports and the disk don't wait for each other. Files are read from their first byte to their last,
and the system keeps what it read for whoever reads it next. Advice to read (POSIX_FADV_WILLNEED)
would take less CPU time, but covers only what a disk reads ahead by itself, often 128 KB; and after
`sendfile` to nowhere loading took twice the CPU time. Importing this module imports no torch.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

# Bytes read at once. Between two calls the thread waits for its turn among those that import.
_CHUNK = 32 << 20

# Where a container reads how much memory it may have: Linux's control groups, version 2 and 1.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def read_ahead(files: Sequence[Path]) -> threading.Thread:
    """Start a thread that reads files in their order, and return it.

    It ends when all is read, or half of the memory: after more, the system would drop what came
    first before it is used. A file that can't be read is left to whoever loads it, whose error says
    more. Only on Linux is anything read.
    """
    thread = threading.Thread(target=_read, args=(files,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read(files: Sequence[Path]) -> None:
    if sys.platform != "linux":
        return
    started = time.perf_counter()
    left = limit = memory_bytes() // 2
    buffer = memoryview(bytearray(_CHUNK))
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while n_read := file.readinto(buffer[:left]):
                    left -= n_read
        except OSError as error:
            logger.debug("%s is not read ahead: %s", path.name, error)
    seconds = time.perf_counter() - started
    logger.debug("read %.6f MB of weights ahead in %.1f s", (limit - left) / 1e6, seconds)


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
