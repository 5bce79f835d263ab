"""How much a volume has room for, in words."""

import shutil
from pathlib import Path


def free_bytes(directory: Path) -> int:
    """What is free on the volume of a directory that may not be there yet."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def gigabytes(size: int) -> str:
    """Bytes as GB, or as MB where they are few."""
    return f"{size / 1e9:,.1f} GB" if size >= 100_000_000 else f"{size / 1e6:,.1f} MB"
