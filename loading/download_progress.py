"""How far a download is: a bar on a terminal, a log line now and then elsewhere.

It goes by the files on the disk, so it is the same however they come.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LOG_EVERY_S = 30.0


@contextmanager
def shown(name: str, blobs: Mapping[Path, int]) -> Iterator[None]:
    """Show how much of some files has arrived, while the block runs.

    Args:
        name: what is downloaded.
        blobs: bytes of each file when whole; until then `<file>.incomplete` holds what there is.
    """
    ended = threading.Event()
    on_terminal = sys.stderr.isatty()
    show = _bar if on_terminal else _log
    thread = threading.Thread(target=show, args=(name, blobs, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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


def _bar(name: str, blobs: Mapping[Path, int], ended: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=sum(blobs.values()), completed=arrived(blobs))
        while not ended.wait(_POLL_S):
            progress.update(task, completed=arrived(blobs))
        progress.update(task, completed=arrived(blobs))


def _log(name: str, blobs: Mapping[Path, int], ended: threading.Event) -> None:
    total = sum(blobs.values()) / 1e9
    before, started = arrived(blobs), time.monotonic()
    logger.info("downloading %s: %.2f of %.2f GB are here", name, before / 1e9, total)
    while not ended.wait(_LOG_EVERY_S):
        now, seconds = arrived(blobs), time.monotonic() - started
        speed = (now - before) / seconds / 1e6
        logger.info("downloading %s: %.2f of %.2f GB, %.0f MB/s", name, now / 1e9, total, speed)
    logger.info(
        "downloading %s: %.2f of %.2f GB, ended after %.1f s",
        name,
        arrived(blobs) / 1e9,
        total,
        time.monotonic() - started,
    )
