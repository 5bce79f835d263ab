"""Frozen attention patterns, kept and multiplied in blocks where they can be other than zero.

A position attends to itself and to those before it, in local attention to the last few of these. Of
a long prompt's pattern half or more is zero, so it is cut into blocks of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Positions of a block. On a GPU larger ones read the heads' results less often.
BLOCK_LENGTH = {"cpu": 64, "cuda": 128}


@dataclass(frozen=True)
class FrozenPattern:
    """A layer's pattern, times the scales of its norms. Heads that share a value are a group.

    A block has the positions attended to from its `start`, and behind them in one dimension, group
    by group, the positions that attend to these: from `start` as far as the block reaches.
    """

    blocks: list[torch.Tensor]  # (n_values, block's length, n_attending * n_grouped) float32
    n_grouped: int

    @classmethod
    def of(cls, pattern: torch.Tensor, window: int | None = None) -> FrozenPattern:
        """Cut a pattern (n_values, n_grouped, n_pos to, n_pos from) float32.

        Args:
            window: how many positions one attends to at most, itself included.
        """
        n_pos, length = pattern.shape[-1], BLOCK_LENGTH[pattern.device.type]
        by_source = pattern.permute(0, 3, 2, 1)
        blocks = []
        for start in range(0, n_pos, length):
            end = min(start + length, n_pos)
            reached = n_pos if window is None else min(end + window - 1, n_pos)
            blocks.append(by_source[:, start:end, start:reached].flatten(2).contiguous())
        return cls(blocks, pattern.shape[1])

    @property
    def n_values(self) -> int:
        return self.blocks[0].shape[0]

    def back(self, results: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Gradients of heads' results to those of the values they are made of.

        Args:
            results: (n, n_pos, n_values * n_grouped * d_head) float32, at the first positions.

        Returns:
            (n, n_pos, n_values * d_head) of `dtype`.
        """
        n, n_pos, _ = results.shape
        by_head = results.view(n, n_pos, self.n_values, self.n_grouped, -1)
        # The heads of a value and the positions in one sum, for all targets in one product.
        together = by_head.permute(2, 1, 3, 0, 4).reshape(self.n_values, n_pos * self.n_grouped, -1)
        d_head = by_head.shape[-1]
        del results, by_head  # their copy is what is multiplied

        def mixed(at: slice, block: torch.Tensor) -> torch.Tensor:
            first = at.start * self.n_grouped
            values = block @ together[:, first : first + block.shape[2]]
            return values.unflatten(2, (n, -1)).permute(2, 1, 0, 3)

        # Values are brought together and rounded in one copy.
        blocks = list(self._blocks_of(n_pos))
        if len(blocks) == 1:
            return mixed(*blocks[0]).to(dtype, memory_format=torch.contiguous_format).flatten(2)
        values = together.new_empty(n, n_pos, self.n_values, d_head, dtype=dtype)
        for at, block in blocks:
            values[:, at] = mixed(at, block)
        return values.flatten(2)

    def columns(self, where: torch.Tensor, n_pos: int) -> torch.Tensor:
        """The part (n_values, n_pos, n, n_grouped) with which positions `where` (n,) attend."""
        columns = []
        for at, block in self._blocks_of(n_pos):
            by_position = block.unflatten(2, (-1, self.n_grouped))
            nth, n_attending = where - at.start, by_position.shape[2]
            column = by_position[:, :, nth.clamp(0, n_attending - 1)]
            if n_attending < n_pos:
                column *= ((nth >= 0) & (nth < n_attending))[:, None]
            columns.append(column)
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def _blocks_of(self, n_pos: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Each block's positions and entries, but for what lies behind the first `n_pos`."""
        start = 0
        for block in self.blocks:
            end = min(start + block.shape[1], n_pos)
            yield slice(start, end), block[:, : end - start, : (n_pos - start) * self.n_grouped]
            if end == n_pos:
                return
            start = end
