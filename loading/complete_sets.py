"""Complete sets: whether a name means one, where its files are, and whether these are a set.

A complete set has a module for every attention and every MLP of a model. Importing this module
imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loading import WeightsError
from loading.complete_config import LorsaConfig, ModuleKind, TranscoderConfig
from loading.complete_files import Module, read_module, weights_in
from loading.complete_tree import (
    KINDS,
    CompleteNeeds,
    holds_part,
    is_usual,
    module_folders,
    parts_in,
    split_directory,
    split_reference,
)
from loading.entry import AttributionEngine, ModelEntry
from loading.inspection import Contents, inspect
from loading.model_folder import ANY_MODEL, ConfigCheck, ModelConfig, read_model_config
from loading.references import Found, Reference, cached
from loading.sources import (
    Storage,
    TranscoderFiles,
    check_needs,
    find_repository,
    model_files,
    transcoder_files,
)
from loading.transcoder_folder import CONFIG


@dataclass(frozen=True)
class CompleteFiles:
    """The folders of a complete set's modules, all on the disk."""

    lorsas: tuple[Path, ...]
    transcoders: tuple[Path, ...] | TranscoderFiles  # or a set of circuit-tracer's, a file a layer
    folder: Path
    source: str
    revisions: tuple[str, ...] = ()  # owner/name[/folder]@commit of each repository

    @property
    def paths(self) -> list[Path]:
        """The files of weights, in the order in which they are loaded."""
        if isinstance(self.transcoders, TranscoderFiles):
            return [*_weights_in(self.lorsas), *self.transcoders.paths]
        return _weights_in((*self.lorsas, *self.transcoders))


class CompleteWeights(NamedTuple):
    """A model's files and those of the modules that replace all its sublayers."""

    model: Path
    transcoders: CompleteFiles
    revisions: tuple[str, ...]


@dataclass(frozen=True)
class CompleteContents:
    """A complete set, as the headers of its files describe it; modules by layer."""

    lorsas: tuple[Module[LorsaConfig], ...]
    transcoders: tuple[Module[TranscoderConfig], ...] | Contents
    d_model: int


def locate_complete(
    entry: ModelEntry, storage: Storage, check: ConfigCheck | None = None
) -> CompleteWeights:
    """The files of an entry's model and complete set, downloaded where needed.

    Args:
        check: as that of `locate`.

    Raises:
        NotHereError: they aren't all on this machine, and the hub isn't to be asked.
        WeightsError: they can't be had; the message says what to do.
    """
    found = model_files(entry.model, storage, check)
    files = complete_files(entry, storage, read_model_config(found.folder))
    revisions = tuple(filter(None, (found.revision, *files.revisions)))
    return CompleteWeights(found.folder, files, revisions)


def engine_of_set(entry: ModelEntry, storage: Storage) -> AttributionEngine:
    """The attribution engine that an entry's set is for, by what the set holds.

    Raises:
        WeightsError: the set's name can't be one, or the hub refuses it.
    """
    return "lm-saes-crm" if _is_complete(entry.transcoder_set, storage) else "circuit-tracer"


def _is_complete(name: str, storage: Storage) -> bool:
    directory = Path(name)
    if (directory / CONFIG).exists():
        return False
    if split_directory(name) is not None or parts_in(directory):
        return True
    if directory.is_dir():
        return False
    split = split_reference(Reference.parse(name))
    return split is not None and _repository_holds(*split, storage)


def _repository_holds(root: Reference, part: str, storage: Storage) -> bool:
    for found in cached(root, storage.caches):
        if (found.folder / part / CONFIG).exists():
            return False
        if any(module_folders(found.folder, part).values()):
            return True
    names: list[str] = []
    if storage.ask_hub:
        from loading import hub  # with the hub's client, which takes a second to import

        with suppress(hub.UnreachableError):  # whoever looks for the files says so
            names = hub.names(root, storage.token)
    return holds_part(names, part) or (is_usual(part) and f"{part}/{CONFIG}" not in names)


