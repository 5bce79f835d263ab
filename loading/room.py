"""Whether a volume has room and can be written, and what to do where not, in words."""

import errno
import shutil
from pathlib import Path

# What the system answers to a write that finds no room.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shortage(what: str, needed: int, directory: Path) -> str | None:
    """A sentence where so many bytes more don't fit into a directory, None where they do.

    Args:
        directory: it may not be there yet.
    """
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed <= free:
        return None
    return (
        f"{what} needs {gigabytes(needed)} more in {directory}, where {gigabytes(free)} are free: "
        f"free {gigabytes(needed - free)}, or set HF_HOME to a larger volume"
    )


def full(directory: Path | None) -> str:
    """That nothing more fits into a directory."""
    return (
        f"the disk of {directory} is full: free some of it or set HF_HOME to a larger volume, and "
        "start again; what is there is kept"
    )


def not_writable(directory: Path | None, why: str | None = None) -> str:
    """That a directory can't be written."""
    reason = f" ({why})" if why else ""
    return f"{directory} can't be written{reason}: set HF_HOME to a directory that can"


def gigabytes(size: int) -> str:
    """Bytes as GB, or as MB where they are few."""
    return f"{size / 1e9:,.1f} GB" if size >= 100_000_000 else f"{size / 1e6:,.1f} MB"
