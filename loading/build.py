"""The files of a model and its transcoders become a loaded model, in memory and ready to answer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from graphs.cache import GraphCache
from loading import WeightsError
from loading.complete_modules import Placement
from loading.complete_sets import CompleteContents, CompleteWeights, inspect_complete
from loading.converted import prepared
from loading.entry import Engine
from loading.inspection import Contents, inspect
from loading.json_files import read_json
from loading.loaded_model import LoadedModel
from loading.pretrained import check_template, read_config, read_tokenizer
from loading.selection import Selection
from loading.sources import Storage, TranscoderFiles, Weights
from loading.transcoders import Transcoders, transcoders
from prompting.gemma_3_chat import circuit_tracer_name
from prompting.template_process import template_process
from settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(
    selection: Selection, weights: Weights | CompleteWeights, storage: Storage, settings: Settings
) -> LoadedModel:
    """Read a model and its transcoders and put them together on the settings' device.

    Args:
        weights: the files that were located for what is selected.
        storage: keeps converted copies of transcoders.

    Raises:
        WeightsError: model and transcoders don't belong together, or aren't served; the model's
            configuration or tokenizer can't be read; its chat template takes too much.
        UnsupportedArchitectureError: the engine has no exact way to run the model.
        WeightsMismatchError: the weights aren't those of its configuration.
        Exception: whatever the libraries raise for files that are unreadable.
    """
    directory = weights.model
    template_process().start()  # ready once transformers is imported and files are read
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    check_template(directory, tokenizer)
    # What can't be served is refused before gigabytes are read.
    files = weights.transcoders
    contents = inspect(files) if isinstance(files, TranscoderFiles) else inspect_complete(files)
    check_fits(contents, config)

    placement = _placement(selection, settings, config)
    device, dtype = placement.device, placement.dtype
    name = _model_name(selection.entry.model, config, tokenizer)
    engine = engine_of(selection.engine)
    open_model = partial(engine.open_model, directory, config, device=device, dtype=dtype)
    model: Any
    if isinstance(contents, CompleteContents):
        from loading.complete_build import complete_model  # with TransformerLens, as `engine_of`

        model = complete_model(open_model(), name, contents, placement)
        model.language_model.tokenizer = tokenizer
    else:
        # Before the model is opened: on nnsight that reads it, and the peak would be higher.
        features = _transcoders(contents, selection, storage, placement)
        model = engine.replacement_model(open_model(), features, name, device, dtype)
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


def _placement(selection: Selection, settings: Settings, config: Any) -> Placement:
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = selection.dtype_on_gpu or stored_dtype(config)
    dtype = getattr(torch, on_gpu if device.type == "cuda" else selection.dtype_on_cpu)
    return Placement(device, dtype, selection.lazy_decoder)


def _model_name(named: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the replacement model is called: as circuit-tracer expects of its kind."""
    name = Path(named).name if Path(named).is_dir() else named.partition("@")[0]
    return circuit_tracer_name(name, config, has_chat_template=bool(tokenizer.chat_template))


def _transcoders(
    contents: Contents, selection: Selection, storage: Storage, placement: Placement
) -> Transcoders:
    if not contents.can_be_lazy:
        lazy = selection.lazy_encoder or selection.lazy_decoder
        contents = prepared(contents, storage, lazy=lazy)
    return transcoders(
        contents,
        device=placement.device,
        dtype=placement.dtype,
        lazy_encoder=selection.lazy_encoder,
        lazy_decoder=selection.lazy_decoder,
    )


def check_fits(contents: Contents | CompleteContents, config: Any) -> None:
    """Raise WeightsError unless transcoders have as many layers as the model, of its width.

    Args:
        config: the model's `transformers` configuration.
    """
    covered = len(contents.layers if isinstance(contents, Contents) else contents.lorsas)
    text = config.get_text_config()
    layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if layers not in (None, covered):
        raise WeightsError(
            f"the model has {layers} layers, its transcoders cover {covered}: name "
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


def engine_of(engine: Engine) -> ModuleType:
    """The module of an engine. It takes seconds to import, and a worker has one engine.

    Its `open_model` opens a model's directory, and its `replacement_model` makes circuit-tracer's
    model of that, or of a Hugging Face model, and transcoders.
    """
    if engine == "nnsight":
        from loading import nnsight_engine

        return nnsight_engine
    from loading import transformerlens_engine

    return transformerlens_engine


def _stop_ids(directory: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What `generation_config.json` says, without it the configuration, and the tokenizer."""
    path = directory / "generation_config.json"
    text = config.get_text_config()
    generation = read_json(path) if path.is_file() else {}
    sources = (generation.get("eos_token_id"), config.eos_token_id, text.eos_token_id)
    configured = next((ids for ids in sources if ids is not None), None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
