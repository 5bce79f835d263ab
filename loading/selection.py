"""What this process loads, and how: the settings' names resolved to an entry, and its choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from loading.entry import Engine, ModelEntry
from loading.registry import DEMO, REGISTRY
from settings import Settings, SettingsError

# circuit-tracer's own short names for transcoder sets.
_TRANSCODER_SHORT_NAMES = {
    "gemma": "mwhanna/gemma-scope-transcoders",
    "llama": "mntss/transcoder-Llama-3.2-1B",
}


@dataclass(frozen=True)
class Selection:
    """A model and its transcoders, and how this process loads them.

    Each choice is the setting's where it is set, else what the entry recommends.
    """

    entry: ModelEntry
    engine: Engine
    lazy_encoder: bool
    lazy_decoder: bool
    dtype_on_gpu: str | None  # None: that of the model's configuration
    dtype_on_cpu: str


@lru_cache(maxsize=1)
def select(settings: Settings) -> Selection:
    """What the settings select, resolved once for all who ask with the same settings.

    Raises:
        SettingsError: they name no model.
    """
    entry = resolve_entry(settings.model_id, settings.transcoder_set)
    lazy_encoder, lazy_decoder = settings.lazy_encoder, settings.lazy_decoder
    return Selection(
        entry,
        engine=settings.model_engine or entry.engine,
        lazy_encoder=entry.lazy_encoder if lazy_encoder is None else lazy_encoder,
        lazy_decoder=entry.lazy_decoder if lazy_decoder is None else lazy_decoder,
        dtype_on_gpu=settings.model_dtype or entry.recommended_dtype,
        dtype_on_cpu=settings.model_dtype or "float32",
    )


def resolve_entry(model_id: str | None, transcoder_set: str | None) -> ModelEntry:
    """The entry that MODEL_ID and TRANSCODER_SET name; both unset is the demo.

    Raises:
        SettingsError: transcoders without a model, or a model whose transcoders aren't known.
    """
    wanted = transcoder_set and _TRANSCODER_SHORT_NAMES.get(transcoder_set, transcoder_set)
    if model_id is None and wanted is None:
        return DEMO
    name, at, revision = (model_id or "").partition("@")
    of_model = [
        replace(entry, model=entry.model + at + revision)
        for entry in (DEMO, *REGISTRY)
        if model_id is None or name in {entry.model, entry.neuronpedia_id}
    ]
    for entry in of_model:
        if wanted in (None, entry.transcoder_set):
            return entry
    if model_id is None:
        raise SettingsError(
            f"TRANSCODER_SET={wanted!r} without MODEL_ID: name the model it was trained on"
        )
    if wanted is None:
        raise SettingsError(
            f"MODEL_ID={model_id!r} is no model with default transcoders: set TRANSCODER_SET"
        )
    if not of_model:
        return ModelEntry(model_id, wanted, neuronpedia_id=_short_name(model_id))
    like = of_model[0]
    return ModelEntry(
        like.model,
        wanted,
        like.neuronpedia_id,
        recommended_dtype=like.recommended_dtype,
        engine=like.engine,
    )


def _short_name(model_id: str) -> str:
    directory = Path(model_id)
    named = directory.resolve().name if directory.is_dir() else model_id.partition("@")[0]
    return Path(named).name.lower() or "model"
