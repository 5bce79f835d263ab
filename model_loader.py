"""Loads the one model that a process serves, and shows and fetches what can be served.

A model is a language model and the transcoders trained on it, wrapped by circuit-tracer as a
`ReplacementModel`. Each is named by a Hugging Face id, a short name or a local directory.

    python model_loader.py list        what can be served, and what of it is here
    python model_loader.py prefetch    download the weights of a model
    python model_loader.py convert     the same, and make its transcoders readable from the disk

Importing this module loads no torch.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import logs
from contract.command_lines import Parser
from loading import WeightsError, converted, inventory
from loading.complete_sets import CompleteWeights, engine_of_set, locate_complete
from loading.entry import ModelEntry
from loading.loaded_model import LoadedModel
from loading.read_ahead import read_ahead
from loading.registry import DEMO, REGISTRY
from loading.selection import Selection, check_engine, select
from loading.sources import Storage, TranscoderFiles, Weights, locate, storage_of
from settings import Settings, SettingsError, read_settings

logger = logging.getLogger(__name__)


class ModelLoadError(Exception):
    """The model or its transcoders can't be loaded; the message says what is missing."""


def load(settings: Settings) -> LoadedModel:
    """Load the model and the transcoders that the settings name. Takes seconds to minutes.

    Raises:
        SettingsError: the settings name no model.
        ModelLoadError: weights are missing, unreadable or not what the engine serves.
    """
    selection = select(settings)
    entry = selection.entry
    settings.export_hub_variables()
    started = time.perf_counter()
    try:
        from loading.build import build
        from loading.model_config import refuse_unserved

        storage = storage_of(settings)
        weights = _located(selection, settings, storage, refuse_unserved)
        logger.info("weights are in %s and %s", weights.model, weights.transcoders.folder)
        loaded = build(selection, weights, storage, settings)
    except WeightsError as error:
        raise ModelLoadError(str(error)) from error
    except SettingsError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{entry.model} with {entry.transcoder_set} can't be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    logger.info(
        "loaded %s with %s (from %s) on %s as %s in %.1f s",
        entry.model,
        entry.transcoder_set,
        ", ".join(loaded.revisions) or "directories",
        loaded.model.cfg.device,
        str(loaded.model.cfg.dtype).removeprefix("torch."),
        time.perf_counter() - started,
    )
    return loaded


def _located(
    selection: Selection,
    settings: Settings,
    storage: Storage,
    check: Callable[..., None] | None = None,
) -> Weights | CompleteWeights:
    """The files of what is selected, of a set of either kind.

    Args:
        check: `refuse_unserved`, which needs torch.
    """
    entry = _with_engine(selection.entry, settings, storage)
    is_complete = entry.attribution_engine == "lm-saes-crm"
    if check is not None:
        check = partial(check, name=entry.model, engine=selection.engine, is_complete=is_complete)
    if is_complete:
        return locate_complete(entry, storage, check)
    return locate(entry.model, entry.transcoder_set, storage, check)


def _with_engine(entry: ModelEntry, settings: Settings, storage: Storage) -> ModelEntry:
    """The entry with its attribution engine: where it isn't known, the set's files tell."""
    if entry.attribution_engine is not None:  # `select` has checked it
        return entry
    engine = engine_of_set(entry, storage)
    check_engine(settings, engine)
    return replace(entry, attribution_engine=engine)


def read_weights_ahead(settings: Settings) -> None:
    """Start to bring the weights into memory that are on this machine, for `load` to find there.

    Transcoders of which `load` leaves tensors on the disk are read last, for the first job. What
    can't be found or read is left for `load`, whose error says why.
    """
    try:
        selection = select(settings)
        storage = storage_of(settings)._replace(ask_hub=False)
        found = _located(selection, settings, storage)
        files = found.transcoders
        copy = converted.find(files, storage) if isinstance(files, TranscoderFiles) else None
    except Exception as error:
        logger.debug("no weights are read ahead: %s", type(error).__name__)
        return
    tensors = sorted(found.model.glob("*.safetensors"))
    paths = [*(copy or files).paths, *tensors]
    if selection.lazy_encoder or selection.lazy_decoder:
        paths.sort(key=lambda file: file.parent != found.model)
    read_ahead(paths)


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


# The settings that name what is fetched.
_NAMES = ("model_id", "transcoder_set", "sae_repo", "sae_expansion", "sae_topk")
_COMMANDS = {
    "list": "what can be served, and what of it is here",
    "prefetch": "download the weights of a model",
    "convert": "the same, and convert transcoders that can't be left on the disk as published",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands `list`, `prefetch` and `convert`; returns the exit status."""
    parser = Parser(description="What can be served, and its weights.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, meaning in _COMMANDS.items():
        subparser = commands.add_parser(command, help=meaning)
        for name in () if command == "list" else _NAMES:
            flags = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            subparser.add_argument(
                *flags, dest=name, metavar="VALUE", help=Settings.model_fields[name].description
            )
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    command = given.pop("command")
    try:
        settings = read_settings(**given)
        logs.set_up(settings.log_level, as_json=False)
        settings.export_hub_variables()
        storage = storage_of(settings)
        if command == "list":
            print(inventory.table((DEMO, *REGISTRY), storage))
            return 0
        entry = _with_engine(select(settings).entry, settings, storage)
        for line in inventory.prefetch(entry, storage, convert=command == "convert"):
            print(line, flush=True)
    except (SettingsError, WeightsError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(*_: object) -> None:
    """End now: Python would wait for the threads that download until their files are complete."""
    print("interrupted; what has arrived is kept", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupt)
    sys.exit(main())
