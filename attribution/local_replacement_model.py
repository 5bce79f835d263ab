"""The local replacement model of one prompt: the model with everything nonlinear held still.

Ameisen et al. 2025, *Circuit Tracing*, "From Cross-Layer Transcoder to Replacement Model": on one
prompt, with attention patterns and normalisation scales as they were and each MLP replaced by its
active features and an error, everything between features is linear in the residual stream. This
module runs the model once and keeps just that linear part, with all norms folded in:

- each layer's attention is three matrices: what its heads write, their patterns, what they read;
- what a node writes (decoder, error or embedding vector) and what a target reads (encoder or
  logit vector) are directions of the residual stream itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from transformer_lens.components import Attention, GroupedQueryAttention

from attribution.norms import SUPPORTED_NORMS, FrozenNorm


@dataclass(frozen=True)
class FrozenAttention:
    """A layer's attention, linear once its pattern is fixed. Heads that share a value are a group.

    `writes` takes a gradient at the layer's output to its heads' results, `pattern` (with the
    norms' scales) back to the positions they came from, `reads` to the residual stream before.
    """

    writes: torch.Tensor  # (n_heads * d_head, d_model)
    pattern: torch.Tensor  # (n_values, n_pos from, n_heads / n_values, n_pos to)
    reads: torch.Tensor  # (n_values * d_head, d_model)


@dataclass(frozen=True)
class FrozenSkip:
    """A transcoder's skip connection: `gradient += scale_p * (gradient @ weight)`."""

    weight: torch.Tensor  # (d_model, d_model)
    scale: torch.Tensor  # (n_pos, 1)


@dataclass(frozen=True)
class LocalReplacementModel:
    """What attribution needs to know of a prompt. Vectors are directions of the residual stream.

    Active features are sorted by layer, position and feature index, so those of one layer and
    position are a slice: `group(layer, position)`.
    """

    attention: list[FrozenAttention]
    skips: list[FrozenSkip | None]
    active: torch.Tensor  # sparse (n_layers, n_pos, d_transcoder), the activations
    feature_reads: torch.Tensor  # (n_active, d_model), encoder vectors
    # Each layer's decoder vectors times activations: (n_active in the layer, layers written to,
    # d_model); a per-layer transcoder writes to its own layer, a cross-layer one to all from there.
    feature_writes: list[torch.Tensor]
    errors: torch.Tensor  # (n_layers, n_pos, d_model)
    tokens: torch.Tensor  # (n_pos, d_model)
    final_norm: FrozenNorm
    logits: torch.Tensor  # (d_vocab,) of the last position
    group_starts: list[int]  # n_layers * n_pos + 1 offsets into the active features

    @property
    def n_layers(self) -> int:
        return len(self.attention)

    @property
    def n_pos(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_active(self) -> int:
        return self.feature_reads.shape[0]

    @property
    def is_cross_layer(self) -> bool:
        return any(writes.shape[1] > 1 for writes in self.feature_writes)

    @property
    def n_sources(self) -> int:
        """Nodes an edge can start from: active features, errors (layer major), tokens."""
        return self.n_active + (self.n_layers + 1) * self.n_pos

    def group(self, layer: int, position: int) -> slice:
        i = layer * self.n_pos + position
        return slice(self.group_starts[i], self.group_starts[i + 1])

    def logit_reads(self, vectors: torch.Tensor) -> torch.Tensor:
        """Move logit vectors (n, d_model) from behind the final norm to the residual stream."""
        return self.final_norm.backward(vectors) * self.final_norm.inverse_scale[-1]


def unsupported(model: Any) -> str | None:
    """Why this replacement model's linear part is not the one built here; None if it is."""
    if getattr(model, "backend", None) != "transformerlens":
        return "not a TransformerLens model"
    cfg = model.cfg
    if not isinstance(model.transcoders, TranscoderSet | CrossLayerTranscoder):
        return f"transcoders of type {type(model.transcoders).__name__}"
    if model.feature_input_hook not in _INPUT_NORMS:
        return f"features read at {model.feature_input_hook}"
    if model.original_feature_output_hook not in _OUTPUT_HOOKS:
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


# Where features read, as (through the second norm, with its weight).
_INPUT_NORMS = {
    "hook_resid_mid": (False, False),
    "ln2.hook_normalized": (True, False),
    "mlp.hook_in": (True, True),
}
_OUTPUT_HOOKS = ("hook_mlp_out", "mlp.hook_out")


@torch.no_grad()
def build_local_replacement_model(model: Any, tokens: torch.Tensor) -> LocalReplacementModel:
    """Run `model` on `tokens` (n_pos,) once and keep its linear part.

    `model` must not be `unsupported`. It is left as it came.
    """
    logits, seen = _run_and_record(model, tokens)
    n_layers, n_pos = model.cfg.n_layers, len(tokens)

    def stacked(hook: str) -> torch.Tensor:
        return torch.cat([seen[f"blocks.{layer}.{hook}"] for layer in range(n_layers)])

    found = model.transcoders.compute_attribution_components(
        stacked(model.feature_input_hook), model.zero_positions
    )
    errors = stacked(model.feature_output_hook) - found["reconstruction"]
    errors[:, model.zero_positions] = 0

    norms = [_layer_norms(model, layer, seen, n_pos) for layer in range(n_layers)]
    active = found["activation_matrix"]
    layer_of, position_of, _ = active.indices()
    group_sizes = torch.bincount(layer_of * n_pos + position_of, minlength=n_layers * n_pos)
    group_starts = [0, *group_sizes.cumsum(0).tolist()]
    in_layer = [
        slice(group_starts[layer * n_pos], group_starts[(layer + 1) * n_pos])
        for layer in range(n_layers)
    ]
    reads, writes = found["encoder_vecs"], _split_by_layer(found["decoder_vecs"], in_layer)
    for layer, mine in enumerate(in_layer):
        positions = position_of[mine]
        reads[mine] = _scaled(
            norms[layer].input.backward(reads[mine]), norms[layer].input, positions
        )
        for i in range(writes[layer].shape[1]):
            output = norms[layer + i].output
            writes[layer][:, i] = _scaled(output.forward(writes[layer][:, i]), output, positions)
        output = norms[layer].output
        errors[layer] = _scaled(output.forward(errors[layer]), output)

    blocks = zip(model.blocks, norms, strict=True)
    return LocalReplacementModel(
        attention=[
            _freeze_attention(block.attn, seen[block.attn.hook_pattern.name][0], norm)
            for block, norm in blocks
        ],
        skips=_freeze_skips(model.transcoders, norms),
        active=active,
        feature_reads=reads,
        feature_writes=writes,
        errors=errors,
        tokens=model.W_E[tokens].detach(),
        final_norm=FrozenNorm.of(model.ln_final, seen["ln_final.hook_scale"]),
        logits=logits[0, -1],
        group_starts=group_starts,
    )


def _run_and_record(
    model: Any, tokens: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits (1, n_pos, d_vocab) and the activations, by hook name, that freezing needs."""
    seen: dict[str, torch.Tensor] = {}

    def record(activation: torch.Tensor, hook: Any) -> None:
        seen[hook.name] = activation.detach()

    norms = ("ln1", "ln1_post", "ln2", "ln2_post")
    wanted = {model.feature_input_hook, model.feature_output_hook, "attn.hook_pattern"}
    wanted |= {f"{norm}.hook_scale" for norm in norms}
    names = ["ln_final.hook_scale"]
    names += [
        name for name in model.hook_dict if name.partition(".")[2].partition(".")[2] in wanted
    ]
    with model.hooks(fwd_hooks=[(name, record) for name in names]):
        logits = model(tokens)
    return logits, seen


@dataclass(frozen=True)
class _LayerNorms:
    """The frozen norms that influence passes in a layer, identities where there is none."""

    before_attention: FrozenNorm
    after_attention: FrozenNorm
    input: FrozenNorm  # from the residual stream to where features read
    output: FrozenNorm  # from where features write to the residual stream


def _layer_norms(model: Any, layer: int, seen: dict[str, torch.Tensor], n_pos: int) -> _LayerNorms:
    block = model.blocks[layer]
    identity = FrozenNorm.identity(n_pos, model.W_E.device)
    after = model.cfg.use_normalization_before_and_after

    def norm(name: str, weighted: bool = True) -> FrozenNorm:
        scale = seen[f"blocks.{layer}.{name}.hook_scale"]
        return FrozenNorm.of(getattr(block, name), scale, weighted=weighted)

    through_norm, weighted = _INPUT_NORMS[model.feature_input_hook]
    writes_before_norm = after and model.original_feature_output_hook == "mlp.hook_out"
    return _LayerNorms(
        before_attention=norm("ln1"),
        after_attention=norm("ln1_post") if after else identity,
        input=norm("ln2", weighted) if through_norm else identity,
        output=norm("ln2_post") if writes_before_norm else identity,
    )


def _scaled(
    vectors: torch.Tensor, norm: FrozenNorm, positions: torch.Tensor | slice = slice(None)
) -> torch.Tensor:
    """Vectors (n, d_model) at `positions`, times the norm's inverse scale there."""
    return (vectors * norm.inverse_scale[positions, None]).to(vectors.dtype)


def _split_by_layer(decoders: torch.Tensor, in_layer: list[slice]) -> list[torch.Tensor]:
    """Split decoder vectors into (n_active in the layer, layers written to, d_model) a layer."""
    n_layers, n_active = len(in_layer), in_layer[-1].stop
    cross_layer = len(decoders) != n_active
    blocks, start = [], 0
    for layer, mine in enumerate(in_layer):
        n_written = n_layers - layer if cross_layer else 1
        end = start + (mine.stop - mine.start) * n_written
        blocks.append(decoders[start:end].view(-1, n_written, decoders.shape[1]))
        start = end
    return blocks


def _freeze_attention(attn: Any, pattern: torch.Tensor, norms: _LayerNorms) -> FrozenAttention:
    """Fold a layer's norms into its attention's weights and pattern (n_heads, n_pos, n_pos)."""
    W_V = attn._W_V if isinstance(attn, GroupedQueryAttention) else attn.W_V
    n_heads, n_pos, _ = pattern.shape
    n_values = W_V.shape[0]
    to_scale = norms.after_attention.inverse_scale[:, None]
    from_scale = norms.before_attention.inverse_scale[None, :]
    scaled = (pattern.float() * to_scale * from_scale).to(W_V.dtype)
    return FrozenAttention(
        writes=norms.after_attention.forward(attn.W_O.flatten(0, 1)),
        pattern=scaled.view(n_values, n_heads // n_values, n_pos, n_pos)
        .permute(0, 3, 1, 2)
        .contiguous(),
        reads=norms.before_attention.backward(W_V.transpose(1, 2).flatten(0, 1)),
    )


def _freeze_skips(transcoders: Any, norms: list[_LayerNorms]) -> list[FrozenSkip | None]:
    """Fold the norms between a skip connection and the residual stream into its weights."""
    if not transcoders.skip_connection:
        return [None] * len(norms)
    skips: list[FrozenSkip | None] = []
    for layer, norm in enumerate(norms):
        if isinstance(transcoders, CrossLayerTranscoder):
            W_skip = transcoders.W_skip[layer].T  # (d_model written, d_model read)
        else:
            W_skip = transcoders[layer].W_skip
        weight = norm.input.backward(norm.output.forward(W_skip.T).T)
        scale = norm.output.inverse_scale * norm.input.inverse_scale
        skips.append(FrozenSkip(weight, scale[:, None]))
    return skips
