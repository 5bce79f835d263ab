"""A Hugging Face model configuration, as the configuration of a TransformerLens model.

TransformerLens's own loader goes by official names: from a directory it drops Llama's rope base,
refuses Gemma-2 and cuts Qwen3's context. Here every number comes from the model's configuration.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformer_lens import HookedTransformerConfig

# TransformerLens allocates a boolean mask of n_ctx x n_ctx for each layer while it builds a model:
# 16 MB a layer at this bound, 1.7 GB a layer at Qwen3's 40,960.
MAX_CONTEXT = 4096


class UnsupportedArchitectureError(ValueError):
    """The model's architecture has no conversion here; the message lists those that do."""


def hooked_config(
    hf_config: Any, *, model_name: str, device: torch.device, dtype: torch.dtype
) -> HookedTransformerConfig:
    """Return the configuration under which a TransformerLens model computes the same logits.

    Args:
        hf_config: a `transformers` configuration with `architectures` set.
        model_name: kept as `cfg.model_name`; circuit-tracer goes by it for Gemma-3's prefix.

    Raises:
        UnsupportedArchitectureError: no conversion for this architecture.
    """
    architecture = (hf_config.architectures or ["unknown"])[0]
    if architecture not in _CONVERTERS:
        raise UnsupportedArchitectureError(
            f"{model_name} is a {architecture}; the worker serves {', '.join(sorted(_CONVERTERS))}"
        )
    return HookedTransformerConfig(
        model_name=model_name,
        original_architecture=architecture,
        device=str(device),
        dtype=dtype,
        init_weights=False,
        **_CONVERTERS[architecture](hf_config),
    )


def _rotary_decoder(c: Any) -> dict[str, Any]:
    """What Llama, Qwen3 and Gemma-2 have in common: RMSNorm, rotary positions, a gated MLP."""
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
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_adjacent_pairs": False,
        "rotary_base": c.rope_theta,
    }


def _qwen3(c: Any) -> dict[str, Any]:
    return {**_rotary_decoder(c), "act_fn": c.hidden_act, "use_qk_norm": True}


def _llama(c: Any) -> dict[str, Any]:
    return {**_rotary_decoder(c), "act_fn": c.hidden_act, **_llama3_rope(c.rope_scaling)}


def _llama3_rope(scaling: dict[str, Any] | None) -> dict[str, Any]:
    if not scaling:
        return {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "default":
        return {}
    if kind != "llama3":
        raise UnsupportedArchitectureError(f"rope scaling {kind!r} has no conversion here")
    return {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_factor": scaling["factor"],
        "NTK_by_parts_low_freq_factor": scaling["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": scaling["high_freq_factor"],
        "NTK_original_ctx_len": scaling["original_max_position_embeddings"],
    }


def _gemma2(c: Any) -> dict[str, Any]:
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    return {
        **_rotary_decoder(c),
        # TransformerLens's Gemma weight converter wants the count even when heads aren't grouped.
        "n_key_value_heads": c.num_key_value_heads,
        "act_fn": c.hidden_activation,
        "attn_scale": c.query_pre_attn_scalar**0.5,
        "use_normalization_before_and_after": True,
        "use_local_attn": True,
        "window_size": c.sliding_window,
        "attn_types": [kinds[kind] for kind in c.layer_types],
        "attn_scores_soft_cap": c.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": c.final_logit_softcapping or -1.0,
    }


def _gpt2(c: Any) -> dict[str, Any]:
    return {
        "n_layers": c.n_layer,
        "d_model": c.n_embd,
        "n_heads": c.n_head,
        "d_head": c.n_embd // c.n_head,
        "d_mlp": c.n_inner or 4 * c.n_embd,
        "d_vocab": c.vocab_size,
        "n_ctx": c.n_positions,
        "eps": c.layer_norm_epsilon,
        "act_fn": c.activation_function,
        "normalization_type": "LN",
        "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
    }


_CONVERTERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "GPT2LMHeadModel": _gpt2,
    "Gemma2ForCausalLM": _gemma2,
    "LlamaForCausalLM": _llama,
    "Qwen3ForCausalLM": _qwen3,
}
