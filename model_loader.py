"""Which models there are, where their weights come from, and the one that is loaded.

A model is a language model and the transcoders trained on it, wrapped by circuit-tracer as a
`ReplacementModel`. Each is named by a Hugging Face id, a short name or a local directory.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_cache import GraphCache
from settings import Settings, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEMO_DIRECTORY = Path(__file__).parent / "demo"


class ModelLoadError(Exception):
    """The model or its transcoders can't be loaded; the message says what is missing."""


@dataclass(frozen=True)
class ModelEntry:
    """A model and its transcoders, by name.

    `model` and `transcoder_set` are Hugging Face ids or directories; `neuronpedia_id` is what
    graphs carry as `scan`, `source_set` the name of the transcoders on Neuronpedia where known.
    """

    model: str
    transcoder_set: str
    neuronpedia_id: str
    source_set: str | None = None

    @property
    def label(self) -> str:
        """The model's name for callers, who have no use for a path of this machine."""
        return self.neuronpedia_id if Path(self.model).is_dir() else self.model

    @property
    def transcoder_label(self) -> str:
        """The transcoders' name for callers."""
        directory = Path(self.transcoder_set)
        return "/".join(directory.parts[-2:]) if directory.is_dir() else self.transcoder_set

    @property
    def source_urls(self) -> tuple[str, ...]:
        """Where a reader finds the features' pages and the transcoders' weights."""
        urls = []
        if self.source_set is not None:
            urls.append(f"https://neuronpedia.org/{self.neuronpedia_id}/{self.source_set}")
        if not Path(self.transcoder_set).is_dir():
            urls.append(f"https://huggingface.co/{'/'.join(self.transcoder_set.split('/')[:2])}")
        return tuple(urls)


DEMO = ModelEntry(str(DEMO_DIRECTORY / "model"), str(DEMO_DIRECTORY / "transcoders"), "demo")

# The first entry of a model holds its default transcoders.
REGISTRY = (
    ModelEntry(
        "google/gemma-2-2b",
        "mwhanna/gemma-scope-transcoders",
        "gemma-2-2b",
        "gemmascope-transcoder-16k",
    ),
    ModelEntry("google/gemma-2-2b", "mntss/clt-gemma-2-2b-2.5M", "gemma-2-2b", "clt-hp"),
    ModelEntry("Qwen/Qwen3-4B", "mwhanna/qwen3-4b-transcoders", "qwen3-4b", "transcoder-hp"),
    ModelEntry("meta-llama/Llama-3.2-1B", "mntss/transcoder-Llama-3.2-1B", "llama-3.2-1b"),
)

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
        return model_id.lower() in {self.entry.model.lower(), self.entry.neuronpedia_id.lower()}


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
    known = [e for e in REGISTRY if model_id in {e.model, e.neuronpedia_id}]
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
        return replace(known[0], transcoder_set=transcoder_set, source_set=None)
    return ModelEntry(model_id, transcoder_set, neuronpedia_id=_short_name(model_id))


def _short_name(model_id: str) -> str:
    return Path(model_id).name.lower()


def load(settings: Settings) -> LoadedModel:
    """Load the model and the transcoders that the settings name. Takes seconds to minutes.

    Raises:
        SettingsError: the settings name no model.
        ModelLoadError: weights are missing, unreadable or not what the engine serves.
    """
    entry = resolve_entry(settings.model_id, settings.transcoder_set)
    settings.export_hub_variables()
    started = time.perf_counter()
    try:
        loaded = _build(entry, settings)
    except Exception as error:
        raise ModelLoadError(
            f"{entry.model} with {entry.transcoder_set} can't be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    logger.info(
        "loaded %s with %s on %s as %s in %.1f s",
        entry.model,
        entry.transcoder_set,
        loaded.model.cfg.device,
        str(loaded.model.cfg.dtype).removeprefix("torch."),
        time.perf_counter() - started,
    )
    return loaded


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


def _build(entry: ModelEntry, settings: Settings) -> LoadedModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loading.engines import replacement_model
    from loading.naming import circuit_tracer_name
    from loading.transcoders import transcoders

    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, settings.model_dtype or ("bfloat16" if on_gpu else "float32"))

    features = transcoders(
        entry.transcoder_set,
        device=device,
        dtype=dtype,
        lazy_encoder=settings.lazy_encoder,
        lazy_decoder=settings.lazy_decoder,
    )
    tokenizer = AutoTokenizer.from_pretrained(entry.model)
    hf_model = AutoModelForCausalLM.from_pretrained(entry.model, dtype=dtype)
    n_layers = hf_model.config.get_text_config().num_hidden_layers
    if n_layers != features.n_layers:
        raise ModelLoadError(
            f"the model has {n_layers} layers, its transcoders cover {features.n_layers}"
        )
    name = circuit_tracer_name(
        _model_name(entry.model),
        hf_model.config,
        has_chat_template=bool(tokenizer.chat_template),
    )
    model = replacement_model(settings.model_engine, hf_model, features, name, device, dtype)
    model.tokenizer = tokenizer
    # With "left" TransformerLens masks a leading pad token, which Qwen3's leading token is.
    tokenizer.padding_side = "right"
    stop_ids = _stop_ids(hf_model, tokenizer)
    return LoadedModel(entry, model, tokenizer, stop_ids, GraphCache(settings.graph_cache_bytes))


def _model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model


def _stop_ids(hf_model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = hf_model.generation_config.eos_token_id if hf_model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
