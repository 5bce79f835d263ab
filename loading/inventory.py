"""What can be served, what of it is here, and fetching the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from loading import WeightsError, config_json, conversion, converted, sources
from loading.entry import ModelEntry
from loading.footprint import device_bytes, disk_bytes
from loading.inspection import can_be_lazy
from loading.sources import Places, TranscoderFiles

_HEADINGS = ("model", "transcoders", "engine", "dtype", "on the disk", "GPU", "disk", "here")


def prefetch(entry: ModelEntry, places: Places) -> Iterator[str]:
    """Download what an entry needs and isn't here yet; a line for each part, with its place.

    Raises:
        WeightsError: it can't be had; the message says what to do.
    """
    model = sources.model(entry.model, places)
    yield _line(entry.model, model.source, [model.folder])
    layers = config_json.n_layers(model.folder)
    files = sources.transcoder_files(entry.transcoder_set, places, layers)
    yield _line(entry.transcoder_set, files.source, _folders(files))


def convert(entry: ModelEntry, places: Places) -> Iterator[str]:
    """Download what an entry needs, and convert its transcoders; a line for each part.

    Raises:
        WeightsError: it can't be had, or not be kept; the message says what to do.
    """
    yield from prefetch(entry, places)
    files = sources.locate(entry.model, entry.transcoder_set, places).transcoders
    copy = conversion.convert(files, places)
    if copy is files:
        yield f"{entry.transcoder_set}: nothing to convert, its files can be left on the disk"
    else:
        yield _line(entry.transcoder_set, copy.source, [copy.folder])


def table(entries: Iterable[ModelEntry], places: Places) -> str:
    """What can be served, a line each: names, how it is loaded, what it needs, where it is."""
    return _aligned([_HEADINGS, *(_row(entry, places) for entry in entries)])


def _row(entry: ModelEntry, places: Places) -> tuple[str, ...]:
    needs = ("-", "-")
    if entry.shapes is not None:
        device = device_bytes(
            entry.shapes, lazy_encoder=entry.lazy_encoder, lazy_decoder=entry.lazy_decoder
        )
        needs = (f"{device / 1e9:.0f} GB", f"{disk_bytes(entry.shapes) / 1e9:.0f} GB")
    dtype = entry.dtype or "its own"
    names = (entry.label, entry.transcoder_label)
    lazy = {"encoders": entry.lazy_encoder, "decoders": entry.lazy_decoder}
    left = ", ".join(part for part, is_lazy in lazy.items() if is_lazy) or "-"
    return (*names, entry.engine, dtype, left, *needs, _whereabouts(entry, places))


def _whereabouts(entry: ModelEntry, places: Places) -> str:
    try:
        model = sources.find_model(entry.model, places)
        layers = config_json.n_layers(model.folder) if model else None
        files = sources.find_transcoders(entry.transcoder_set, places, layers)
    except WeightsError as error:
        return str(error)
    suffix = "" if files is None else _conversion(entry, files, places)
    if model and files and model.source == files.source:
        return model.source + suffix
    here = {"model": model, "transcoders": files}
    found = ", ".join(f"{part}: {place.source}" for part, place in here.items() if place)
    return found + suffix or "no"


def _conversion(entry: ModelEntry, files: TranscoderFiles, places: Places) -> str:
    """What the table adds for a set that circuit-tracer can't leave on the disk as it is."""
    try:
        if converted.find(files, places) is not None:
            return ", converted"
        lazy = entry.lazy_encoder or entry.lazy_decoder
        return ", not yet converted" if lazy and not can_be_lazy(files) else ""
    except WeightsError:
        return ""  # a damaged file; whoever loads it is told


def _folders(files: TranscoderFiles) -> list[Path]:
    """The folders that hold a set: that of its configuration, and those of files it lists."""
    if files.config.listed is None:
        return [files.folder]
    return [files.folder, *files.layers]


def _line(name: str, source: str, paths: Sequence[Path]) -> str:
    files = [f for path in paths for f in (path.iterdir() if path.is_dir() else [path])]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return f"{name}: {size / 1e9:.2f} GB in {paths[0]} ({source})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
