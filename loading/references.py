"""The names of weights on Hugging Face, and the caches on this machine that may hold them.

A repository's cache folder is `models--owner--name/`: `refs/<revision>` holds a commit's name,
`snapshots/<commit>/` its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from loading import WeightsError

_REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """A repository, a folder or file in it, and a branch, tag or commit."""

    repository: str  # "owner/name", or "name" for the oldest ones
    path: str = ""  # "" is the top
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `owner/name[/path][@revision]` or `hf://owner/name[@revision]/path[?revision=…]`.

        Raises:
            WeightsError: it is neither.
        """
        agrees = True
        if text.startswith("hf://"):
            address = urlsplit(text)
            asked = parse_qs(address.query).get("revision", [""])[0]
            parts = [address.netloc, *unquote(address.path).strip("/").split("/")]
            # Hugging Face's own addresses have it behind the name, circuit-tracer's at the end.
            parts[1], _, revision = parts[1].partition("@")
            agrees = not asked or revision in ("", asked)
            revision = revision or asked
        else:
            named, _, revision = text.partition("@")
            parts = named.split("/")
        repository, path = "/".join(parts[:2]), "/".join(parts[2:])
        safe = ".." not in [*parts, *revision.split("/")] and not revision.startswith("/")
        if not _REPOSITORY.fullmatch(repository) or not safe or not agrees:
            raise WeightsError(
                f"{text!r} is no directory here and no Hugging Face id: use an existing directory "
                "or owner/name[/folder][@revision]"
            )
        return cls(repository, path, revision or "main")

    def __str__(self) -> str:
        named = f"{self.repository}/{self.path}" if self.path else self.repository
        return named if self.revision == "main" else f"{named}@{self.revision}"


class Cache(NamedTuple):
    """A directory laid out as Hugging Face's cache."""

    label: str
    path: Path


class Found(NamedTuple):
    """A folder of a model or of a set of transcoders."""

    folder: Path
    source: str  # "directory", a cache's label or "hub"
    revision: str = ""  # owner/name[/folder]@commit; "" of a directory


def found_in(commit: Path, source: str, reference: Reference) -> Found:
    """What a reference names in the folder that a cache has of a commit."""
    return Found(commit / reference.path, source, str(replace(reference, revision=commit.name)))


def cached(reference: Reference, caches: Sequence[Cache]) -> Iterator[Found]:
    """What each cache holds of a reference, complete or not, in the caches' order."""
    for cache in caches:
        repository = repository_folder(cache.path, reference.repository)
        commit = _commit(repository, reference.revision)
        if commit is not None and (repository / "snapshots" / commit).is_dir():
            yield found_in(repository / "snapshots" / commit, cache.label, reference)


def download_folder(cache: Path, repository: str) -> Path:
    """Where the hub's client keeps a repository in a cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def repository_folder(cache: Path, repository: str) -> Path:
    """Where a cache keeps a repository, whether it is there or not."""
    folder = download_folder(cache, repository)
    if not folder.is_dir() and cache.is_dir():
        # Runpod writes names in small letters; on the hub they differ by more than that.
        same = [p for p in cache.iterdir() if p.name.lower() == folder.name.lower()]
        return same[0] if same else folder
    return folder


def _commit(folder: Path, revision: str) -> str | None:
    reference = folder / "refs" / revision
    if reference.is_file() and (commit := reference.read_text().strip()):
        return commit  # an empty one is what a full disk leaves
    if _COMMIT.fullmatch(revision):
        return revision
    snapshots = folder / "snapshots"
    if revision != "main" or not snapshots.is_dir():
        return None
    # A cache that was copied without `refs` usually has one snapshot.
    newest = max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.name
