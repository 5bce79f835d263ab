"""Weights brought from the disk into memory while Python is still importing the libraries.

Imports and disk don't wait for each other: the system is asked to read the files, and keeps them
for whoever reads them next. Importing this module imports no torch.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from loading.safetensors_files import read_header

logger = logging.getLogger(__name__)

# Bytes asked for at once. The system takes its time over each, and reads no more of large ones.
_CHUNK = 8 << 20

# Where a container reads how much memory it may have: Linux's control groups, version 2 and 1.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def read_ahead(files: Sequence[Path], skip: Sequence[str] = ()) -> threading.Thread:
    """Start to have files read, in their order, and return the thread that asks for it.

    It ends by itself: when all is asked for, or half of the memory, beyond which what came
    first would be gone before it is used. A file that can't be read is left to whoever loads
    it, whose error says more. Systems that can't be asked, such as macOS, are not.

    Args:
        skip: how the names of tensors start that nobody will read soon, in safetensors files.
    """
    thread = threading.Thread(
        target=_ask, args=(tuple(files), tuple(skip)), name="read ahead", daemon=True
    )
    thread.start()
    return thread


def _ask(files: tuple[Path, ...], skip: tuple[str, ...]) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    started = time.perf_counter()
    limit = memory_bytes() // 2
    n_bytes = 0
    for path in files:
        try:
            ranges = list(wanted_ranges(path, skip))
            with path.open("rb", buffering=0) as file:
                for begin, end in ranges:
                    for offset in range(begin, end, _CHUNK):
                        size = min(_CHUNK, end - offset, limit - n_bytes)
                        if size <= 0:
                            break
                        # Reading would do as well, with six times the CPU time.
                        os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)
                        n_bytes += size
        except (OSError, ValueError, TypeError, OverflowError) as error:
            logger.debug("%s is not read ahead: %s", path.name, error)
    seconds = time.perf_counter() - started
    logger.debug("asked for %.6f MB of weights ahead in %.1f s", n_bytes / 1e6, seconds)


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


def wanted_ranges(path: Path, skip: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Where in a file (begin, end) what is to be read is: all, but for tensors to be skipped.

    Raises:
        OSError: it can't be read.
        ValueError: it is called `.safetensors` and is none.
    """
    size = path.stat().st_size
    if not skip or path.suffix != ".safetensors":
        yield 0, size
        return
    for name, tensor in read_header(path).items():
        if not name.startswith(skip):
            yield tensor.begin, tensor.end
