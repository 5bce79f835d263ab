"""Sentences on volumes that have too little room or can't be written, and what to do then."""

import errno
import shutil
from pathlib import Path

# Errors of a write that finds no room.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shortage(what: str, needed: int, directory: Path) -> str | None:
    """What to do where that many bytes more don't fit into a directory; None where they fit.

    Args:
        what: needs the bytes.
        directory: it need not exist yet.
    """
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return None
    return (
        f"{what} needs {gigabytes(needed)} more in {directory}, where {gigabytes(free)} are free: "
        f"free {gigabytes(needed - free)}, or set HF_HOME to a larger volume"
    )


def full(directory: Path) -> str:
    """The sentence for a directory on a full disk."""
    return (
        f"the disk of {directory} is full: free some of it or set HF_HOME to a larger volume, and "
        "start again; what is there is kept"
    )


def not_writable(directory: Path, why: str | None = None) -> str:
    """The sentence for a directory that can't be written."""
    reason = f" ({why})" if why else ""
    return f"{directory} can't be written{reason}: set HF_HOME to a directory that can"


def gigabytes(size: int) -> str:
    """Bytes as GB, or as MB where they are few."""
    return f"{size / 1e9:,.1f} GB" if size >= 100_000_000 else f"{size / 1e6:,.1f} MB"
