"""Targets that aren't a token's logit: a difference of logits, and a feature at a position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from errors import InvalidInput

_MOST_LISTED = 8


@dataclass(frozen=True)
class LogitDifference:
    """The mean logit of some tokens less the mean logit of others."""

    plus: tuple[int, ...]  # token ids
    minus: tuple[int, ...]
    label: str

    def __post_init__(self) -> None:
        if not self.plus or not self.minus:
            raise ValueError("a difference of logits has one token at least on either side")


@dataclass(frozen=True)
class FeatureTarget:
    """An active feature of the prompt. Only complete replacement models have Lorsas."""

    layer: int
    index: int
    position: int
    kind: Literal["transcoder", "lorsa"] = "transcoder"

    @property
    def label(self) -> str:
        kind = "lorsa " if self.kind == "lorsa" else ""
        return f"layer {self.layer} {kind}feature {self.index} at {self.position}"


@dataclass(frozen=True)
class ActiveOnPrompt:
    """The active features of a prompt, in the order of the attribution matrix's columns."""

    places: Tensor  # (n_active, 3) int64: layer, position, index
    activations: Tensor  # (n_active,)
    has_sublayers: bool = False  # the layers in `places` are sublayers: 2l attention, 2l + 1 MLP

    @cached_property
    def _on_host(self) -> Tensor:
        return self.places.cpu()

    def number_of(self, target: FeatureTarget, name: str) -> int:
        """Which of the active features a target is.

        Args:
            name: the target's in the request, for the error.

        Raises:
            InvalidInput: the feature isn't active there. The sentence says which are.
        """
        found = self._at(target.kind, target.layer, target.position, target.index)
        if not len(found):
            raise InvalidInput(self._why_not(target, name))
        return int(found[0])

    def _at(
        self,
        kind: str,
        layer: int,
        position: int | None = None,
        index: int | None = None,
    ) -> Tensor:
        """The active features of a layer, at one position or all, of one index or all."""
        own = 2 * layer + (kind == "transcoder") if self.has_sublayers else layer
        places = self._on_host
        is_meant = places[:, 0] == own
        for column, wanted in ((1, position), (2, index)):
            if wanted is not None:
                is_meant &= places[:, column] == wanted
        return is_meant.nonzero().flatten()

    def _why_not(self, target: FeatureTarget, name: str) -> str:
        kind, layer, position = target.kind, target.layer, target.position
        feature = f"{kind} feature" if self.has_sublayers else "feature"
        sentences = [
            f"{name} is {feature} {target.index} of layer {layer} at position {position}, which "
            "isn't active on this prompt"
        ]
        elsewhere = self._at(kind, layer, index=target.index)
        if len(elsewhere):
            sentences.append(f"it is active at {_listed(self._on_host[elsewhere, 1])}")
        other = "lorsa" if kind == "transcoder" else "transcoder"
        if self.has_sublayers and len(self._at(other, layer, position, target.index)):
            sentences.append(f'the one with kind "{other}" is active there')
        there = self._at(kind, layer, position)
        if len(there):
            strongest = self.activations.cpu()[there].argsort(descending=True, stable=True)
            active = self._on_host[there[strongest], 2]
            sentences.append(f"active there are {_listed(active)}, the strongest first")
        else:
            sentences.append(f"no {feature} of layer {layer} is active at position {position}")
        return "; ".join(sentences)


def _listed(numbers: Tensor) -> str:
    shown = ", ".join(map(str, numbers[:_MOST_LISTED].tolist()))
    more = len(numbers) - _MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
