"""What a contrast of two prompts finds: the features active in either, and what each would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from errors import NotFinite

Kind = Literal["transcoder", "lorsa"]


@dataclass(frozen=True)
class Contrasted:
    """A feature at the two positions."""

    layer: int
    index: int
    kind: Kind
    activation: float
    other_activation: float
    slope: float  # what each unit of activation adds to the logits' difference

    @property
    def effect(self) -> float:
        """What its move to the other activation adds to the difference."""
        return self.slope * (self.other_activation - self.activation)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two prompts' logits after their last tokens, (d_vocab,), and the features active in either.

    `features` is empty where both prompts have the same likeliest token.
    """

    logits: Tensor
    other_logits: Tensor
    features: list[Contrasted]


def active_in_either(activations: Tensor, dtype: torch.dtype) -> Tensor:
    """Where features are active, (n_dimensions, n), of activations (2, ...) here and there.

    Args:
        dtype: the model's.

    Raises:
        NotFinite: an activation is no finite number.
    """
    if not activations.isfinite().all():
        raise NotFinite.of("the features' activations on a prompt", dtype)
    return activations.any(0).nonzero().T


def contrasted(
    layer: int, kind: Kind, indices: Tensor, activations: Tensor, slopes: Tensor
) -> list[Contrasted]:
    """Features (n,) of one layer, with their activations (2, n) here and there."""
    here, there = (activations.float() + 0.0).tolist()  # without a minus before 0
    return [
        Contrasted(layer, index, kind, *of_feature)
        for index, *of_feature in zip(indices.tolist(), here, there, slopes.tolist(), strict=True)
    ]
