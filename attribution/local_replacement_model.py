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
from functools import cached_property

import torch

from attribution.features import ActiveFeatures
from attribution.memory import Shape
from attribution.norms import FrozenNorm
from attribution.patterns import FrozenPattern
from attribution.precision import operand_dtype


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
    input_norms: FrozenNorm  # stacked, from the residual stream to where features read
    errors: torch.Tensor  # (n_layers, n_pos, d_model) float32
    tokens: torch.Tensor  # (n_pos, d_model) float32
    final_norm: FrozenNorm
    logits: torch.Tensor  # (d_vocab,) of the last position, the model's dtype

    @cached_property
    def shape(self) -> Shape:
        """Its numbers, from which a sweep's memory follows."""
        weights, n_active = self.attention[0].writes, self.features.group_starts[-1]
        n_pos, d_model = self.tokens.shape
        decoders = [writes.decoders for writes in self.features.writes]
        return Shape(
            n_layers=len(self.attention),
            n_pos=n_pos,
            d_model=d_model,
            d_results=weights.shape[0],
            d_values=self.attention[0].reads.shape[0],
            n_active=n_active,
            on_cuda=weights.device.type == "cuda",
            gradient=operand_dtype(weights).itemsize,
            cross_layer=any(vectors.shape[-1] > d_model for vectors in decoders),
            skip=self.skips[0] is not None,
            padding=sum(v.shape[:-1].numel() for v in decoders) / max(1, n_active),
        )

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @cached_property
    def feature_layers(self) -> torch.Tensor:
        """The layer (n_active,) of each active feature, on the CPU."""
        return self.features.activations.indices()[0].cpu()

    @cached_property
    def feature_positions(self) -> torch.Tensor:
        """The position (n_active,) of each active feature, on the CPU."""
        return self.features.activations.indices()[1].cpu()

    @cached_property
    def before_layer(self) -> torch.Tensor:
        """How many active features are below each layer (n_layers + 1,), on the CPU."""
        return torch.tensor(self.features.group_starts[:: len(self.tokens)])

    def feature_reads(self, layers: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """What features (n,) read, (n, d_model) float32.

        Args:
            layers: (n,) the layer of each, on the CPU, descending.
        """
        layer_of, positions, _ = self.features.activations.indices()[:, features]
        vectors = self.features.encoder_vectors(layers, features)
        norms = self.input_norms.select(layer_of, positions)
        return norms.scaled(norms.backward(vectors))

    def logit_reads(self, vectors: torch.Tensor) -> torch.Tensor:
        """Move logit vectors (n, d_model) from behind the final norm to the residual stream.

        Both are float32.
        """
        return self.final_norm.scaled(self.final_norm.backward(vectors), slice(-1, None))
