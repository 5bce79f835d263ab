"""Which models there are, where their weights come from, and the one that is loaded.

A model is a language model and the transcoders trained on it, wrapped by circuit-tracer as a
`ReplacementModel`. Each is named by a Hugging Face id, a short name or a local directory.

    python model_loader.py list        what can be served, and what of it is here
    python model_loader.py prefetch    download the weights of a model
    python model_loader.py convert     the same, and make its transcoders readable from the disk

Importing this module loads no torch.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import logs
from graphs.cache import GraphCache
from loading import WeightsError, converted, inventory
from loading.entry import ModelEntry
from loading.read_ahead import read_ahead
from loading.registry import REGISTRY
from loading.sources import find, locate, places_of
from prompting.token_text import TokenText
from settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEMO_DIRECTORY = Path(__file__).parent / "demo"


class ModelLoadError(Exception):
    """The model or its transcoders can't be loaded; the message says what is missing."""


DEMO = ModelEntry(str(DEMO_DIRECTORY / "model"), str(DEMO_DIRECTORY / "transcoders"), "demo")

# circuit-tracer's own short names for transcoder sets.
_TRANSCODER_SHORT_NAMES = {
    "gemma": "mwhanna/gemma-scope-transcoders",
    "llama": "mntss/transcoder-Llama-3.2-1B",
}


@dataclass(frozen=True)
class LoadedModel:
    """The replacement model in memory and what a request is checked against."""

    entry: ModelEntry
    model: Any  # circuit_tracer's replacement model
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]  # tokens that end a generation
    graphs: GraphCache  # finished attributions of this model
    # Held by the one job that uses `model`; the tokenizer may be used without.
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def token_text(self) -> TokenText:
        """How its tokens stand in a text."""
        return TokenText(self.tokenizer)

    @property
    def n_layers(self) -> int:
        return self.model.cfg.n_layers

    @property
    def n_features(self) -> int:
        """Features a layer."""
        return self.model.transcoders.d_transcoder

    @property
    def n_context(self) -> int:
        """Most tokens of prompt and continuation together."""
        return self.model.cfg.n_ctx

    @property
    def d_vocab(self) -> int:
        return self.model.cfg.d_vocab

    @property
    def name(self) -> str:
        return self.model.cfg.model_name

    def answers_to(self, model_id: str) -> bool:
        """Whether a request's `model_id` means this model, by either of its ids."""
        return model_id.lower() in self.entry.model_names


def resolve_entry(model_id: str | None, transcoder_set: str | None) -> ModelEntry:
    """The entry that MODEL_ID and TRANSCODER_SET name; both unset is the demo.

    Raises:
        SettingsError: transcoders without a model, or a model whose transcoders aren't known.
    """
    if transcoder_set is not None:
        transcoder_set = _TRANSCODER_SHORT_NAMES.get(transcoder_set, transcoder_set)
    if model_id is None:
        matching = [e for e in REGISTRY if e.transcoder_set == transcoder_set]
        if transcoder_set is None:
            return DEMO
        if not matching:
            raise SettingsError(
                f"TRANSCODER_SET={transcoder_set!r} without MODEL_ID: name the model it was "
                "trained on"
            )
        return matching[0]
    if model_id == DEMO.neuronpedia_id:
        return DEMO if transcoder_set is None else replace(DEMO, transcoder_set=transcoder_set)
    name, at, revision = model_id.partition("@")
    known = [
        replace(e, model=e.model + at + revision)
        for e in REGISTRY
        if name in {e.model, e.neuronpedia_id}
    ]
    if transcoder_set is None:
        if not known:
            raise SettingsError(
                f"MODEL_ID={model_id!r} is no model with default transcoders: set TRANSCODER_SET"
            )
        return known[0]
    for entry in known:
        if entry.transcoder_set == transcoder_set:
            return entry
    if known:
        like = known[0]
        return ModelEntry(
            like.model, transcoder_set, like.neuronpedia_id, dtype=like.dtype, engine=like.engine
        )
    return ModelEntry(model_id, transcoder_set, neuronpedia_id=_short_name(model_id))


def _short_name(model_id: str) -> str:
    directory = Path(model_id)
    named = directory.resolve().name if directory.is_dir() else model_id.partition("@")[0]
    return Path(named).name.lower() or "model"


