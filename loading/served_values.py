"""The values of a model's configuration that are served, on either engine.

A value that an engine leaves unread, or computes otherwise, is refused by its name.
"""

from collections.abc import Mapping
from typing import Any

from loading import UnsupportedArchitectureError

# Settings that change what a model computes and that neither engine follows, each with the one
# value that is served.
_ONLY_SERVED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "use_bidirectional_attention": False,
}


# The class of each `model_type` that an engine serves. The module in which transformers lists them
# brings seconds of imports along, which a start goes without (serving/lean_imports.py).
_CLASSES = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_oss": "GptOssForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def class_of(config: Any) -> str:
    """The class of a configuration's language model in transformers; its type, if not served."""
    return _CLASSES.get(config.model_type, config.model_type)


def check_class(config: Any) -> None:
    """Raise UnsupportedArchitectureError where `architectures` names another model's class."""
    named, *_ = config.architectures or [class_of(config)]
    if named not in (class_of(config), class_of(config.get_text_config())):
        raise UnsupportedArchitectureError(
            f"config.json has architectures: {named} and model_type: {config.model_type}, which "
            "aren't of one model: correct the one that is wrong"
        )


def check_served(config: Any, only_served: Mapping[str, Any]) -> None:
    """Check the values of a model's configuration, and of its language model's.

    Args:
        config: its `transformers` configuration.
        only_served: what one engine doesn't follow, as in `refuse_other_values`.

    Raises:
        UnsupportedArchitectureError: a setting has a value that isn't served, or the weights are
            quantised other than GPT-OSS's, whose MXFP4 stands for numbers that bfloat16 has too.
    """
    for part in (config, config.get_text_config()):
        refuse_other_values(part, {**_ONLY_SERVED, **only_served})
        quantization = getattr(part, "quantization_config", None) or {}
        if not isinstance(quantization, dict):
            quantization = quantization.to_dict()
        method = quantization.get("quant_method")
        if quantization and (method != "mxfp4" or config.model_type != "gpt_oss"):
            raise UnsupportedArchitectureError(
                f"the model's configuration has quantization_config: its weights are quantised "
                f"({method}), and attribution needs them in bfloat16, float16 or float32; serve a "
                "copy that is"
            )


def refuse_other_values(config: Any, served: Mapping[str, Any]) -> None:
    """Raise UnsupportedArchitectureError where a configuration has another value than is served."""
    for name, only in served.items():
        value = getattr(config, name, only)
        if value != only:
            raise UnsupportedArchitectureError(
                f"the model's configuration has {name}={str(value)[:80]}, of which there is no "
                f"exact conversion; only {name}={only} is served"
            )


def rope_type(config: Any) -> str:
    """How a language model's rotary embeddings are scaled; "default": not at all."""
    scaling = getattr(config, "rope_scaling", None) or {}
    kind: str = scaling.get("rope_type", scaling.get("type", "default"))
    return kind
