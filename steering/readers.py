"""Reading single features, of which only those asked for are computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from attribution.transcoder_layer import TranscoderLayer

# The longest vector that a feature may write. Norms sum squares in float32: where what they read is
# longer than 2e19, the sum is infinite and what they give is 0, which is finite and wrong. At a
# position the vectors of ten thousand features may add up.
_LONGEST_WRITTEN = 1e15

# A layer, a position, an index. Layers are those of the transcoders; in a complete replacement
# model they are its sublayers: 2l is the attention of layer l, 2l + 1 its MLP.
Feature = tuple[int, int, int]


class FeatureReader(Protocol):
    """The activations of distinct features of one layer, in the passes of a model."""

    at: Places  # positions are those of a pass
    # Whether features read earlier positions too: `begin` is told of those before the first call.
    reads_earlier: ClassVar[bool] = False

    def __call__(self, acts: Tensor, *, first_patterns: bool = False) -> Tensor:
        """Each row's activations, (n_rows, n_features) float32.

        Args:
            acts: the layer's feature input, (n_rows, n_positions, d_model).
            first_patterns: features of attention attend in every row as they do in the first.
        """

    def decoders(self) -> Tensor:
        """What the features of each distinct index write, (n_layers_written, n_indices, d_model).

        `at.column` says which of them a feature is.
        """

    def begin(self, acts: Tensor) -> None:  # noqa: ARG002 - most read their own position alone
        """Take in the last row of a text, which the calls go on with one after another."""
        return


def longest_written(decoders: Tensor) -> Tensor:
    """The length of the longest vector that a unit of each feature writes, (n_features,) float32.

    Args:
        decoders: (n_layers_written, n_features, d_model).
    """
    return torch.linalg.vector_norm(decoders, dim=-1, dtype=torch.float32).amax(0)


def without_too_large(values: Tensor, lengths: Tensor) -> Tensor:
    """The activations, with infinity for those with which a feature writes more than norms take.

    What is infinite spreads to the logits, which are checked.

    Args:
        values: (..., n_features) float32; NaN stays.
        lengths: of each feature, `longest_written`.
    """
    return values.masked_fill(values.abs() * lengths > _LONGEST_WRITTEN, torch.inf)


class Places:
    """Where distinct features of a layer are: `positions[row]` and `indices[column]`."""

    def __init__(self, features: Sequence[Feature], device: Any) -> None:
        layers, positions, indices = zip(*features, strict=True)
        self.layer: int = layers[0]
        self.positions, self.row = _distinct(positions, device)
        self.indices, self.column = _distinct(indices, device)

    @property
    def of_features(self) -> Tensor:
        """The position of each feature, (n_features,)."""
        return self.positions[self.row]


class TranscoderReader(FeatureReader):
    """Features of circuit-tracer's transcoders, of either kind."""

    def __init__(
        self,
        transcoders: Any,
        features: Sequence[Feature],
        silent: Collection[int],
        device: Any,
    ) -> None:
        self.at = at = Places(features, device)
        self._layer = TranscoderLayer(transcoders, at.layer)
        self._silent = torch.tensor([position in silent for _, position, _ in features]).to(device)
        self._encode = self._layer.encoder(at.indices)

    def __call__(self, acts: Tensor, *, first_patterns: bool = False) -> Tensor:  # noqa: ARG002 - of attention it has none
        at, inputs = self.at, acts[:, self.at.positions]
        # At each row and position, of each index.
        activations = self._encode(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        return activations[:, at.row, at.column].float().masked_fill(self._silent, 0)

    def decoders(self) -> Tensor:
        return self._layer.decoders(self.at.indices)


def _distinct(values: Sequence[int], device: Any) -> tuple[Tensor, Tensor]:
    """The distinct values, and for each value which of them it is."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    which = [numbers[value] for value in values]
    return torch.tensor(list(numbers), device=device), torch.tensor(which, device=device)
