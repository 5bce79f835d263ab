"""The files of a model and its transcoders become a loaded model, in memory and ready to answer."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, NoneType
from typing import TYPE_CHECKING, Any

import torch

from graphs.cache import GraphCache
from loading import WeightsError
from loading.bounds import brief
from loading.checkpoint import open_checkpoint
from loading.complete_modules import Placement
from loading.complete_sets import CompleteContents, CompleteWeights, inspect_complete
from loading.converted import prepared
from loading.entry import Engine
from loading.inspection import Contents, inspect
from loading.json_files import read_json
from loading.loaded_model import LoadedModel
from loading.model_config import as_version_4
from loading.model_folder import MODEL_CONFIG, read_model_config
from loading.model_tokenizer import check_template, read_tokenizer
from loading.selection import Selection
from loading.sources import Storage, TranscoderFiles, Weights
from loading.transcoder_folder import check_shape
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
    config = as_version_4(read_model_config(directory))
    tokenizer = read_tokenizer(directory)
    check_template(directory, tokenizer)
    # What can't be served is refused before gigabytes are read.
    stop_ids = _stop_ids(directory, config, tokenizer)
    files = weights.transcoders
    contents = inspect(files) if isinstance(files, TranscoderFiles) else inspect_complete(files)
    check_fits(contents, config)

    placement = _placement(selection, settings, config)
    device, dtype = placement.device, placement.dtype
    name = _model_name(selection.entry.model, config, tokenizer)
    engine = engine_of(selection.engine)
    model: Any
    if isinstance(contents, CompleteContents):
        from loading.complete_build import complete_model  # with TransformerLens, as `engine_of`

        opened = open_checkpoint(directory, config, device=device, dtype=dtype)
        model = complete_model(opened, name, contents, placement)
        model.language_model.tokenizer = tokenizer
    else:
        engine.check_hooks(config, contents.files.config, name)
        # Before the model: nnsight reads it whole, and the peak would be higher.
        features = _transcoders(contents, selection, storage, placement)
        model = engine.load(directory, config, features, name, device, dtype)
        model.tokenizer = tokenizer
    # With "left" TransformerLens masks a leading pad token, which Qwen3's leading token is.
    tokenizer.padding_side = "right"
    return LoadedModel(
        selection.entry,
        model,
        tokenizer,
        stop_ids,
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
    n_layers, d_model = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    check_shape(covered, n_layers, contents.d_model, d_model)


def stored_dtype(config: Any) -> str:
    """The dtype that a model's configuration names; bfloat16 where it names none that is served."""
    named = str(config.get_text_config().dtype or config.dtype).removeprefix("torch.")
    return named if named in {"float32", "float16", "bfloat16"} else "bfloat16"


def engine_of(engine: Engine) -> ModuleType:
    """The module of an engine. It takes seconds to import, and a worker has one engine.

    Its `check_hooks` refuses transcoders that read or write where the model has nothing. Its `load`
    makes circuit-tracer's model of a model's directory and transcoders, its `replacement_model` of
    a Hugging Face model and transcoders.
    """
    if engine == "nnsight":
        from loading import nnsight_engine

        return nnsight_engine
    from loading import transformerlens_engine

    return transformerlens_engine


def _stop_ids(directory: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What `generation_config.json` says, without it the configuration, and the tokenizer.

    Raises:
        WeightsError: the first of them can't be read, or one names no token.
    """
    file = directory / "generation_config.json"
    configured = read_json(file).get("eos_token_id") if file.is_file() else None
    if configured is None:
        file, text = directory / MODEL_CONFIG, config.get_text_config()
        configured = text.eos_token_id if config.eos_token_id is None else config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    for each in ids:
        if type(each) not in (int, NoneType):
            raise WeightsError(
                f"{file} has eos_token_id: {brief(each)}, which is no token's number: correct it"
            )
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
