"""A Hugging Face model configuration, as the configuration of a TransformerLens model.

TransformerLens's own loader goes by official names: from a directory it drops Llama's rope base,
refuses Gemma-2 and cuts Qwen3's context. Here every number comes from the model's configuration,
and a value without an equivalent is refused by name: a model is converted exactly or not at all.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loading import UnsupportedArchitectureError
from loading.mapped_architectures import mapped_architectures
from loading.served_values import check_class, check_served, refuse_other_values, rope_type

# A model has a boolean mask of n_ctx x n_ctx for its local layers and one for its global ones: each
# 16 MB at this bound, 1.7 GB at Qwen3's 40,960.
MAX_CONTEXT = 4096

# Fields that change what a model computes and have no conversion, with the value that is served.
_ONLY_SERVED = {
    "attention_bias": False,
    "mlp_bias": False,
    # Where transformers 5 has rope_theta and rope_scaling; model_config.py moves them back.
    "rope_parameters": None,
}
# The activations that both libraries know by the same name and compute alike.
_ACTIVATIONS = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_ATTENTION_TYPES = {"sliding_attention": "local", "full_attention": "global"}


def hooked_config(
    hf_config: Any,
    *,
    model_name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HookedTransformerConfig:
    """Return the configuration under which a TransformerLens model computes the same logits.

    Args:
        hf_config: a `transformers` configuration with `architectures` set; of a multimodal model,
            its language model is converted.
        model_name: kept as `cfg.model_name`, by which circuit-tracer tells Gemma 3 chat models
            (see `prompting.gemma_3_chat`).

    Raises:
        UnsupportedArchitectureError: no conversion for this architecture, or for a value of the
            configuration; the message names it.
    """
    architecture = (hf_config.architectures or ["unknown"])[0]
    if architecture not in _CONVERTERS:
        is_mapped = architecture in mapped_architectures()
        raise UnsupportedArchitectureError(
            f"{model_name} is a {architecture}; the worker serves {', '.join(sorted(_CONVERTERS))}"
            + (f", and a {architecture} with MODEL_ENGINE=nnsight" if is_mapped else "")
        )
    check_class(hf_config)
    text = hf_config.get_text_config()
    check_served(hf_config, _ONLY_SERVED)
    return HookedTransformerConfig(
        model_name=model_name,
        original_architecture=architecture,
        device=str(device),
        dtype=dtype,
        init_weights=False,
        **_CONVERTERS[architecture](text),
    )


def _rotary_decoder(c: Any, activation: str, *, has_windows: bool) -> dict[str, Any]:
    """What all but GPT-2 have in common: RMSNorm, rotary positions, a gated MLP."""
    windows = _local_attention(c) if has_windows else {}
    d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    grouped = c.num_key_value_heads != c.num_attention_heads
    return {
        "n_layers": c.num_hidden_layers,
        "d_model": c.hidden_size,
        "n_heads": c.num_attention_heads,
        "n_key_value_heads": c.num_key_value_heads if grouped else None,
        "d_head": d_head,
        "d_mlp": c.intermediate_size,
        "d_vocab": c.vocab_size,
        "n_ctx": min(c.max_position_embeddings, MAX_CONTEXT),
        "eps": c.rms_norm_eps,
        "act_fn": _known("the activation function", activation, _ACTIVATIONS),
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_adjacent_pairs": False,
        "rotary_base": c.rope_theta,
        **windows,
        **_rope_scaling(c, beside_windows=bool(windows)),
    }


def _known(what: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise UnsupportedArchitectureError(
            f"{what} {value!r} has no exact conversion; {', '.join(known)} have"
        )
    return value


def _local_attention(c: Any) -> dict[str, Any]:
    """Which layers see only a window, where any does."""
    kinds = [_known("layer_types:", kind, _ATTENTION_TYPES) for kind in c.layer_types]
    if "sliding_attention" not in kinds:
        return {}
    if c.sliding_window is None:
        raise UnsupportedArchitectureError(
            "layer_types has 'sliding_attention', but sliding_window is not set"
        )
    return {
        "use_local_attn": True,
        "window_size": c.sliding_window,
        "attn_types": [_ATTENTION_TYPES[kind] for kind in kinds],
    }


def _rope_scaling(c: Any, *, beside_windows: bool) -> dict[str, Any]:
    kind = _known("rope_scaling of type", rope_type(c), ("default", *_ROPE_SCALINGS))
    if kind == "default":
        return {}
    # Gemma 3 scales its global layers alone, the others all of them. TransformerLens does the
    # first for linear scaling and the second for the rest.
    scales_windows = not hasattr(c, "rope_local_base_freq")
    if beside_windows and scales_windows == (kind == "linear"):
        raise UnsupportedArchitectureError(
            f"rope_scaling of type {kind!r} beside 'sliding_attention' layers has no exact "
            f"conversion for a {c.model_type}"
        )
    return _ROPE_SCALINGS[kind](c)


def _llama3_rope(c: Any) -> dict[str, Any]:
    scaling = c.rope_scaling
    return {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": scaling["factor"],
        "NTK_by_parts_low_freq_factor": scaling["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": scaling["high_freq_factor"],
        "NTK_original_ctx_len": scaling["original_max_position_embeddings"],
    }


def _yarn_rope(c: Any) -> dict[str, Any]:
    scaling = c.rope_scaling
    if not scaling.get("truncate", True):
        raise UnsupportedArchitectureError("rope_scaling with truncate=False has no conversion")
    # The model's own rule for the factor that is not given.
    _, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](c, torch.device("cpu"))
    original = scaling.get("original_max_position_embeddings") or c.max_position_embeddings
    return {
        "use_yarn_rope": True,
        "yarn_factor": scaling["factor"],
        "yarn_attention_factor": attention_factor,
        "yarn_beta_fast": scaling.get("beta_fast") or 32,
        "yarn_beta_slow": scaling.get("beta_slow") or 1,
        "yarn_original_max_position_embeddings": original,
    }


_ROPE_SCALINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "linear": lambda c: {"rotary_scaling_factor": c.rope_scaling["factor"]},
    "llama3": _llama3_rope,
    "yarn": _yarn_rope,
}


def _llama(c: Any) -> dict[str, Any]:
    return _rotary_decoder(c, c.hidden_act, has_windows=False)


def _qwen3(c: Any) -> dict[str, Any]:
    return {**_rotary_decoder(c, c.hidden_act, has_windows=True), "use_qk_norm": True}


def _gemma(c: Any) -> dict[str, Any]:
    return {
        **_rotary_decoder(c, c.hidden_activation, has_windows=True),
        # TransformerLens's Gemma weight converter wants the count even when heads aren't grouped.
        "n_key_value_heads": c.num_key_value_heads,
        "attn_scale": c.query_pre_attn_scalar**0.5,
        "use_normalization_before_and_after": True,
    }


def _gemma2(c: Any) -> dict[str, Any]:
    return {
        **_gemma(c),
        "attn_scores_soft_cap": c.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": c.final_logit_softcapping or -1.0,
    }


def _gemma3(c: Any) -> dict[str, Any]:
    # transformers itself reads the first nowhere and the second in one of two classes.
    refuse_other_values(c, {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    return {**_gemma(c), "use_qk_norm": True, "rotary_base_local": c.rope_local_base_freq}


def _gpt2(c: Any) -> dict[str, Any]:
    return {
        "n_layers": c.n_layer,
        "d_model": c.n_embd,
        "n_heads": c.n_head,
        "d_head": c.n_embd // c.n_head,
        "d_mlp": c.n_inner or 4 * c.n_embd,
        "d_vocab": c.vocab_size,
        "n_ctx": min(c.n_positions, MAX_CONTEXT),
        "eps": c.layer_norm_epsilon,
        "act_fn": _known("the activation function", c.activation_function, _ACTIVATIONS),
        "normalization_type": "LN",
        "use_attn_scale": c.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
    }


_CONVERTERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "GPT2LMHeadModel": _gpt2,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "LlamaForCausalLM": _llama,
    "Qwen3ForCausalLM": _qwen3,
}
