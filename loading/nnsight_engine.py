"""A Hugging Face model and its transcoders, as circuit-tracer's nnsight model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.replacement_model.replacement_model_nnsight import NNSightReplacementModel
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig, get_mapping
from nnsight.intervention.interleaver import Cancelation

from loading import UnsupportedArchitectureError
from loading.hugging_face_model import read_model
from loading.mapped_architectures import check_mapped
from loading.served_values import class_of
from loading.transcoders import cast_inputs


def load(
    directory: Path,
    config: Any,
    transcoders: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> "NNSightModel":
    """The replacement model of a model's directory; as `replacement_model`."""
    model = read_model(directory, config, device=device, dtype=dtype)
    return replacement_model(model, transcoders, name, device, dtype)


@dataclass
class NNSightConfig(UnifiedConfig):
    """circuit-tracer's configuration, and two fields of TransformerLens's that callers read."""

    n_ctx: int = 0
    device: str = ""


class NNSightModel(NNSightReplacementModel):
    """circuit-tracer's nnsight model, which frees the memory of a traced pass that failed."""

    def interleave(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run a traced pass; when it fails, cancel the threads that wait inside it.

        When a pass fails, nnsight leaves threads waiting at a barrier for ever. Their tensors would
        keep the memory that the next, smaller batch needs.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return fn(*args, **kwargs)
            except BaseException:
                for mediator in self.interleaver.mediators:
                    # The others have a request pending or are done.
                    if mediator.alive and not mediator.event_queue.has_value:
                        mediator.respond(Cancelation())
                raise

        super().interleave(run, *args, **kwargs)


def replacement_model(
    hf_model: Any, transcoders: Any, name: str, device: torch.device, dtype: torch.dtype
) -> NNSightModel:
    """The replacement model of a Hugging Face model, which becomes a part of it.

    Its context is the model's own. Attention becomes "eager": only in that implementation does
    circuit-tracer find the patterns, and the default one drops Gemma-2's cap on attention scores.

    Raises:
        UnsupportedArchitectureError: circuit-tracer's nnsight model has no mapping for the model,
            or none for where its transcoders read or write.
    """
    check_hooks(hf_model.config, transcoders, name)
    hf_model.to(device)
    for parameter in hf_model.parameters():
        # Not `hf_model.to(dtype)`, which rounds the frequencies of rotary embeddings too.
        parameter.data = parameter.data.to(dtype)
    hf_model.set_attn_implementation("eager")
    hf_config = hf_model.config
    hf_config.architectures = [type(hf_model).__name__]
    hf_config.name_or_path = name
    # What circuit-tracer's own from_config does, for a model that has its weights.
    model = NNSightModel(hf_model)
    model._hf_config = model.config = hf_config  # PyPI's circuit-tracer's name, and upstream's
    cast_inputs(transcoders, "encode_layer", "compute_skip", "compute_attribution_components")
    model._configure_replacement_model(transcoders)
    settings = {
        **vars(model.cfg),
        "dtype": dtype,
        "device": str(device),
        "n_ctx": hf_config.get_text_config().max_position_embeddings,
    }
    model.cfg = NNSightConfig(**settings)
    return model


def check_hooks(config: Any, transcoders: Any, name: str) -> None:
    """Raise UnsupportedArchitectureError unless circuit-tracer maps the model and both hooks.

    Args:
        config: the model's `transformers` configuration.
        transcoders: these, or the configuration of their set.
    """
    check_mapped(config, name)
    architecture = class_of(config)
    mapped = get_mapping(architecture).feature_hook_mapping
    for hook in (transcoders.feature_input_hook, transcoders.feature_output_hook):
        if hook not in mapped:
            raise UnsupportedArchitectureError(
                f"the transcoders of {name} read or write at {hook}, and with a {architecture} "
                f"MODEL_ENGINE=nnsight serves {', '.join(mapped)}; set MODEL_ENGINE=transformerlens"
            )
