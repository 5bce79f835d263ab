"""Normalisation with its scale frozen: a linear map of the residual stream at each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.components import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre

_CENTERED = {LayerNorm: True, LayerNormPre: True, RMSNorm: False, RMSNormPre: False}
SUPPORTED_NORMS = frozenset(_CENTERED)


@dataclass(frozen=True)
class FrozenNorm:
    """`y_p = weight * center(x_p) / scale_p`, less its bias, which no influence flows through.

    `forward` and `backward` are the part that all positions share, and can be folded into a weight
    matrix; `inverse_scale`, a factor of each position, can be folded into an attention pattern.
    Both work on the last dimension, in float32 inside, whatever the dtype given and returned.
    """

    inverse_scale: torch.Tensor  # (n_pos,) float32
    weight: torch.Tensor | None = None  # (d_model,) float32
    centered: bool = False  # LayerNorm subtracts the mean, RMSNorm doesn't
    is_identity: bool = False

    @classmethod
    def of(cls, module: Any, scale: torch.Tensor, *, weighted: bool = True) -> FrozenNorm:
        """Freeze a TransformerLens norm at `scale` (1, n_pos, 1).

        Without `weighted` the map ends at `hook_normalized`, before the weight.
        """
        weight = module.w.float() if weighted and hasattr(module, "w") else None
        return cls(1 / scale.float().flatten(), weight, _CENTERED[type(module)])

    @classmethod
    def stacked(cls, norms: Sequence[FrozenNorm]) -> FrozenNorm:
        """The same norm of every layer, of which `select` picks: a dimension of layers first."""
        weights = [norm.weight for norm in norms if norm.weight is not None]
        return cls(
            torch.stack([norm.inverse_scale for norm in norms]),
            torch.stack(weights) if weights else None,
            norms[0].centered,
        )

    def select(self, layers: torch.Tensor, positions: torch.Tensor) -> FrozenNorm:
        """Of `stacked` norms the norm of each vector, by its layer and position, both (n,)."""
        weight = None if self.weight is None else self.weight[layers]
        return FrozenNorm(self.inverse_scale[layers, positions], weight, self.centered)

    @classmethod
    def identity(cls, n_pos: int, device: torch.device) -> FrozenNorm:
        return cls(torch.ones(n_pos, device=device), is_identity=True)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Where vectors before the norm go, but for `inverse_scale`."""
        moved = self._center(vectors.float())
        return (moved if self.weight is None else moved * self.weight).to(vectors.dtype)

    def backward(self, gradients: torch.Tensor) -> torch.Tensor:
        """The transpose of `forward`: gradients behind the norm to gradients before it."""
        moved = gradients.float()
        return self._center(moved if self.weight is None else moved * self.weight).to(
            gradients.dtype
        )

    def scaled(
        self, vectors: torch.Tensor, positions: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Vectors (n, d_model) at `positions` (n,) times the inverse scale there."""
        return (vectors * self.inverse_scale[positions, None]).to(vectors.dtype)

    def _center(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True) if self.centered else x
