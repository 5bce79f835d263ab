"""Where weights are: a local directory, the image, Runpod's cached models, HF_HOME, or the hub.

The first of them that holds all that is needed is used as it is; only when none does is the hub
asked, and the answer kept in HF_HOME. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loading import WeightsError, config_json, layouts
from loading.references import Reference, snapshot
from loading.transcoder_config import CONFIG, Kind, TranscoderConfig, read_transcoder_config
from settings import Settings

# What is missing from a folder, of that which is needed.
Missing = Callable[[Path], list[str]]
# Downloads files of a folder on the hub, by name, and gives the folder here.
Get = Callable[[list[str]], Path]
# Gets what is needed of the names in a folder on the hub.
Choose = Callable[[list[str], Get], Path]


class Cache(NamedTuple):
    """A directory laid out as Hugging Face's cache."""

    label: str
    path: Path


class Places(NamedTuple):
    """Where weights are looked for, in order; the hub fills the last."""

    caches: tuple[Cache, ...]
    token: str | None


class Found(NamedTuple):
    """A folder that holds all that is needed."""

    folder: Path
    source: str  # "directory", a cache's label or "hub"


@dataclass(frozen=True)
class TranscoderFiles:
    """The files of a set of transcoders, all on the disk."""

    config: TranscoderConfig
    scan: str | list[str]
    folder: Path
    layers: tuple[Path, ...]  # one a layer; () for a cross-layer transcoder of W_enc and W_dec
    source: str

    @property
    def kind(self) -> Kind:
        return self.config.kind


class Weights(NamedTuple):
    """A model's files and its transcoders', all on the disk."""

    model: Path
    transcoders: TranscoderFiles

    @property
    def files(self) -> list[Path]:
        """The tensors, in the order in which they are loaded."""
        layers = self.transcoders.layers or sorted(self.transcoders.folder.glob("*.safetensors"))
        return [*layers, *sorted(self.model.glob("*.safetensors"))]


def places_of(settings: Settings) -> Places:
    """The places that settings name, a directory once."""
    named = (
        Cache("image", Path(settings.image_weights).expanduser()),
        Cache("Runpod's cached models", Path(settings.runpod_model_cache).expanduser()),
        Cache("HF_HOME", settings.hub_cache),
    )
    last = named[-1]
    others = [cache for cache in named[:-1] if cache.path != last.path]
    return Places((*others, last), settings.hub_token())


def locate(model: str, transcoder_set: str, places: Places) -> Weights:
    """The files of a model and its transcoders, downloaded where needed.

    Args:
        model, transcoder_set: directories, or Hugging Face ids (`owner/name[/folder][@revision]`).

    Raises:
        WeightsError: they can't be had; the message says what to do.
    """
    directory = model_directory(model, places)
    files = transcoder_files(transcoder_set, places, config_json.n_layers(directory))
    return Weights(directory, files)


def find(model: str, transcoder_set: str, places: Places) -> Weights | None:
    """As `locate`, where everything is here. Asks no network."""
    found = find_model(model, places)
    if found is None:
        return None
    files = find_transcoders(transcoder_set, places, config_json.n_layers(found.folder))
    return None if files is None else Weights(found.folder, files)


def model_directory(reference: str, places: Places) -> Path:
    """The folder of a model: configuration, tokenizer and safetensors, downloaded where needed.

    Args:
        reference: a directory, or a Hugging Face id (`owner/name[/folder][@revision]`).

    Raises:
        WeightsError: they can't be had; the message says what to do.
    """
    return model(reference, places).folder


def model(reference: str, places: Places) -> Found:
    """As `model_directory`, with where it was found."""
    return _have(reference, places, layouts.missing_from_model, _choose_model(reference))


def find_model(reference: str, places: Places) -> Found | None:
    """Where a model is, if it is all here. Asks no network."""
    return _find_named(reference, places, layouts.missing_from_model)


def transcoder_files(
    reference: str, places: Places, n_layers: int | None = None
) -> TranscoderFiles:
    """The files of a set of transcoders, downloaded where needed.

    Args:
        reference: a directory, or a Hugging Face id (`owner/name[/folder][@revision]`).
        n_layers: of the model they are for; a copy with fewer is taken for an incomplete one.

    Raises:
        WeightsError: they can't be had; the message says what to do.
    """
    missing = _missing_transcoders(n_layers)
    found = _have(reference, places, missing, _choose_transcoders(n_layers))
    return _with_layers(reference, found, lambda listed: _have_listed(listed, places))


def find_transcoders(
    reference: str, places: Places, n_layers: int | None = None
) -> TranscoderFiles | None:
    """Where a set of transcoders is, if it is all here. Asks no network."""
    found = _find_named(reference, places, _missing_transcoders(n_layers))
    if found is None:
        return None
    try:
        return _with_layers(reference, found, lambda listed: _find_listed(listed, places))
    except WeightsError:
        return None


def _choose_model(reference: str) -> Choose:
    def choose(names: list[str], get: Get) -> Path:
        chosen = layouts.model_files(names)
        if not any(name.endswith(".safetensors") for name in chosen):
            raise WeightsError(
                f"{reference} has no {layouts.SINGLE_FILE}: name a repository or a revision with "
                "weights in that format"
            )
        return get(chosen)

    return choose


