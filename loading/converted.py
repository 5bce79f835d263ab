"""Converted copies of transcoders, in `$HF_HOME/converted` beside the downloads.

A copy is in circuit-tracer's own layout, which is the only one that can stay on the disk. Its
directory is called after the set and its commit, with a digest of the files it was made from, so
that it is never taken for a copy of others. Its `config.yaml` is written last: a copy that has one
is complete. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from loading.conversion import VolumeError, one_writer, write
from loading.inspection import Contents, inspect
from loading.references import Cache
from loading.sources import Storage, TranscoderFiles
from loading.transcoder_folder import CONFIG, TranscoderNeeds, layer_files, read_yaml

logger = logging.getLogger(__name__)

# What a start leaves free on the volume that it converts on.
MARGIN = 2_000_000_000
# Version of what a copy holds. Copies of another version are not found.
FORMAT = 1

# Hugging Face's cache: models--owner--name/snapshots/commit/path.
_IN_CACHE = re.compile(r"(?:.*/)?models--([^/]+)/snapshots/([^/]+)/?(.*)")


def prepared(contents: Contents, storage: Storage, *, lazy: bool) -> Contents:
    """What a start reads of a set that can't stay on the disk: the copy where there is one.

    Args:
        lazy: whether encoders or decoders are to stay on the disk. The set is converted then, where
            the volume has room; else it is read whole, and a warning says why.

    Raises:
        WeightsError: a file is damaged.
    """
    copy = find(contents.files, storage)
    if copy is None and lazy:
        try:
            copy = convert(contents, storage, margin=MARGIN)
        except VolumeError as error:
            logger.warning("%s; the transcoders are read whole instead", error)
    if copy is None:
        return contents
    logger.info("transcoders are read from the converted copy in %s", copy.folder)
    return inspect(copy)


def convert(contents: Contents, storage: Storage, *, margin: int = 0) -> TranscoderFiles:
    """A set in circuit-tracer's own layout: itself, a copy that exists, or a new one.

    Args:
        margin: bytes that have to stay free on the volume.

    Raises:
        VolumeError: the volume has too little room, or can't be written.
        WeightsError: a file of the set is damaged.
    """
    files, cache = contents.files, storage.caches[-1]
    if contents.can_be_lazy:
        return files
    copy = find(files, storage)
    if copy is not None:
        return copy
    directory = home(files, cache)
    with one_writer(directory):
        if find(files, storage) is None:
            write(contents, directory, _configuration(files), margin)
    return _copy_in(files, cache)


def find(files: TranscoderFiles, storage: Storage) -> TranscoderFiles | None:
    """A set's complete copy, if there is one beside one of the caches."""
    needs = TranscoderNeeds(len(files.layers))
    for cache in storage.caches:
        directory = home(files, cache)
        if directory.is_dir() and not needs.missing(directory):
            return _copy_in(files, cache)
    return None


def home(files: TranscoderFiles, cache: Cache) -> Path:
    """The directory of a set's copy beside a cache, whether it exists or not.

    It is called `owner--name--folder@commit-digest`, or `name@digest` of a local directory.
    """
    identities = [_identity(path) for path in files.paths]
    identity = json.dumps([FORMAT, files.config.kind, identities])
    digest = hashlib.sha256(identity.encode()).hexdigest()
    if origin := _origin(files.folder):
        repository, commit, path = origin
        names = filter(None, [*repository.split("/"), *path.split("/")])
        name = f"{'--'.join(names)}@{commit[:12]}-{digest[:8]}"
    else:
        name = f"{files.folder.resolve().name}@{digest[:12]}"
    return cache.path.parent / "converted" / name


def _copy_in(files: TranscoderFiles, cache: Cache) -> TranscoderFiles:
    """A set's complete copy beside a cache.

    Its hooks and scan are taken from the set, not from the copy's own configuration.
    """
    directory = home(files, cache)
    return replace(
        files,
        config=replace(files.config, listed=None),
        folder=directory,
        layers=layer_files(directory, files.config.kind, len(files.layers)),
        source=f"{cache.label}, converted",
    )


def _configuration(files: TranscoderFiles) -> str:
    """The copy's `config.yaml`: the set's own, and where it came from."""
    settings = cast(dict[str, Any], read_yaml(files.folder / CONFIG))  # read before as a set's
    settings.pop("transcoders", None)
    source: dict[str, Any] = {"converted": FORMAT}
    if origin := _origin(files.folder):
        named = zip(("repository", "revision", "folder"), origin, strict=True)
        source |= {name: value for name, value in named if value}
    else:
        source["directory"] = str(files.folder.resolve())
    source["files"] = [_address(path) or str(path.resolve()) for path in files.paths]
    return yaml.safe_dump(settings | {"source": source}, sort_keys=False)


def _identity(path: Path) -> str:
    """What identifies a file: its commit, or its path, size and time of change."""
    if address := _address(path):
        return address.lower()  # Runpod writes names in small letters
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _address(path: Path) -> str | None:
    origin = _origin(path)
    return origin and "{}@{}/{}".format(*origin)


def _origin(path: Path) -> tuple[str, str, str] | None:
    """Repository, commit and path in it of a path in Hugging Face's cache; None of any other."""
    match = _IN_CACHE.fullmatch(path.as_posix())
    return match and (match[1].replace("--", "/"), match[2], match[3])