def _first(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def entry_for(settings: Settings) -> ModelEntry:
    """The entry that the settings name, loaded as they say where they say how.

    Raises:
        SettingsError: they name no model.
    """
    entry = resolve_entry(settings.model_id, settings.transcoder_set)
    return replace(
        entry,
        dtype=settings.model_dtype or entry.dtype,
        engine=settings.model_engine or entry.engine,
        lazy_encoder=_first(settings.lazy_encoder, entry.lazy_encoder),
        lazy_decoder=_first(settings.lazy_decoder, entry.lazy_decoder),
    )


def load(settings: Settings) -> LoadedModel:
    """Load the model and the transcoders that the settings name. Takes seconds to minutes.

    Raises:
        SettingsError: the settings name no model.
        ModelLoadError: weights are missing, unreadable or not what the engine serves.
    """
    entry = entry_for(settings)
    settings.export_hub_variables()
    started = time.perf_counter()
    try:
        from loading.build import build

        weights = locate(entry.model, entry.transcoder_set, places_of(settings))
        logger.info("weights are in %s and %s", weights.model, weights.transcoders.folder)
        parts = build(entry, weights, settings)
    except WeightsError as error:
        raise ModelLoadError(str(error)) from error
    except Exception as error:
        raise ModelLoadError(
            f"{entry.model} with {entry.transcoder_set} can't be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    logger.info(
        "loaded %s with %s on %s as %s in %.1f s",
        entry.model,
        entry.transcoder_set,
        parts.model.cfg.device,
        str(parts.model.cfg.dtype).removeprefix("torch."),
        time.perf_counter() - started,
    )
    return LoadedModel(entry, *parts, GraphCache(settings.graph_cache_bytes))


def read_weights_ahead(settings: Settings) -> None:
    """Start to bring the weights into memory that are on this machine, for `load` to find there.

    Transcoders of which `load` leaves tensors on the disk are read last, for the first job. What
    can't be found or read is left for `load`, which says why.
    """
    try:
        entry = entry_for(settings)
        places = places_of(settings)
        weights = find(entry.model, entry.transcoder_set, places)
        copy = None if weights is None else converted.find(weights.transcoders, places)
    except Exception as error:
        logger.debug("no weights are read ahead: %s", type(error).__name__)
        return
    if weights is not None:
        files = weights._replace(transcoders=copy or weights.transcoders).files
        if entry.lazy_encoder or entry.lazy_decoder:
            files.sort(key=lambda file: file.parent != weights.model)
        read_ahead(files)


_loaded: LoadedModel | None = None
_loading = threading.Lock()


def get_model(settings: Settings) -> LoadedModel:
    """The process's one model, loaded by the first call; calls meanwhile wait for it."""
    global _loaded
    with _loading:
        if _loaded is None:
            _loaded = load(settings)
            atexit.register(_unload)
        return _loaded


def _unload() -> None:
    """Let go of the model while torch is still there: its `__del__` takes hooks off."""
    global _loaded
    _loaded = None


_WORK = {"prefetch": inventory.prefetch, "convert": inventory.convert}
_MEANINGS = {
    "prefetch": "download the weights of a model",
    "convert": "the same, and convert transcoders that can't be left on the disk as published",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands `list`, `prefetch` and `convert`; returns the exit status."""
    parser = argparse.ArgumentParser(description="What can be served, and its weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what can be served, and what of it is here")
    for work, meaning in _MEANINGS.items():
        working = commands.add_parser(work, help=meaning)
        for name in ("model_id", "transcoder_set"):
            flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            working.add_argument(
                *flags, dest=name, metavar="VALUE", help=Settings.model_fields[name].description
            )
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    command = given.pop("command")
    try:
        settings = read_settings(**given)
        logs.set_up(settings.log_level, as_json=False)
        settings.export_hub_variables()
        places = places_of(settings)
        if command == "list":
            print(inventory.table((DEMO, *REGISTRY), places))
        else:
            for line in _WORK[command](entry_for(settings), places):
                print(line, flush=True)
    except (SettingsError, WeightsError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted; what is there is kept", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # the threads that download would be waited for
    return 0


if __name__ == "__main__":
    sys.exit(main())
