"""The active features of a prompt: what each reads, and what it writes into the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from attribution.contraction import FeatureWrites, arranged
from attribution.precision import product
from attribution.transcoder_layer import TranscoderLayer


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
    transcoders: Any,
    inputs: torch.Tensor,
    zero_positions: slice,
    to_stream: MoveToStream,
    check: Callable[[], None] = lambda: None,
) -> tuple[ActiveFeatures, torch.Tensor]:
    """Encode `inputs` (n_layers, n_pos, d_model); return features and their reconstruction.

    `check` is called before each layer's weights are read, and raises to stop.

    The activations are those of circuit-tracer's `compute_attribution_components`, in the
    transcoders' dtype. The reconstruction (n_layers, n_pos, d_model), before `to_stream`, is
    summed in float32; what is kept of a feature is rounded to the transcoders' dtype once.
    """
    n_layers, n_pos, _ = inputs.shape
    layers = [TranscoderLayer(transcoders, layer) for layer in range(n_layers)]
    lazy = any(transcoder.lazy_encoder for transcoder in layers)
    reconstruction = torch.zeros_like(inputs, dtype=torch.float32)
    sparse, encoders = [], []
    decoders: list[torch.Tensor] = []
    for layer, transcoder in enumerate(layers):
        check()
        W_enc = transcoder.rows("W_enc")
        activations = transcoder.encode(inputs[layer], W_enc)
        activations[zero_positions] = 0
        sparse.append(activations.to_sparse())
        positions, features = sparse[-1].indices()
        encoders.append(W_enc[features] if lazy else W_enc)
        written = transcoder.decoders(features)
        n_active = activations.count_nonzero(1)
        for to_layer, own in enumerate(written, start=layer):
            # Of the decoder vectors in `written` one layer at a time is widened.
            vectors = own * sparse[-1].values().float()[:, None]
            # Summed always in the same order, which `index_add_` on a CUDA device is not.
            reconstruction[to_layer] += torch.segment_reduce(
                vectors, "sum", lengths=n_active, axis=0, initial=0, unsafe=True
            )
            own.copy_(to_stream(to_layer, vectors, positions))
        decoders.append(written.transpose(0, 1))
        offset, W_skip = transcoder.b_dec, transcoder.skip
        if W_skip is not None:
            offset = offset + product(inputs[layer], W_skip.T)
        reconstruction[layer] += offset

    active = torch.stack(sparse).coalesce()
    layer_of, position_of, _ = active.indices()
    sizes = torch.bincount(layer_of * n_pos + position_of, minlength=n_layers * n_pos).tolist()
    group_starts = list(accumulate(sizes, initial=0))
    writes = []
    for layer in range(n_layers):  # one after the other, as padding takes a copy
        writes.append(arranged(decoders.pop(0), sizes[layer * n_pos : (layer + 1) * n_pos]))
    return ActiveFeatures(active, encoders, lazy, writes, group_starts), reconstruction
