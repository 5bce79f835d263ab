"""Edges from the features of one layer: gradients times decoder vectors, position by position.

Features of one position meet the same gradient, so their edges are one matrix product. On a CPU it
is written straight to the rows, a product a position. On a CUDA device, where a launch costs more
than a small product, all positions of a layer are one batched product, for which the positions
with fewer features are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from attribution.precision import batched_product, product


@dataclass(frozen=True)
class PositionGroups:
    """The decoder vectors of a layer's features, sorted by position."""

    decoders: torch.Tensor  # (n_features, layers written to * d_model)
    starts: Sequence[int]  # n_pos + 1 offsets

    def write_edges(self, gradients: torch.Tensor, rows: torch.Tensor) -> None:
        """Write edges to rows (n, n_features), for features at positions that gradients reach.

        Args:
            gradients: (n, positions from the first, layers written to * d_model).
        """
        for gradient, (start, end) in zip(gradients.unbind(1), pairwise(self.starts), strict=False):
            if start < end:
                product(gradient, self.decoders[start:end].T, out=rows[:, start:end])


@dataclass(frozen=True)
class PaddedPositions:
    """The same, padded with zeros to as many vectors at each position as the fullest has."""

    decoders: torch.Tensor  # (n_pos, most features of a position, layers written to * d_model)
    positions: torch.Tensor  # (n_features,)
    ranks: torch.Tensor  # (n_features,) each feature's number among those of its position
    starts: Sequence[int]

    def write_edges(self, gradients: torch.Tensor, rows: torch.Tensor) -> None:
        """As `PositionGroups.write_edges`."""
        n_pos = gradients.shape[1]
        n_reached = self.starts[n_pos]
        if not n_reached:
            return
        edges = batched_product(gradients.transpose(0, 1), self.decoders[:n_pos].transpose(1, 2))
        positions, ranks = self.positions[:n_reached], self.ranks[:n_reached]
        rows[:, :n_reached] = edges.transpose(0, 1)[:, positions, ranks]


FeatureWrites = PositionGroups | PaddedPositions


def arranged(decoders: torch.Tensor, sizes: Sequence[int]) -> FeatureWrites:
    """Arrange decoder vectors (n_features, layers written to, d_model) for their device.

    Args:
        decoders: sorted by position.
        sizes: how many features each position has.
    """
    starts = list(accumulate(sizes, initial=0))
    flat = decoders.flatten(1)
    if flat.device.type != "cuda":
        return PositionGroups(flat, starts)
    return padded(flat, starts)


def padded(decoders: torch.Tensor, starts: Sequence[int]) -> PaddedPositions:
    """Pad decoder vectors (n_features, d), which are sorted by position."""
    sizes = torch.tensor([end - start for start, end in pairwise(starts)])
    positions = torch.arange(len(sizes)).repeat_interleave(sizes)
    ranks = torch.arange(len(positions)) - torch.tensor(starts[:-1]).repeat_interleave(sizes)
    positions, ranks = positions.to(decoders.device), ranks.to(decoders.device)
    every = decoders.new_zeros(len(sizes), int(sizes.max()), decoders.shape[1])
    every[positions, ranks] = decoders
    return PaddedPositions(every, positions, ranks, starts)
