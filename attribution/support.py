"""For which replacement models the linear part is the one that `freezing` builds."""

from __future__ import annotations

from typing import Any

from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from transformer_lens.components import Attention, GroupedQueryAttention

from attribution.norms import SUPPORTED_NORMS

# Where features read, as (behind the second norm, with its weight).
INPUT_HOOKS = {
    "hook_resid_mid": (False, False),
    "ln2.hook_normalized": (True, False),
    "mlp.hook_in": (True, True),
}
# Where they write, as (before the norm after the MLP, where there is one).
OUTPUT_HOOKS = {"hook_mlp_out": False, "mlp.hook_out": True}


def unsupported(model: Any) -> str | None:
    """Why this replacement model's linear part is not the one built here; None if it is."""
    if getattr(model, "backend", None) != "transformerlens":
        return "not a TransformerLens model"
    cfg = model.cfg
    if not isinstance(model.transcoders, TranscoderSet | CrossLayerTranscoder):
        return f"transcoders of type {type(model.transcoders).__name__}"
    if model.feature_input_hook not in INPUT_HOOKS:
        return f"features read at {model.feature_input_hook}"
    if model.original_feature_output_hook not in OUTPUT_HOOKS:
        return f"features write at {model.original_feature_output_hook}"
    unusual = {
        "parallel attention and MLP": cfg.parallel_attn_mlp,
        "no MLP": cfg.attn_only,
        "attention in both directions": cfg.attention_dir != "causal",
        "split attention inputs": cfg.use_attn_in or cfg.use_split_qkv_input,
        "a separate MLP input": cfg.use_hook_mlp_in,
        "four-bit weights": cfg.load_in_4bit,
        "several devices": cfg.n_devices > 1,
        "norms behind the sublayers only": (cfg.original_architecture or "").startswith("Olmo"),
    }
    for reason, holds in unusual.items():
        if holds:
            return reason
    norms = [model.ln_final]
    for block in model.blocks:
        if type(block.attn) not in (Attention, GroupedQueryAttention):
            return f"attention of type {type(block.attn).__name__}"
        norms += [block.ln1, block.ln2]
        if cfg.use_normalization_before_and_after:
            norms += [block.ln1_post, block.ln2_post]
    other = {type(norm) for norm in norms} - SUPPORTED_NORMS
    return f"norm of type {other.pop().__name__}" if other else None
