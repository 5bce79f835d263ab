"""Reading single features, of which only those asked for are computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from attribution.transcoder_layer import TranscoderLayer

# A layer, a position, an index. Layers are those of the transcoders; in a complete replacement
# model they are its sublayers: 2l is the attention of layer l, 2l + 1 its MLP.
Feature = tuple[int, int, int]


class FeatureReader(Protocol):
    """The activations of distinct features of one layer.

    `positions`, (n_features,), are the features' positions in the pass.
    """

    positions: Tensor
    # Whether features read earlier positions too: `begin` is told of those before the first call.
    reads_earlier: ClassVar[bool] = False

    def __call__(self, acts: Tensor) -> Tensor:
        """The last row's activations, (n_features,) float32.

        Args:
            acts: the layer's feature input, (n_rows, n_positions, d_model).
        """

    def decoders(self) -> Tensor:
        """What each feature writes, (n_layers_written, n_features, d_model)."""

    def begin(self, acts: Tensor) -> None:  # noqa: ARG002 - most read their own position alone
        """Take in the feature input of a text, which the calls go on with one after another."""
        return


class Places:
    """Where distinct features of a layer are: `positions[row]` and `indices[column]`."""

    def __init__(self, features: Sequence[Feature], device: Any) -> None:
        layers, positions, indices = zip(*features, strict=True)
        self.layer: int = layers[0]
        self.positions, self.row = _distinct(positions, device)
        self.indices, self.column = _distinct(indices, device)


class TranscoderReader(FeatureReader):
    """Features of circuit-tracer's transcoders, of either kind."""

    def __init__(
        self,
        transcoders: Any,
        features: Sequence[Feature],
        silent: Collection[int],
        device: Any,
    ) -> None:
        self._at = at = Places(features, device)
        self._layer = TranscoderLayer(transcoders, at.layer)
        self._silent = torch.tensor([position in silent for _, position, _ in features]).to(device)
        self._encode = self._layer.encoder(at.indices)
        self.positions = at.positions[at.row]

    def __call__(self, acts: Tensor) -> Tensor:
        at = self._at
        activations = self._encode(acts[-1, at.positions])  # at each position, of each index
        return activations[at.row, at.column].float().masked_fill(self._silent, 0)

    def decoders(self) -> Tensor:
        return self._layer.decoders(self._at.indices)[:, self._at.column]


def _distinct(values: Sequence[int], device: Any) -> tuple[Tensor, Tensor]:
    """The distinct values, and for each value which of them it is."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    which = [numbers[value] for value in values]
    return torch.tensor(list(numbers), device=device), torch.tensor(which, device=device)
