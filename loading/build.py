"""A model and its transcoders, as a replacement model ready to answer, with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from loading.conversion import prepared
from loading.engines import opened, replacement_model
from loading.entry import ModelEntry
from loading.inspection import check_fits
from loading.layouts import read_json, stored_dtype
from loading.model_config import read_config
from loading.sources import Weights, places_of
from loading.tokenizer import read_tokenizer
from loading.transcoders import transcoders
from prompting.gemma_3_chat import circuit_tracer_name
from settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Parts(NamedTuple):
    """What a loaded model is made of."""

    model: Any  # circuit_tracer's replacement model
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]  # tokens that end a generation


def build(entry: ModelEntry, weights: Weights, settings: Settings) -> Parts:
    """Read a model and its transcoders and put them together on the settings' device.

    Args:
        entry: what is loaded, and how.
        weights: its files.

    Raises:
        WeightsError: model and transcoders don't belong together, or aren't served; the model's
            configuration or tokenizer can't be read.
        UnsupportedArchitectureError: the engine has no exact way to run the model.
        WeightsMismatchError: the weights aren't those of its configuration.
        Exception: whatever the libraries raise for files that are unreadable.
    """
    check_fits(weights)
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    own_dtype = (entry.dtype or stored_dtype(weights.model)) if on_gpu else "float32"
    dtype = getattr(torch, settings.model_dtype or own_dtype)

    # What can't be served is refused before gigabytes are read.
    directory = weights.model
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    lazy = entry.lazy_encoder or entry.lazy_decoder
    features = transcoders(
        prepared(weights.transcoders, places_of(settings), lazy=lazy),
        device=device,
        dtype=dtype,
        lazy_encoder=entry.lazy_encoder,
        lazy_decoder=entry.lazy_decoder,
    )
    name = circuit_tracer_name(
        _model_name(entry.model), config, has_chat_template=bool(tokenizer.chat_template)
    )
    with opened(entry.engine, directory, config, device=device, dtype=dtype) as hf_model:
        built = replacement_model(entry.engine, hf_model, features, name, device, dtype)
    built.tokenizer = tokenizer
    # With "left" TransformerLens masks a leading pad token, which Qwen3's leading token is.
    tokenizer.padding_side = "right"
    return Parts(built, tokenizer, _stop_ids(directory, config, tokenizer))


def _model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model.partition("@")[0]


def _stop_ids(directory: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What `generation_config.json` says, without it the configuration, and the tokenizer."""
    path = directory / "generation_config.json"
    text = config.get_text_config()
    generation = read_json(path) if path.is_file() else {}
    sources = (generation.get("eos_token_id"), config.eos_token_id, text.eos_token_id)
    configured = next((ids for ids in sources if ids is not None), None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
