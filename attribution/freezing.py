"""Building the local replacement model: one forward pass, and the norms folded into its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformer_lens.components import GroupedQueryAttention

from attribution.features import find_active_features
from attribution.local_replacement_model import (
    FrozenAttention,
    FrozenSkip,
    LocalReplacementModel,
)
from attribution.norms import FrozenNorm
from attribution.patterns import FrozenPattern
from attribution.support import INPUT_HOOKS, OUTPUT_HOOKS
from attribution.transcoder_layer import TranscoderLayer

_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")


@torch.no_grad()
def build_local_replacement_model(
    model: Any, tokens: torch.Tensor, check: Callable[[], None] = lambda: None
) -> LocalReplacementModel:
    """Run `model` on `tokens` (n_pos,) once and keep its linear part.

    `model` must not be `unsupported`. It is left as it came. `check` is called before each layer's
    features are found, and raises to stop.
    """
    own = {model.feature_input_hook, model.feature_output_hook}
    names = [*recorded_hooks(model), *layer_hooks(model, own)]
    logits, seen = run_and_record(model, tokens, names)
    n_layers, n_pos = model.cfg.n_layers, len(tokens)

    def stacked(hook: str) -> torch.Tensor:
        return torch.cat([seen.pop(f"blocks.{layer}.{hook}") for layer in range(n_layers)])

    norms = [layer_norms(model, layer, seen, n_pos) for layer in range(n_layers)]
    attention = [
        freeze_attention(block.attn, seen.pop(block.attn.hook_pattern.name)[0], norm)
        for block, norm in zip(model.blocks, norms, strict=True)
    ]

    def to_stream(
        layer: int, vectors: torch.Tensor, positions: torch.Tensor | slice
    ) -> torch.Tensor:
        output = norms[layer].output
        if output.is_identity:
            return vectors
        return output.scaled(output.forward(vectors), positions)

    features, reconstruction = find_active_features(
        model.transcoders,
        stacked(model.feature_input_hook),
        model.zero_positions,
        to_stream,
        check,
    )
    errors = stacked(model.feature_output_hook) - reconstruction
    errors[:, model.zero_positions] = 0
    for layer in range(n_layers):
        errors[layer] = to_stream(layer, errors[layer], slice(None))
    return LocalReplacementModel(
        attention=attention,
        skips=[
            freeze_skip(TranscoderLayer(model.transcoders, layer).skip, norm)
            for layer, norm in enumerate(norms)
        ],
        features=features,
        input_norms=FrozenNorm.stacked([norm.input for norm in norms]),
        errors=errors,
        tokens=model.W_E[tokens].detach().float(),
        final_norm=FrozenNorm.of(model.ln_final, seen["ln_final.hook_scale"]),
        logits=logits,
    )


def run_and_record(
    model: Any, tokens: torch.Tensor, names: Sequence[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Run a HookedTransformer on tokens (n_pos,).

    Returns:
        The logits (d_vocab,) of the last position, and the activations at the hooks `names`.
    """
    seen: dict[str, torch.Tensor] = {}

    def record(activation: torch.Tensor, hook: Any) -> None:
        seen[hook.name] = activation.detach()

    with model.hooks(fwd_hooks=[(name, record) for name in names]):
        # The logits of all positions are computed, since a product of one position may round
        # otherwise than the library's. Only a copy of the last is kept.
        logits = model(tokens)[0, -1].clone()
    return logits, seen


@dataclass(frozen=True)
class LayerNorms:
    """The frozen norms that influence passes in a layer, identities where there is none."""

    before_attention: FrozenNorm
    after_attention: FrozenNorm
    input: FrozenNorm  # from the residual stream to where features read
    output: FrozenNorm  # from where features write to the residual stream


def recorded_hooks(model: Any) -> list[str]:
    """The hooks of a pass whose activations attention and norms are frozen at."""
    wanted = {"attn.hook_pattern", *(f"{norm}.hook_scale" for norm in _NORMS)}
    return ["ln_final.hook_scale", *layer_hooks(model, wanted)]


def layer_hooks(model: Any, wanted: Collection[str]) -> list[str]:
    """The full names of these hooks in all layers."""
    return [name for name in model.hook_dict if name.partition(".")[2].partition(".")[2] in wanted]


def layer_norms(model: Any, layer: int, seen: dict[str, torch.Tensor], n_pos: int) -> LayerNorms:
    """A layer's norms, frozen at the scales that were `seen` at `n_pos` positions."""
    norms = attention_norms(model, layer, seen, n_pos)
    through_norm, weighted = INPUT_HOOKS[model.feature_input_hook]
    if through_norm:
        norms = replace(norms, input=_norm(model, layer, "ln2", seen, weighted=weighted))
    after = model.cfg.use_normalization_before_and_after
    if after and OUTPUT_HOOKS[model.original_feature_output_hook]:
        norms = replace(norms, output=_norm(model, layer, "ln2_post", seen))
    return norms


def attention_norms(
    model: Any, layer: int, seen: dict[str, torch.Tensor], n_pos: int
) -> LayerNorms:
    """The same where features are in the residual stream itself: of any HookedTransformer."""
    identity = FrozenNorm.identity(n_pos, model.W_E.device)
    after = model.cfg.use_normalization_before_and_after
    return LayerNorms(
        before_attention=_norm(model, layer, "ln1", seen),
        after_attention=_norm(model, layer, "ln1_post", seen) if after else identity,
        input=identity,
        output=identity,
    )


def _norm(
    model: Any, layer: int, name: str, seen: dict[str, torch.Tensor], *, weighted: bool = True
) -> FrozenNorm:
    scale = seen[f"blocks.{layer}.{name}.hook_scale"]
    return FrozenNorm.of(getattr(model.blocks[layer], name), scale, weighted=weighted)


def freeze_attention(attn: Any, pattern: torch.Tensor, norms: LayerNorms) -> FrozenAttention:
    """Fold a layer's norms into its attention's weights and pattern (n_heads, n_pos, n_pos)."""
    W_V = attn._W_V if isinstance(attn, GroupedQueryAttention) else attn.W_V
    to_scale = norms.after_attention.inverse_scale[:, None]
    from_scale = norms.before_attention.inverse_scale[None, :]
    scaled = pattern.float() * to_scale * from_scale
    window = attn.cfg.window_size if attn.attn_type == "local" else None
    return FrozenAttention(
        writes=norms.after_attention.forward(attn.W_O.flatten(0, 1)),
        pattern=FrozenPattern.of(scaled.unflatten(0, (W_V.shape[0], -1)), window),
        reads=norms.before_attention.backward(W_V.transpose(1, 2).flatten(0, 1)),
    )


def freeze_skip(W_skip: torch.Tensor | None, norms: LayerNorms) -> FrozenSkip | None:
    """Fold the norms between a skip connection and the residual stream into its weights."""
    if W_skip is None:
        return None
    weight = norms.input.backward(norms.output.forward(W_skip.float().T).T)
    scale = norms.output.inverse_scale * norms.input.inverse_scale
    return FrozenSkip(weight, scale[:, None])