def complete_files(
    entry: ModelEntry, storage: Storage, model: ModelConfig = ANY_MODEL
) -> CompleteFiles:
    """The files of an entry's complete set; as `locate_complete`.

    Args:
        model: a copy with fewer layers is taken for an incomplete one.
    """
    if entry.lorsa_set is None:
        found, part = _find(entry.transcoder_set, storage, KINDS, model)
        folders = module_folders(found.folder, part)
        transcoders: tuple[Path, ...] | TranscoderFiles = tuple(folders["transcoder"])
        revisions = [found.revision]
    else:
        found, part = _find(entry.lorsa_set, storage, ("lorsa",), model)
        folders = module_folders(found.folder, part, ("lorsa",))
        transcoders = transcoder_files(entry.transcoder_set, storage, model.n_layers)
        revisions = [found.revision, *transcoders.revisions]
    return CompleteFiles(
        tuple(folders["lorsa"]),
        transcoders,
        found.folder,
        found.source,
        tuple(filter(None, revisions)),
    )


def _find(
    name: str, storage: Storage, kinds: tuple[ModuleKind, ...], model: ModelConfig
) -> tuple[Found, str]:
    """The root that holds a set, and the set's part of it."""
    directory = Path(name)
    local = split_directory(name) or _only_part(directory)
    if local is not None:
        root, part = local
        check_needs(root, CompleteNeeds(part, kinds, model))
        return Found(root, "directory"), part
    split = split_reference(Reference.parse(name))
    if split is None:
        raise WeightsError(
            f"{name!r} names no complete set: use owner/name/<expansion>/<top-k>, such as "
            "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/8x/k64"
        )
    reference, part = split
    found = find_repository(reference, storage, CompleteNeeds(part, kinds, model))
    # Graphs name the set, not the repository's top.
    revision = found.revision.replace("@", f"/{part}@", 1)
    return found._replace(revision=revision), part


def _only_part(directory: Path) -> tuple[Path, str] | None:
    parts = parts_in(directory)
    if len(parts) > 1:
        raise WeightsError(
            f"{directory} holds more than one complete set: put one of {', '.join(parts)} behind it"
        )
    return (directory, parts[0]) if parts else None


def inspect_complete(files: CompleteFiles) -> CompleteContents:
    """Read the configurations and headers of a complete set, and check that they are a set.

    Raises:
        WeightsError: a file can't be read or isn't served, or a layer has no module, or two.
    """
    lorsas = _by_layer(files.lorsas, "lorsa")
    if isinstance(files.transcoders, TranscoderFiles):
        contents = inspect(files.transcoders)
        n_layers, d_model = len(contents.layers), contents.d_model
        transcoders: tuple[Module[TranscoderConfig], ...] | Contents = contents
        modules: tuple[Module[Any], ...] = lorsas
    else:
        transcoders = _by_layer(files.transcoders, "transcoder")
        modules = (*lorsas, *transcoders)
        n_layers, d_model = len(transcoders), modules[0].config.d_model
    if len(lorsas) != n_layers:
        raise WeightsError(
            f"{files.folder} has Lorsas of {len(lorsas)} layers and transcoders of {n_layers}: "
            "complete it"
        )
    for module in modules:
        if module.config.d_model != d_model:
            raise WeightsError(
                f"{module.file} has d_model {module.config.d_model}, and other modules of the set "
                f"have {d_model}: name a set for one model"
            )
    return CompleteContents(lorsas, transcoders, d_model)


def _weights_in(folders: Iterable[Path]) -> list[Path]:
    return [file for folder in folders if (file := weights_in(folder)) is not None]


def _by_layer(folders: Sequence[Path], kind: ModuleKind) -> tuple[Module[Any], ...]:
    modules: dict[int, Module[Any]] = {}
    for folder in folders:
        module = read_module(folder)
        if module.kind != kind:
            raise WeightsError(
                f"{module.file} describes a {module.kind}, and it is among those of the kind "
                f"{kind}: move it"
            )
        if module.layer in modules:
            raise WeightsError(
                f"{modules[module.layer].file} and {module.file} are both the {kind} of layer "
                f"{module.layer}: remove one"
            )
        modules[module.layer] = module
    for layer in range(len(modules)):
        if layer not in modules:
            raise WeightsError(
                f"no {kind} in {folders[0].parent} is that of layer {layer}: every sublayer has "
                "to have its module"
            )
    return tuple(modules[layer] for layer in range(len(modules)))
