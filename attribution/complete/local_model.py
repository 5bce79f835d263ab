"""The local replacement model of one prompt where attention is replaced too: sources and reads.

With attention patterns and all scales held still, the residual stream before a sublayer is the sum
of what the sources below it wrote there: the embedding, and of each lower sublayer its active
features, its error and its bias. What a target reads of the stream is a vector, and how much it
reads at each position a weight. Everything here is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attribution.complete.modules import Attention, CompleteModel
from attribution.memory import Shape


@dataclass(frozen=True)
class Reads:
    """What targets read: a direction of the residual stream, and a weight for each position."""

    vectors: Tensor  # (n, d_model) float32
    weights: Tensor  # (n, n_pos) float32

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, at: slice) -> Reads:
        return Reads(self.vectors[at], self.weights[at])


@dataclass(frozen=True)
class Sources:
    """What writes to the residual stream, sorted by position and at each by sublayer.

    Columns of the attribution matrix have another order: features by sublayer and position, then
    errors by sublayer and position, then tokens.
    """

    vectors: Tensor  # (n_sources, d_model) float32
    positions: Tensor  # (n_sources,) int64
    sublayers: Tensor  # (n_sources,) int64, -1 of tokens
    of_columns: Tensor  # (n_sources,) int64: the source of each column
    # (n_pos, n_sublayers + 2) int64, on the CPU: where those of a position begin, then where those
    # end that are below each sublayer, and below the logits.
    starts: Tensor

    def below(self, position: int, sublayer: int) -> slice:
        """The sources at a position that are below a sublayer."""
        return slice(int(self.starts[position, 0]), int(self.starts[position, sublayer + 1]))


@dataclass(frozen=True)
class LocalCompleteModel:
    """What attribution needs to know of a prompt."""

    model: CompleteModel
    tokens: Tensor  # (n_pos,) int64
    logits: Tensor  # (d_vocab,) of the last position, the model's dtype
    sources: Sources
    # Active features, sorted by sublayer, position and index.
    active_features: Tensor  # (n_active, 3) int64
    activation_values: Tensor  # (n_active,) float32
    gates: Tensor | None  # (2, n_active) float32: the factors of W_E and W_E_glu in what is read
    attention: Sequence[Attention]  # by layer
    inverse_scales: Tensor  # (n_sublayers, n_pos) float32 of the norms before the sublayers
    final_weight: Tensor  # (d_model,) float32: the last norm's gain over its scale at the end

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @cached_property
    def shape(self) -> Shape:
        """Its numbers; a sublayer stands for a layer."""
        return Shape(
            n_layers=len(self.inverse_scales),
            n_pos=len(self.tokens),
            d_model=self.sources.vectors.shape[1],
            d_results=0,
            d_values=0,
            n_active=len(self.active_features),
            on_cuda=self.device.type == "cuda",
        )

    @cached_property
    def feature_layers(self) -> Tensor:
        """The sublayer (n_active,) of each active feature, on the CPU."""
        return self.active_features[:, 0].cpu()

    @cached_property
    def feature_positions(self) -> Tensor:
        """The position (n_active,) of each active feature, on the CPU."""
        return self.active_features[:, 1].cpu()

    @cached_property
    def before_layer(self) -> Tensor:
        """How many active features are below each sublayer (n_sublayers + 1,), on the CPU."""
        layers = torch.arange(self.shape.n_layers + 1)
        return torch.searchsorted(self.feature_layers.contiguous(), layers)

    @cached_property
    def decoder_biases(self) -> Tensor:
        """What each module's decoder adds at every position: (n_sublayers, d_model) float32."""
        sublayers = range(self.shape.n_layers)
        return torch.stack([self.model.module(sublayer).b_D.float() for sublayer in sublayers])

    @cached_property
    def _patterns(self) -> Tensor:
        """How much of the stream at each position a head reads: (n_layers, n_qk, n_pos, n_pos)."""
        patterns = torch.stack([attention.pattern for attention in self.attention])
        return patterns * self.inverse_scales[::2, None, None, :]

    def feature_reads(self, layers: Tensor, features: Tensor) -> Reads:
        """What active features (n,) read.

        Args:
            layers: (n,) the sublayer of each, on the CPU, descending.
        """
        sublayers, positions, indices = self.active_features[features].T
        runs = [
            (int(sublayer), part)
            for sublayer, part in zip(
                layers.unique_consecutive(), _runs(layers, indices), strict=True
            )
        ]
        modules = [self.model.module(sublayer) for sublayer, _ in runs]
        own = [module.reads[part] for module, (_, part) in zip(modules, runs, strict=True)]
        vectors = torch.cat(own).float()
        if self.gates is not None:
            gated = [
                torch.zeros_like(rows) if module.gate_reads is None else module.gate_reads[part]
                for rows, module, (_, part) in zip(own, modules, runs, strict=True)
            ]
            by_value, by_gate = self.gates[:, features, None]
            vectors = vectors * by_value + torch.cat(gated).float() * by_gate
        grouped = torch.tensor([lorsa.n_grouped for lorsa in self.model.lorsas]).to(self.device)
        layer = sublayers // 2
        head = (indices // grouped[layer]).clamp(max=self._patterns.shape[1] - 1)
        attended = self._patterns[layer, head, positions]
        at = torch.zeros_like(attended).scatter_(
            1, positions[:, None], self.inverse_scales[sublayers, positions, None]
        )
        return Reads(vectors, torch.where((sublayers % 2 == 0)[:, None], attended, at))

    def logit_reads(self, vectors: Tensor) -> Reads:
        """What logits read, whose vectors (n, d_model) float32 are behind the final norm."""
        weights = vectors.new_zeros(len(vectors), self.shape.n_pos)
        weights[:, -1] = 1
        return Reads(vectors * self.final_weight, weights)


def _runs(layers: Tensor, values: Tensor) -> Sequence[Tensor]:
    """The parts of `values` (n,) that share a layer, in their order."""
    return values.split(layers.unique_consecutive(return_counts=True)[1].tolist())
