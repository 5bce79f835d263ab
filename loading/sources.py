"""Where the files of a model and of its transcoders are: a directory, a cache, or the hub.

A name is a directory, or it is a repository on Hugging Face. A repository is looked for in the
caches on this machine, in their order, and the first one that holds every file needed is used as
it is. Only where none does is the hub asked, and the download kept in the last cache. Importing
this module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from loading import WeightsError
from loading.model_folder import ConfigCheck, ModelNeeds, read_model_config
from loading.needs import NamedNeeds, Needs
from loading.references import Cache, Found, Reference, cached, found_in
from loading.transcoder_folder import (
    CONFIG,
    LayerFiles,
    SetConfig,
    TranscoderNeeds,
    layer_files,
    layers_among,
    read_set_config,
)
from settings import Settings


class NotHereError(WeightsError):
    """No cache on this machine holds every file, and the hub isn't to be asked."""


class Storage(NamedTuple):
    """The caches on this machine, in the order in which they are searched, and the way to the hub.

    Downloads and converted copies are kept in the last cache, or beside it.
    """

    caches: tuple[Cache, ...]
    token: str | None  # Hugging Face's
    ask_hub: bool = True


@dataclass(frozen=True)
class TranscoderFiles:
    """The files of a set of transcoders, all on the disk."""

    config: SetConfig
    scan: str | list[str]
    folder: Path
    layers: LayerFiles  # encoder and decoder, or one for both
    source: str
    revisions: tuple[str, ...] = ()  # owner/name[/folder]@commit of each repository

    @property
    def paths(self) -> list[Path]:
        """The files of all layers, in the order in which they are loaded."""
        return [path for layer in self.layers for path in layer]


class Weights(NamedTuple):
    """A model's files and its transcoders', all on the disk."""

    model: Path
    transcoders: TranscoderFiles
    revisions: tuple[str, ...]  # owner/name[/folder]@commit of each repository they are from


def storage_of(settings: Settings) -> Storage:
    """The caches that settings name, a directory once."""
    caches = (
        Cache("image", Path(settings.image_weights).expanduser()),
        Cache("Runpod's cached models", Path(settings.runpod_model_cache).expanduser()),
    )
    last = Cache("HF_HOME", settings.hub_cache)
    others = [cache for cache in caches if cache.path != last.path]
    return Storage((*others, last), settings.hub_token())


def locate(
    model: str, transcoder_set: str, storage: Storage, check: ConfigCheck | None = None
) -> Weights:
    """The files of a model and its transcoders, downloaded where needed.

    Args:
        model, transcoder_set: directories, or Hugging Face ids (`owner/name[/folder][@revision]`).
        check: raises for a model that isn't served, of which no weights are downloaded then, nor
            transcoders.

    Raises:
        NotHereError: they aren't all on this machine, and the hub isn't to be asked.
        WeightsError: they can't be had; the message says what to do.
    """
    found = model_files(model, storage, check)
    n_layers = read_model_config(found.folder).n_layers
    transcoders = transcoder_files(transcoder_set, storage, n_layers)
    revisions = tuple(filter(None, (found.revision, *transcoders.revisions)))
    return Weights(found.folder, transcoders, revisions)


def model_files(name: str, storage: Storage, check: ConfigCheck | None = None) -> Found:
    """The folder of a model: configuration, tokenizer and safetensors; as `locate`."""
    return _find(name, storage, ModelNeeds(check))


def transcoder_files(name: str, storage: Storage, n_layers: int | None = None) -> TranscoderFiles:
    """The files of a set of transcoders; as `locate`.

    Args:
        n_layers: of the model they are for; a copy with fewer is taken for an incomplete one.
    """
    found = _find(name, storage, TranscoderNeeds(n_layers))
    config = read_set_config(found.folder)
    revisions = [found.revision] if found.revision else []
    if config.listed is None:
        count = layers_among([path.name for path in found.folder.iterdir()], config.kind)
        layers = layer_files(found.folder, config.kind, count)
    else:
        layers, listed_revisions = _listed_files(found.folder, config.listed, storage)
        revisions += listed_revisions
    scan = config.scan or found.folder.name
    if found.revision:  # circuit-tracer's own loader has `//` between a repository and a folder
        reference = Reference.parse(name)
        scan = str(reference).replace(f"{reference.repository}/", f"{reference.repository}//", 1)
    return TranscoderFiles(config, scan, found.folder, layers, found.source, tuple(revisions))


def _find(name: str, storage: Storage, needs: Needs) -> Found:
    directory = Path(name)
    if not directory.is_dir():
        return find_repository(Reference.parse(name), storage, needs)
    check_needs(directory, needs)
    return Found(directory, "directory")


def check_needs(directory: Path, needs: Needs) -> None:
    """Raise WeightsError that names the first file that a directory lacks."""
    missing = needs.missing(directory)
    if missing:
        raise WeightsError(
            f"{directory} holds no {missing[0]}: complete it, or name the one that belongs to "
            "the model"
        )


def find_repository(reference: Reference, storage: Storage, needs: Needs) -> Found:
    """The folder of a repository in the first cache that holds every file needed.

    Raises:
        NotHereError: no cache does, and the hub isn't to be asked.
        WeightsError: the hub hasn't got it, or it can't be downloaded.
    """
    absence = ""
    for found in cached(reference, storage.caches):
        missing = needs.missing(found.folder)
        if not missing:
            return found
        lacks = ", ".join(missing[:3])
        absence = absence or f"{reference} is in {found.folder} without {lacks}"
    if not absence:
        searched = ", ".join(str(cache.path) for cache in storage.caches)
        absence = f"{reference} is in none of {searched}"
    if not storage.ask_hub:
        raise NotHereError(absence)
    from loading import hub  # with the hub's client, which takes a second to import

    try:
        commit = hub.download(reference, needs, storage.caches[-1].path, storage.token)
    except hub.UnreachableError as error:
        raise hub.UnreachableError(f"{absence}, and {error}") from error
    return found_in(commit, "hub", reference)


def _listed_files(
    folder: Path, listed: tuple[str, ...], storage: Storage
) -> tuple[LayerFiles, list[str]]:
    """The one file of each layer that a `config.yaml` lists, and the revisions of repositories.

    Of each repository one commit is taken, which has all files that are listed of it.
    """
    addresses = {name: Reference.parse(name) for name in listed if name.startswith("hf://")}
    names: dict[Reference, list[str]] = {}
    for address in addresses.values():
        names.setdefault(replace(address, path=""), []).append(address.path)
    found = {
        repository: find_repository(repository, storage, NamedNeeds(tuple(paths)))
        for repository, paths in names.items()
    }
    files = []
    for name in listed:
        file = folder / Path(name).expanduser()
        if name in addresses:
            address = addresses[name]
            file = found[replace(address, path="")].folder / address.path
        if not file.exists():
            raise WeightsError(
                f"{folder / CONFIG} lists {file}, which is not there: correct `transcoders`"
            )
        files.append((file,))
    return tuple(files), [repository.revision for repository in found.values()]
