"""Converted copies of transcoders, in `$HF_HOME/converted` beside the downloads.

A copy's directory is called after the set and its commit, with a digest of the files it was made
from, so that it is never taken for a copy of others. Its `config.yaml` is written last: a copy that
has one is complete. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loading.inspection import can_be_lazy
from loading.layouts import TranscoderNeeds
from loading.references import Cache
from loading.sources import Storage, TranscoderFiles
from loading.tensor_layouts import CIRCUIT_TRACERS_OWN
from loading.transcoder_config import CONFIG

# Version of what a copy holds. Copies of another version are not found.
FORMAT = 1

# Hugging Face's cache: models--owner--name/snapshots/commit/path.
_IN_CACHE = re.compile(r"(?:.*/)?models--([^/]+)/snapshots/([^/]+)/?(.*)")


class Origin(NamedTuple):
    """A file or folder of a repository, by the commit that a cache holds of it."""

    repository: str
    commit: str
    path: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}/{self.path}"


def home(files: TranscoderFiles, storage: Storage) -> Path:
    """The directory of a set's copy, whether it exists or not."""
    return _directory(storage.caches[-1], files)


def find(files: TranscoderFiles, storage: Storage) -> TranscoderFiles | None:
    """A set's complete copy, if there is one beside one of the caches."""
    if can_be_lazy(files):
        return None
    needs = TranscoderNeeds(len(files.layers))
    for cache in storage.caches:
        directory = _directory(cache, files)
        if directory.is_dir() and not needs.missing(directory):
            return copy_in(files, cache)
    return None


def copy_in(files: TranscoderFiles, cache: Cache) -> TranscoderFiles:
    """A set's complete copy beside a cache.

    Its hooks and scan are taken from the set, not from the copy's own configuration.
    """
    directory = _directory(cache, files)
    return replace(
        files,
        config=replace(files.config, listed=None),
        folder=directory,
        layers=CIRCUIT_TRACERS_OWN[files.kind].paths(directory, len(files.layers)),
        source=f"{cache.label}, converted",
    )


def configuration(files: TranscoderFiles) -> str:
    """The copy's `config.yaml`: the set's own, and where it came from."""
    settings: dict[str, Any] = yaml.safe_load((files.folder / CONFIG).read_text())
    settings.pop("transcoders", None)
    source: dict[str, Any] = {"converted": FORMAT}
    origin = _origin(files.folder)
    if origin is None:
        source["directory"] = str(files.folder.resolve())
    else:
        source |= {"repository": origin.repository, "revision": origin.commit}
        if origin.path:
            source["folder"] = origin.path
    source["files"] = [str(_origin(path) or path.resolve()) for path in files.paths]
    return yaml.safe_dump(settings | {"source": source}, sort_keys=False)


def _directory(cache: Cache, files: TranscoderFiles) -> Path:
    return cache.path.parent / "converted" / _name(files)


def _name(files: TranscoderFiles) -> str:
    """`owner--name--folder@commit-digest`, or `name@digest` of a local directory."""
    identities = [_identity(path) for path in files.paths]
    digest = hashlib.sha256(json.dumps([FORMAT, files.kind, identities]).encode()).hexdigest()
    origin = _origin(files.folder)
    if origin is None:
        return f"{files.folder.resolve().name}@{digest[:12]}"
    names = [*origin.repository.split("/"), *origin.path.split("/")]
    return f"{'--'.join(filter(None, names))}@{origin.commit[:12]}-{digest[:8]}"


def _identity(path: Path) -> str:
    """What identifies a file: its commit, or its path, size and time of change."""
    origin = _origin(path)
    if origin is not None:
        return str(origin).lower()  # Runpod writes names in small letters
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _origin(path: Path) -> Origin | None:
    """The repository of a path in Hugging Face's cache; None of any other path."""
    match = _IN_CACHE.fullmatch(path.as_posix())
    return match and Origin(match[1].replace("--", "/"), match[2], match[3])
