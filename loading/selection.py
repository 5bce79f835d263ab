"""What this process loads, and how: the settings' names resolved to an entry, and its choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from loading.entry import AttributionEngine, Engine, ModelEntry
from loading.registry import DEMO, DEMO_CRM, REGISTRY
from settings import Settings, SettingsError

# What Neuronpedia's server takes of a complete set where only a part of its name is given.
_SAE_DEFAULTS = ("OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B", "8x", "k64")
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
        SettingsError: they name no model, or contradict each other.
    """
    entry = resolve_entry(
        settings.model_id, transcoder_set_of(settings), settings.attribution_engine
    )
    entry = replace(
        entry,
        neuronpedia_id=settings.np_model_id or entry.neuronpedia_id,
        source_set=settings.np_transcoder_source_set or entry.source_set,
        lorsa_source_set=settings.np_lorsa_source_set or entry.lorsa_source_set,
    )
    if entry.attribution_engine is not None:
        check_engine(settings, entry.attribution_engine)
    lazy_encoder, lazy_decoder = settings.lazy_encoder, settings.lazy_decoder
    return Selection(
        entry,
        engine=settings.model_engine or entry.engine,
        lazy_encoder=entry.lazy_encoder if lazy_encoder is None else lazy_encoder,
        lazy_decoder=entry.lazy_decoder if lazy_decoder is None else lazy_decoder,
        dtype_on_gpu=settings.model_dtype or entry.recommended_dtype,
        dtype_on_cpu=settings.model_dtype or "float32",
    )


def transcoder_set_of(settings: Settings) -> str | None:
    """The set that TRANSCODER_SET names, or SAE_REPO, SAE_EXPANSION and SAE_TOPK together.

    Raises:
        SettingsError: both do, and differ.
    """
    given = (settings.sae_repo, settings.sae_expansion, settings.sae_topk)
    if not any(given):
        return settings.transcoder_set
    repository, expansion, top_k = (
        value or default for value, default in zip(given, _SAE_DEFAULTS, strict=True)
    )
    repository, at, revision = repository.partition("@")
    named = f"{repository.rstrip('/')}/{expansion}/{top_k}{at}{revision}"
    if settings.transcoder_set not in (None, named):
        raise SettingsError(
            f"TRANSCODER_SET={settings.transcoder_set!r}, and SAE_REPO, SAE_EXPANSION and SAE_TOPK "
            f"name {named!r}: unset one or the others"
        )
    return named


def check_engine(settings: Settings, of_set: AttributionEngine) -> None:
    """Raise SettingsError unless ATTRIBUTION_ENGINE is unset, or the one that the set is for."""
    wanted = settings.attribution_engine
    if wanted not in (None, of_set):
        raise SettingsError(
            f"ATTRIBUTION_ENGINE={wanted!r}, and the set is for {of_set!r}: unset it, or name "
            "another set in TRANSCODER_SET"
        )
    if of_set == "circuit-tracer":
        return
    if settings.model_engine == "nnsight":
        raise SettingsError(
            "MODEL_ENGINE='nnsight': complete sets run on transformerlens alone; unset it"
        )
    if settings.lazy_encoder:
        raise SettingsError(
            "LAZY_ENCODER=True: complete sets have their encoders in memory; unset it, or see "
            "LAZY_DECODER"
        )


def resolve_entry(
    model_id: str | None,
    transcoder_set: str | None,
    attribution_engine: AttributionEngine | None = None,
) -> ModelEntry:
    """The entry that MODEL_ID and TRANSCODER_SET name; both unset is the demo.

    Args:
        attribution_engine: without a set, the model's first one for this engine is taken.

    Raises:
        SettingsError: transcoders without a model, or a model whose transcoders aren't known.
    """
    wanted = transcoder_set and _TRANSCODER_SHORT_NAMES.get(transcoder_set, transcoder_set)
    if model_id is None and wanted is None:
        return DEMO_CRM if attribution_engine == "lm-saes-crm" else DEMO
    name, at, revision = (model_id or "").partition("@")
    of_model = [
        replace(entry, model=entry.model + at + revision)
        for entry in (DEMO, DEMO_CRM, *REGISTRY)
        if model_id is None or name in {entry.model, entry.neuronpedia_id}
    ]
    for entry in of_model:
        is_default = wanted is None and attribution_engine in (None, entry.attribution_engine)
        if is_default or wanted == (entry.short_name or entry.transcoder_set):
            return entry
    if model_id is None:
        raise SettingsError(
            f"TRANSCODER_SET={wanted!r} without MODEL_ID: name the model it was trained on"
        )
    if wanted is None:
        raise SettingsError(
            f"MODEL_ID={model_id!r} is no model with default transcoders"
            + (f" for ATTRIBUTION_ENGINE={attribution_engine!r}" if attribution_engine else "")
            + ": set TRANSCODER_SET"
        )
    if not of_model:
        return ModelEntry(model_id, wanted, _short_name(model_id), attribution_engine=None)
    return _with_other_set(of_model[0], wanted)


def _with_other_set(known: ModelEntry, transcoder_set: str) -> ModelEntry:
    """An entry for a model that is known, with a set of which nothing is."""
    return ModelEntry(
        known.model,
        transcoder_set,
        known.neuronpedia_id,
        recommended_dtype=known.recommended_dtype,
        engine=known.engine,
        attribution_engine=None,
    )


def _short_name(model_id: str) -> str:
    directory = Path(model_id)
    named = directory.resolve().name if directory.is_dir() else model_id.partition("@")[0]
    return Path(named).name.lower() or "model"