def _choose_transcoders(n_layers: int | None) -> Choose:
    def choose(names: list[str], get: Get) -> Path:
        config = read_transcoder_config(get([CONFIG]))
        return get([CONFIG, *layouts.transcoder_files(names, config, n_layers)])

    return choose


def _missing_transcoders(n_layers: int | None) -> Missing:
    return lambda folder: layouts.missing_transcoders(folder, n_layers)


def _find_named(reference: str, places: Places, missing: Missing) -> Found | None:
    directory = Path(reference)
    if directory.is_dir():
        return None if missing(directory) else Found(directory, "directory")
    return _find(Reference.parse(reference), places, missing)


def _find(reference: Reference, places: Places, missing: Missing) -> Found | None:
    for cache in places.caches:
        commit = snapshot(cache.path, reference)
        if commit is not None and not missing(commit / reference.path):
            return Found(commit / reference.path, cache.label)
    return None


def _have(reference: str, places: Places, missing: Missing, choose: Choose) -> Found:
    directory = Path(reference)
    if directory.is_dir():
        absent = missing(directory)
        if absent:
            raise WeightsError(
                f"{directory} holds no {absent[0]}: complete it, or name the one that belongs to "
                "the model"
            )
        return Found(directory, "directory")
    parsed = Reference.parse(reference)
    return _find(parsed, places, missing) or _download(parsed, places, missing, choose)


def _download(reference: Reference, places: Places, missing: Missing, choose: Choose) -> Found:
    from loading import hub  # with the hub's client, which takes a second to import

    cache = places.caches[-1].path
    top = f"{reference.path}/" if reference.path else ""
    try:
        listing = hub.listing(reference, places.token)

        def get(names: list[str]) -> Path:
            files = [top + name for name in names]
            return hub.fetch(listing, files, cache, places.token) / reference.path

        folder = choose([n.removeprefix(top) for n in listing.files if n.startswith(top)], get)
    except hub.UnreachableError as error:
        raise hub.UnreachableError(_not_here(reference, places, missing, error)) from error
    absent = missing(folder)
    if absent:
        raise WeightsError(f"{reference} has no {absent[0]} on the hub: name another")
    hub.record(listing, cache)
    return Found(folder, "hub")


def _not_here(reference: Reference, places: Places, missing: Missing, error: WeightsError) -> str:
    """What was found instead, for when the hub can't help."""
    for cache in places.caches:
        commit = snapshot(cache.path, reference)
        if commit is not None:
            absent = ", ".join(missing(commit / reference.path)[:3])
            return f"{reference} is in {cache.path} without {absent}, and {error}"
    looked = ", ".join(str(cache.path) for cache in places.caches)
    return f"{reference} is in none of {looked}, and {error}"


def _with_layers(
    reference: str,
    found: Found,
    locate: Callable[[Sequence[str]], dict[str, Path]],
) -> TranscoderFiles:
    config = read_transcoder_config(found.folder)
    scan = _scan(reference, config)
    if config.listed is not None:
        files = locate([name for name in config.listed if name.startswith("hf://")])
        layers = tuple(
            files.get(name) or found.folder / Path(name).expanduser() for name in config.listed
        )
        absent = [path for path in layers if not path.exists()]
        if absent:
            raise WeightsError(
                f"{found.folder / CONFIG} lists {absent[0]}, which is not there: correct "
                "`transcoders`"
            )
    elif config.kind == "cross_layer_transcoder":
        layers = ()
    else:
        names = [path.name for path in found.folder.iterdir()]
        layers = tuple(
            found.folder / name for name in layouts.transcoder_files(names, config, None)
        )
    return TranscoderFiles(config, scan, found.folder, layers, found.source)


def _scan(reference: str, config: TranscoderConfig) -> str | list[str]:
    """What circuit-tracer's own loader calls the set: a directory's by its configuration."""
    directory = Path(reference)
    if directory.is_dir():
        return config.scan or directory.name
    parsed = Reference.parse(reference)
    named = f"{parsed.repository}//{parsed.path}" if parsed.path else parsed.repository
    return named if parsed.revision == "main" else f"{named}@{parsed.revision}"


def _have_listed(listed: Sequence[str], places: Places) -> dict[str, Path]:
    """Files by their `hf://` address, those of one repository from one snapshot of it."""
    files: dict[str, Path] = {}
    for repository, paths in _by_repository(listed).items():
        names = list(paths.values())
        missing = _missing_of(names)
        found = _find(repository, places, missing) or _download(
            repository, places, missing, _choose_files(names)
        )
        files |= {address: found.folder / path for address, path in paths.items()}
    return files


def _choose_files(files: list[str]) -> Choose:
    return lambda _names, get: get(files)


def _find_listed(listed: Sequence[str], places: Places) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for repository, paths in _by_repository(listed).items():
        found = _find(repository, places, _missing_of(list(paths.values())))
        if found is not None:
            files |= {address: found.folder / path for address, path in paths.items()}
    return files


def _by_repository(listed: Sequence[str]) -> dict[Reference, dict[str, str]]:
    """The paths that addresses name, by address, for each repository at its revision."""
    repositories: dict[Reference, dict[str, str]] = {}
    for address in listed:
        parsed = Reference.parse(address)
        top = Reference(parsed.repository, "", parsed.revision)
        repositories.setdefault(top, {})[address] = parsed.path
    return repositories


def _missing_of(names: Sequence[str]) -> Missing:
    return lambda folder: [name for name in names if not (folder / name).exists()]
