"""What a folder has to hold to be used, and what of that is downloaded or missing.

`model_folder.py`, `transcoder_folder.py` and `complete_tree.py` say it of their folders. That goes
for the hub and a disk alike.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Needs(Protocol):
    """What a folder of a model, or of a set of transcoders, has to hold.

    `files` and `missing` raise WeightsError or UnsupportedArchitectureError where the files that
    are `describing` say that the rest isn't served.
    """

    def describing(self, _names: Collection[str], /) -> Collection[str]:
        """The files that say which others are needed, where the hub has these."""
        return ()

    def files(self, names: Collection[str], folder: Path, /) -> list[str]:
        """The files to download, those included that the hub lacks.

        Args:
            names: what the hub has.
            folder: here; it holds those that are `describing`.
        """

    def missing(self, folder: Path) -> list[str]:
        """The needed files that a folder here lacks."""


@dataclass(frozen=True)
class NamedNeeds(Needs):
    """Files that are known by name."""

    names: tuple[str, ...]

    def files(self, _names: Collection[str], _folder: Path, /) -> list[str]:
        return list(self.names)

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.names if not (folder / name).exists()]
