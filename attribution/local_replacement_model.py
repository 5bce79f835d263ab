"""The local replacement model of one prompt: the model with everything nonlinear held still.

Ameisen et al. 2025, *Circuit Tracing*, "The Local Replacement Model": on one prompt, with attention
patterns and normalisation scales as they were and each MLP replaced by its active features and an
error, everything between features is linear in the residual stream. Only that linear part is kept,
with all norms folded in:

- each layer's attention is three matrices: what its heads write, their patterns, what they read;
- what a node writes (decoder, error or embedding vector) and what a target reads (encoder or
  logit vector) are directions of the residual stream itself.

What takes much memory is in the model's dtype, the rest in float32 (`attribution.precision`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attribution.features import ActiveFeatures
from attribution.memory import Shape
from attribution.norms import FrozenNorm, FrozenNorms
from attribution.patterns import FrozenPattern


@dataclass(frozen=True)
class FrozenAttention:
    """A layer's attention, linear once its pattern is fixed.

    `writes` takes a gradient at the layer's output to its heads' results, `pattern` (with the
    norms' scales) back to the positions they came from, `reads` to the residual stream before.
    """

    writes: torch.Tensor  # (n_heads * d_head, d_model), the model's dtype
    pattern: FrozenPattern
    reads: torch.Tensor  # (n_values * d_head, d_model), the model's dtype


@dataclass(frozen=True)
class FrozenSkip:
    """A transcoder's skip connection: `gradient += scale_p * (gradient @ weight)`."""

    weight: torch.Tensor  # (d_model, d_model) float32
    scale: torch.Tensor  # (n_pos, 1) float32


@dataclass(frozen=True)
class LocalReplacementModel:
    """What attribution needs to know of a prompt. Vectors are directions of the residual stream."""

    attention: list[FrozenAttention]
    skips: list[FrozenSkip | None]
    features: ActiveFeatures  # their writes moved to the residual stream
    input_norms: FrozenNorms  # from the residual stream to where features read
    errors: torch.Tensor  # (n_layers, n_pos, d_model) float32
    tokens: torch.Tensor  # (n_pos, d_model) float32
    final_norm: FrozenNorm
    logits: torch.Tensor  # (d_vocab,) of the last position, the model's dtype

    @property
    def n_layers(self) -> int:
        return len(self.attention)

    @property
    def n_pos(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_active(self) -> int:
        return self.features.group_starts[-1]

    @property
    def is_cross_layer(self) -> bool:
        return any(w.decoders.shape[-1] > self.tokens.shape[1] for w in self.features.writes)

    @property
    def n_sources(self) -> int:
        """Nodes an edge can start from: active features, errors (layer major), tokens."""
        return self.n_active + (self.n_layers + 1) * self.n_pos

    @property
    def shape(self) -> Shape:
        """What a sweep's memory follows from."""
        attention, weights = self.attention[0], self.attention[0].writes
        kept = sum(writes.n_kept for writes in self.features.writes)
        return Shape(
            n_layers=self.n_layers,
            n_pos=self.n_pos,
            d_model=self.tokens.shape[1],
            d_results=weights.shape[0],
            d_values=attention.reads.shape[0],
            n_active=self.n_active,
            number=weights.element_size(),
            on_cuda=weights.device.type == "cuda",
            bfloat16=weights.dtype == torch.bfloat16,
            cross_layer=self.is_cross_layer,
            skip=self.skips[0] is not None,
            padding=kept / max(1, self.n_active),
        )

    def feature_reads(self, layers: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """What features (n,) read, (n, d_model) float32.

        Args:
            layers: (n,) the layer of each, on the CPU, descending.
        """
        layer_of, positions, _ = self.features.activations.indices()[:, features]
        vectors = self.features.encoder_vectors(layers, features)
        return self.input_norms.backward(vectors, layer_of, positions)

    def logit_reads(self, vectors: torch.Tensor) -> torch.Tensor:
        """Move logit vectors (n, d_model) from behind the final norm to the residual stream.

        Both are float32.
        """
        return self.final_norm.scaled(self.final_norm.backward(vectors), slice(-1, None))
