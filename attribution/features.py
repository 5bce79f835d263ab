"""The active features of a prompt: what each reads, and what it writes into the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from torch.nn.functional import linear

from attribution.contraction import FeatureWrites, arranged
from attribution.precision import product


@dataclass(frozen=True)
class ActiveFeatures:
    """Features in the order of layer, position and index, as circuit-tracer has them."""

    activations: torch.Tensor  # sparse (n_layers, n_pos, d_transcoder)
    # For each layer the transcoder's own encoder (d_transcoder, d_model), or, where it is read from
    # a file, the encoder vectors of the active features alone.
    encoders: list[torch.Tensor]
    encoders_are_active: bool
    # Decoder vectors times activations, moved to the residual stream, in the model's dtype. A
    # per-layer transcoder writes to its own layer, a cross-layer one to all from there.
    writes: list[FeatureWrites]
    group_starts: list[int]  # n_layers * n_pos + 1 offsets: features of one layer and position

    def in_layer(self, layer: int) -> slice:
        n_pos = self.activations.shape[1]
        return slice(self.group_starts[layer * n_pos], self.group_starts[(layer + 1) * n_pos])

    def encoder_vectors(self, layers: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The encoder vectors (n, d_model), float32, of active features (n,).

        Args:
            layers: (n,) the layer of each, on the CPU, descending.
        """
        indices = self.activations.indices()[2, features]
        vectors = features.new_empty(len(features), self.encoders[0].shape[1], dtype=torch.float32)
        start = 0
        for layer, n in zip(*layers.unique_consecutive(return_counts=True), strict=True):
            at = slice(start, start + int(n))
            if self.encoders_are_active:
                vectors[at] = self.encoders[layer][features[at] - self.in_layer(layer).start]
            else:
                vectors[at] = self.encoders[layer][indices[at]]
            start += int(n)
        return vectors


# (layer, vectors (n, d_model) float32, positions (n,)) -> what they add to the residual stream.
MoveToStream = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def find_active_features(
    transcoders: Any, inputs: torch.Tensor, zero_positions: slice, to_stream: MoveToStream
) -> tuple[ActiveFeatures, torch.Tensor]:
    """Encode `inputs` (n_layers, n_pos, d_model); return features and their reconstruction.

    The activations are those of circuit-tracer's `compute_attribution_components`, in the
    transcoders' dtype. The reconstruction (n_layers, n_pos, d_model), before `to_stream`, is
    summed in float32; what is kept of a feature is rounded to the transcoders' dtype once.
    """
    n_layers, n_pos, _ = inputs.shape
    reconstruction = torch.zeros_like(inputs, dtype=torch.float32)
    sparse, encoders = [], []
    decoders: list[torch.Tensor] = []
    lazy = _is_lazy(transcoders, "lazy_encoder")
    for layer in range(n_layers):
        activations, W_enc = _encode(transcoders, layer, inputs[layer])
        activations[zero_positions] = 0
        sparse.append(activations.to_sparse())
        positions, features = sparse[-1].indices()
        encoders.append(W_enc[features] if lazy else W_enc)
        written = _decoders(transcoders, layer, features)
        n_active = activations.count_nonzero(1)
        for i in range(written.shape[1]):
            # Of the decoder vectors in `written` one layer at a time is widened.
            vectors = written[:, i] * sparse[-1].values().float()[:, None]
            reconstruction[layer + i] += _sum_by_position(vectors, n_active)
            written[:, i] = to_stream(layer + i, vectors, positions)
        decoders.append(written)
        reconstruction[layer] += _offset(transcoders, layer, inputs[layer])

    active = torch.stack(sparse).coalesce()
    layer_of, position_of, _ = active.indices()
    sizes = torch.bincount(layer_of * n_pos + position_of, minlength=n_layers * n_pos).tolist()
    group_starts = list(accumulate(sizes, initial=0))
    writes = []
    for layer in range(n_layers):  # one after the other, as padding takes a copy
        writes.append(arranged(decoders.pop(0), sizes[layer * n_pos : (layer + 1) * n_pos]))
    return ActiveFeatures(active, encoders, lazy, writes, group_starts), reconstruction


def _sum_by_position(vectors: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Sums (n_pos, d) of vectors (n, d) that are sorted by position, `sizes` (n_pos,) of each.

    Always in the same order, which `index_add_` on a CUDA device is not.
    """
    return torch.segment_reduce(vectors, "sum", lengths=sizes, axis=0, initial=0, unsafe=True)


def _encode(
    transcoders: Any, layer: int, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (n_pos, d_transcoder), and the encoder, which may come from a file, once.

    Inputs behind a norm are float32 whatever the model's dtype; encoders take their own.
    """
    if isinstance(transcoders, CrossLayerTranscoder):
        W_enc = transcoders._get_encoder_weights(layer)
        before = linear(inputs.to(W_enc.dtype), W_enc) + transcoders.b_enc[layer]
        return transcoders.apply_activation_function(layer, before), W_enc
    transcoder = transcoders[layer]
    W_enc = transcoder.W_enc
    before = linear(inputs.to(W_enc.dtype), W_enc, transcoder.b_enc)
    return transcoder.activation_function(before), W_enc


def _decoders(transcoders: Any, layer: int, features: torch.Tensor) -> torch.Tensor:
    """Decoder vectors (n, layers written to, d_model), in memory of their own.

    circuit-tracer has no public name for some rows of a decoder that is read from a file: `W_dec`
    reads the whole file, and `select_decoder_vectors` multiplies by activations and rounds.
    """
    if _is_lazy(transcoders, "lazy_decoder"):
        unique, inverse = features.unique(return_inverse=True)
        vectors = transcoders._get_decoder_vectors(layer, unique.cpu())[inverse]
    else:
        vectors = transcoders._get_decoder_vectors(layer, features)
    return vectors if vectors.ndim == 3 else vectors[:, None]


def _is_lazy(transcoders: Any, part: str) -> bool:
    """Whether `part` ("lazy_encoder" or "lazy_decoder") is read from files when needed."""
    if isinstance(transcoders, CrossLayerTranscoder):
        return bool(getattr(transcoders, part))
    return any(getattr(transcoder, part) for transcoder in transcoders)


def _offset(transcoders: Any, layer: int, inputs: torch.Tensor) -> torch.Tensor:
    """What a layer's transcoder writes without any feature: its bias and its skip connection."""
    if isinstance(transcoders, CrossLayerTranscoder):
        bias = transcoders.b_dec[layer]
    else:
        bias = transcoders[layer].b_dec
    if not transcoders.skip_connection:
        return bias
    return bias + product(inputs, skip_weights(transcoders, layer).T)


def skip_weights(transcoders: Any, layer: int) -> torch.Tensor:
    """The skip connection of a layer, (d_model written, d_model read)."""
    if isinstance(transcoders, CrossLayerTranscoder):
        return transcoders.W_skip[layer].T
    return transcoders[layer].W_skip
