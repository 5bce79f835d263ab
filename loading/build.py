"""The files of a model and its transcoders become a loaded model, in memory and ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graphs.cache import GraphCache
from loading import WeightsError
from loading.checkpoint import open_checkpoint
from loading.converted import prepared
from loading.entry import Engine
from loading.folders import read_json
from loading.inspection import Contents, inspect
from loading.loaded_model import LoadedModel
from loading.pretrained import read_config, read_tokenizer
from loading.selection import Selection
from loading.sources import Storage, Weights
from loading.transcoders import transcoders
from prompting.gemma_3_chat import circuit_tracer_name
from settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(
    selection: Selection, weights: Weights, storage: Storage, settings: Settings
) -> LoadedModel:
    """Read a model and its transcoders and put them together on the settings' device.

    Args:
        weights: the files that were located for what is selected.
        storage: keeps converted copies of transcoders.

    Raises:
        WeightsError: model and transcoders don't belong together, or aren't served; the model's
            configuration or tokenizer can't be read.
        UnsupportedArchitectureError: the engine has no exact way to run the model.
        WeightsMismatchError: the weights aren't those of its configuration.
        Exception: whatever the libraries raise for files that are unreadable.
    """
    directory = weights.model
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    # What can't be served is refused before gigabytes are read.
    contents = inspect(weights.transcoders)
    check_fits(contents, config)

    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = selection.dtype_on_gpu or stored_dtype(config)
    dtype = getattr(torch, on_gpu if device.type == "cuda" else selection.dtype_on_cpu)
    lazy = selection.lazy_encoder or selection.lazy_decoder
    features = transcoders(
        prepared(contents, storage, lazy=lazy),
        device=device,
        dtype=dtype,
        lazy_encoder=selection.lazy_encoder,
        lazy_decoder=selection.lazy_decoder,
    )
    name = circuit_tracer_name(
        _model_name(selection.entry.model), config, has_chat_template=bool(tokenizer.chat_template)
    )
    hf_model = opened(selection.engine, directory, config, device=device, dtype=dtype)
    model = replacement_model(selection.engine, hf_model, features, name, device, dtype)
    model.tokenizer = tokenizer
    # With "left" TransformerLens masks a leading pad token, which Qwen3's leading token is.
    tokenizer.padding_side = "right"
    return LoadedModel(
        selection.entry,
        model,
        tokenizer,
        _stop_ids(directory, config, tokenizer),
        GraphCache(settings.graph_cache_bytes),
        weights.revisions,
    )


def check_fits(contents: Contents, config: Any) -> None:
    """Raise WeightsError unless transcoders have as many layers as the model, of its width.

    Args:
        config: the model's `transformers` configuration.
    """
    text = config.get_text_config()
    layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if layers not in (None, len(contents.layers)):
        raise WeightsError(
            f"the model has {layers} layers, its transcoders cover {len(contents.layers)}: name "
            "the set that was trained on it"
        )
    if width not in (None, contents.d_model):
        raise WeightsError(
            f"d_model of the model is {width}, that of its transcoders {contents.d_model}: name "
            "the set that was trained on it"
        )


def stored_dtype(config: Any) -> str:
    """The dtype that a model's configuration names; bfloat16 where it names none that is served."""
    named = str(config.get_text_config().dtype or config.dtype).removeprefix("torch.")
    return named if named in {"float32", "float16", "bfloat16"} else "bfloat16"


def opened(
    engine: Engine, directory: Path, hf_config: Any, *, device: torch.device, dtype: torch.dtype
) -> Any:
    """A model's files as `replacement_model` takes them: TransformerLens needs the weights alone.

    Args:
        directory: configuration and safetensors.
        hf_config: its `transformers` configuration.

    Raises:
        UnsupportedArchitectureError: the configuration has a value that the engine doesn't serve.
        WeightsMismatchError: the weights aren't those of the configuration's model.
    """
    if engine == "nnsight":
        from loading.hugging_face_model import read_model

        return read_model(directory, hf_config, dtype, device)
    return open_checkpoint(directory, hf_config, device=device, dtype=dtype)


def replacement_model(
    engine: Engine,
    hf_model: Any,
    transcoders: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """circuit-tracer's replacement model of a Hugging Face model and its transcoders.

    Args:
        hf_model: a Hugging Face model; for TransformerLens its checkpoint does as well.
        name: kept as `cfg.model_name`; circuit-tracer goes by it for Gemma 3's prefix.

    Raises:
        UnsupportedArchitectureError: the engine doesn't run this model with these transcoders.
    """
    # Either library takes seconds to import, and a worker has one engine.
    if engine == "nnsight":
        from loading import nnsight_engine

        return nnsight_engine.replacement_model(hf_model, transcoders, name, device, dtype)
    from loading import transformerlens_engine

    return transformerlens_engine.replacement_model(hf_model, transcoders, name, device, dtype)


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
