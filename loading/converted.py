"""Where converted copies of transcoders are: beside the downloads, in `$HF_HOME/converted`.

A copy's directory is called after the set and its commit, with a digest of the files it was made
from, so that it is never taken for that of others. Its `config.yaml` is written last, and says that
all is there. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
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


class Origin(NamedTuple):
    """A file or folder of a repository, by the commit that a cache holds of it."""

    repository: str
    commit: str
    path: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}/{self.path}"


def home(files: TranscoderFiles, storage: Storage) -> Path:
    """Where a set's copy goes, whether it is there or not."""
    return _directory(storage.caches[-1], files)


def at_home(files: TranscoderFiles, storage: Storage) -> TranscoderFiles:
    """A set's copy that has just been made."""
    return _copy(files, home(files, storage), storage.caches[-1].label)


def find(files: TranscoderFiles, storage: Storage) -> TranscoderFiles | None:
    """A set's complete copy, if there is one beside one of the caches.

    Its hooks and scan are taken from the set, not from the copy's own configuration.
    """
    if can_be_lazy(files):
        return None
    needs = TranscoderNeeds(len(files.layers))
    for cache in storage.caches:
        directory = _directory(cache, files)
        if directory.is_dir() and not needs.missing(directory):
            return _copy(files, directory, cache.label)
    return None


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
        source |= {"folder": origin.path} if origin.path else {}
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
    parts = path.parts
    for i in range(len(parts) - 2, 0, -1):
        if parts[i] == "snapshots" and parts[i - 1].startswith("models--"):
            repository = "/".join(parts[i - 1].split("--")[1:])
            return Origin(repository, parts[i + 1], "/".join(parts[i + 2 :]))
    return None


def _copy(files: TranscoderFiles, directory: Path, label: str) -> TranscoderFiles:
    return replace(
        files,
        config=replace(files.config, listed=None),
        folder=directory,
        layers=CIRCUIT_TRACERS_OWN[files.kind].paths(directory, len(files.layers)),
        source=f"{label}, converted",
    )
