"""How far a download is, by lines in the log: they go by the files on the disk.

On a terminal the hub's client draws bars besides.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_EVERY_S = 30.0


@contextmanager
def logged(name: str, blobs: Mapping[Path, int]) -> Iterator[None]:
    """Log at the start, at the end and every 30 s of the block how much of some files is here.

    Args:
        name: what is downloaded.
        blobs: bytes of each file when whole; until then `<file>.incomplete` holds what there is.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_log, args=(name, blobs, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _log(name: str, blobs: Mapping[Path, int], ended: threading.Event) -> None:
    total = sum(blobs.values()) / 1e9
    before, started = arrived(blobs), time.monotonic()
    logger.info("downloading %s: %.2f of %.2f GB are here", name, before / 1e9, total)
    has_ended = False
    while not has_ended:
        has_ended = ended.wait(_EVERY_S)
        now, seconds = arrived(blobs), time.monotonic() - started
        logger.info(
            "downloading %s: %.2f of %.2f GB, %.0f MB/s, %s %.1f s",
            name,
            now / 1e9,
            total,
            (now - before) / seconds / 1e6,
            "ended after" if has_ended else "for",
            seconds,
        )


def arrived(blobs: Mapping[Path, int]) -> int:
    """Bytes of these files that are on the disk."""
    return sum(min(size, _bytes_of(blob)) for blob, size in blobs.items())


def _bytes_of(blob: Path) -> int:
    for file in (blob, Path(f"{blob}.incomplete")):
        try:
            status = file.stat()
        except OSError:
            continue
        # A file that was given its length before its contents has fewer blocks than bytes.
        blocks = status.st_blocks * 512
        return min(status.st_size, blocks) if file != blob else status.st_size
    return 0
