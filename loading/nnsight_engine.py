"""A Hugging Face model and its transcoders, as circuit-tracer's nnsight model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from circuit_tracer.replacement_model.replacement_model_nnsight import NNSightReplacementModel
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig, get_mapping
from nnsight.intervention.interleaver import Cancelation

from loading import UnsupportedArchitectureError
from loading.nnsight_architectures import nnsight_architectures


@dataclass
class NNSightConfig(UnifiedConfig):
    """circuit-tracer's configuration, with what TransformerLens's has and callers look for."""

    n_ctx: int = 0
    device: str = ""


class NNSightModel(NNSightReplacementModel):
    """circuit-tracer's nnsight model, which holds on to nothing of a pass that failed."""

    def interleave(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run a traced pass; what waits in it for the rest of it is told when there is none.

        nnsight forgets the threads that wait at a barrier when a pass fails: they would wait for
        ever, and with them stay their tensors, which is the memory that a smaller batch needs.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return fn(*args, **kwargs)
            except BaseException:
                for mediator in self.interleaver.mediators:
                    # All others have a request pending, or are done.
                    if mediator.alive and not mediator.event_queue.has_value:
                        mediator.respond(Cancelation())
                raise

        super().interleave(run, *args, **kwargs)


def replacement_model(
    hf_model: Any, transcoders: Any, name: str, device: torch.device, dtype: torch.dtype
) -> NNSightModel:
    """The replacement model of a Hugging Face model, which becomes a part of it.

    Its context is the model's own. Attention becomes "eager": circuit-tracer finds the patterns in
    that implementation alone, and the default one drops Gemma-2's cap on attention scores.

    Raises:
        UnsupportedArchitectureError: circuit-tracer's nnsight model has no mapping for the model,
            or none for where its transcoders read or write, or its weights are quantised.
    """
    check_mapping(
        type(hf_model).__name__,
        (transcoders.feature_input_hook, transcoders.feature_output_hook),
        name,
    )
    if getattr(hf_model, "is_quantized", False):
        raise UnsupportedArchitectureError(
            f"the weights of {name} are quantised, and attribution needs them in bfloat16 or "
            "float32; serve a copy that is"
        )
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
    _read_in(dtype, transcoders)
    model._configure_replacement_model(transcoders)
    settings = {
        **vars(model.cfg),
        "dtype": dtype,
        "device": str(device),
        "n_ctx": hf_config.get_text_config().max_position_embeddings,
    }
    model.cfg = NNSightConfig(**settings)
    return model


def _read_in(dtype: torch.dtype, transcoders: Any) -> None:
    """Have transcoders cast what they read to their dtype, as per-layer encoders do of themselves.

    Gemma's norms hand their output over in float32 before they cast it back, which in 16 bits fits
    neither a skip connection nor cross-layer encoders.
    """

    def casting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return method(*(a.to(dtype) if torch.is_tensor(a) else a for a in args), **kwargs)

        return call

    for name in ("encode_layer", "compute_skip", "compute_attribution_components"):
        setattr(transcoders, name, casting(getattr(transcoders, name)))


def check_mapping(architecture: str, hooks: tuple[str, str], name: str) -> None:
    """Raise UnsupportedArchitectureError unless circuit-tracer maps the model and both hooks.

    Args:
        architecture: the class of the Hugging Face model.
        hooks: where the transcoders read and write, by TransformerLens's names.
    """
    served = nnsight_architectures()
    if architecture not in served:
        raise UnsupportedArchitectureError(
            f"{name} is a {architecture}, and MODEL_ENGINE=nnsight serves {', '.join(served)}; set "
            "MODEL_ENGINE=transformerlens"
        )
    places = get_mapping(architecture).feature_hook_mapping
    for hook in hooks:
        if hook not in places:
            raise UnsupportedArchitectureError(
                f"the transcoders of {name} read or write at {hook}, and with a {architecture} "
                f"MODEL_ENGINE=nnsight serves {', '.join(places)}; set MODEL_ENGINE=transformerlens"
            )
