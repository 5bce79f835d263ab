"""The Hugging Face model of a directory, with every weight from its files."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Mxfp4Config

from loading import UnsupportedArchitectureError
from loading.checkpoint import absent, check_weights, of_the_language_model, unread
from loading.served_values import check_served, rope_type

# Settings that transformers' own classes leave unread, by the model's type, with what is served.
_ONLY_SERVED: dict[str, dict[str, Any]] = {
    "gemma3": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text": {"attn_logit_softcapping": None},
    # These values stand in the code of GPT-OSS's experts.
    "gpt_oss": {"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
}


def read_model(directory: Path, config: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The Hugging Face model of a directory. No code of the model's is run.

    Weights go to the device one by one as they are read: no more than a tensor, or the packed
    experts of a layer, is in the host's memory.

    Weights in MXFP4, in which GPT-OSS is published, become the numbers that they stand for, each
    of which bfloat16 has too.

    Raises:
        UnsupportedArchitectureError: the configuration has a value that isn't served.
        WeightsMismatchError: weights are missing, of another shape, or left over.
        OSError, WeightsError: files are missing or damaged.
    """
    check_config(config)
    quantization: dict[str, Any] = {}
    packed: list[str] = []
    if getattr(config, "quantization_config", None) is not None:  # MXFP4: others are refused
        quantization["quantization_config"] = Mxfp4Config(dequantize=True)
        packed = _packed_experts(config.num_hidden_layers)
    # transformers trusts the index, and fails obscurely where packed weights are missing.
    check_weights(missing=absent(directory, beside_index=packed))
    model, report = AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        dtype=dtype,
        # As a string: of a torch.device transformers takes the index, and "cuda" has none.
        device_map={"": str(device)},
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused below, with the others
        output_loading_info=True,
        **quantization,
    )
    check_weights(
        missing=of_the_language_model(report["missing_keys"]),
        misshapen=report["mismatched_keys"],
        unread=unread(report["unexpected_keys"], tied=config.get_text_config().tie_word_embeddings),
    )
    return model


def check_config(config: Any) -> None:
    """Raise UnsupportedArchitectureError for a value of a configuration that isn't served."""
    check_served(config, _ONLY_SERVED.get(config.model_type, {}))
    if rope_type(config.get_text_config()) == "longrope":
        raise UnsupportedArchitectureError(
            "rope_scaling of type 'longrope' rotates each token by an angle that depends on the "
            "length of the text; a text that grows in a key-value cache has no exact conversion"
        )


def _packed_experts(n_layers: int) -> list[str]:
    """The names of GPT-OSS's weights in MXFP4."""
    return [
        f"model.layers.{layer}.mlp.experts.{name}_{part}"
        for layer in range(n_layers)
        for name in ("gate_up_proj", "down_proj")
        for part in ("blocks", "scales")
    ]
