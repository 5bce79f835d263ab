"""What can be served, what of it is on this machine, and fetching and converting the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from loading import WeightsError, converted, sources
from loading.complete_sets import CompleteFiles, complete_files, inspect_complete
from loading.entry import ModelEntry
from loading.footprint import device_bytes, disk_bytes
from loading.inspection import inspect
from loading.model_folder import ANY_MODEL, ModelConfig, read_model_config
from loading.sources import NotHereError, Storage, TranscoderFiles

_HEADINGS = ("model", "transcoders", "engine", "dtype", "on the disk", "GPU", "disk", "here")


def prefetch(entry: ModelEntry, storage: Storage, *, convert: bool = False) -> Iterator[str]:
    """Download what an entry needs and isn't here yet; a line for each part says where it is.

    Args:
        entry: one whose attribution engine is known.
        convert: also convert transcoders that can't be left on the disk as published.

    Raises:
        WeightsError: it can't be had or kept; the message says what to do.
    """
    model = sources.model_files(entry.model, storage)
    yield _line(entry.model, model.source, [model.folder])
    files = _set_files(entry, storage, read_model_config(model.folder))
    if isinstance(files, CompleteFiles):
        inspect_complete(files)
        yield _line(entry.transcoder_label, files.source, [files.folder, *files.paths])
        if convert:
            yield f"{entry.transcoder_label}: nothing to convert, its decoders can be left there"
        return
    listed = [] if files.config.listed is None else files.paths
    yield _line(entry.transcoder_set, files.source, [files.folder, *listed])
    if not convert:
        return
    copy = converted.convert(inspect(files), storage)
    if copy is files:
        yield f"{entry.transcoder_set}: nothing to convert, its files can be left on the disk"
    else:
        yield _line(entry.transcoder_set, copy.source, [copy.folder])


def table(entries: Iterable[ModelEntry], storage: Storage) -> str:
    """What can be served, a line each: names, how it is loaded, what it needs, where it is."""
    here = storage._replace(ask_hub=False)
    rows = [_HEADINGS, *(_row(entry, here) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(entry: ModelEntry, storage: Storage) -> tuple[str, ...]:
    needs = ("-", "-")
    if entry.shapes is not None:
        device = device_bytes(
            entry.shapes, lazy_encoder=entry.lazy_encoder, lazy_decoder=entry.lazy_decoder
        )
        needs = (f"{device / 1e9:.0f} GB", f"{disk_bytes(entry.shapes) / 1e9:.0f} GB")
    dtype = entry.recommended_dtype or "its own"
    names = (entry.label, entry.transcoder_label)
    lazy = {"encoders": entry.lazy_encoder, "decoders": entry.lazy_decoder}
    left = ", ".join(part for part, is_lazy in lazy.items() if is_lazy) or "-"
    return (*names, entry.engine, dtype, left, *needs, _whereabouts(entry, storage))


def _whereabouts(entry: ModelEntry, storage: Storage) -> str:
    model, config = None, ANY_MODEL
    files: TranscoderFiles | CompleteFiles | None = None
    try:
        with suppress(NotHereError):
            model = sources.model_files(entry.model, storage)
            config = read_model_config(model.folder)
        with suppress(NotHereError):
            files = _set_files(entry, storage, config)
    except WeightsError as error:
        return str(error)
    suffix = _conversion(entry, files, storage) if isinstance(files, TranscoderFiles) else ""
    if model and files and model.source == files.source:
        return model.source + suffix
    parts = {"model": model, "transcoders": files}
    found = ", ".join(f"{part}: {files.source}" for part, files in parts.items() if files)
    return found + suffix or "no"


def _set_files(
    entry: ModelEntry, storage: Storage, model: ModelConfig
) -> TranscoderFiles | CompleteFiles:
    if entry.attribution_engine == "lm-saes-crm":
        return complete_files(entry, storage, model)
    return sources.transcoder_files(entry.transcoder_set, storage, model.n_layers)


def _conversion(entry: ModelEntry, files: TranscoderFiles, storage: Storage) -> str:
    """What the table adds for a set that circuit-tracer can't leave on the disk as it is."""
    try:
        if converted.find(files, storage) is not None:
            return ", converted"
        lazy = entry.lazy_encoder or entry.lazy_decoder
        return ", not yet converted" if lazy and not inspect(files).can_be_lazy else ""
    except WeightsError:
        return ""  # a damaged file; the error comes when it is loaded


def _line(name: str, source: str, paths: Sequence[Path]) -> str:
    files = [f for path in paths for f in (path.iterdir() if path.is_dir() else [path])]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return f"{name}: {size / 1e9:.2f} GB in {paths[0]} ({source})"
