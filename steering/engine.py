"""What steering asks of a replacement model's forward pass, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from attribution.transcoder_layer import TranscoderLayer
from steering.readers import Feature, FeatureReader, TranscoderReader

# A layer, and what its features read there or write there.
HookPoint = tuple[int, Literal["feature input", "feature output"]]

# Functions of the tensor at a hook point, (n_rows, n_positions, d_model). One of a feature output
# returns what the model goes on with.
Hooks = Mapping[HookPoint, Callable[[Tensor], Tensor | None]]


class Passes(Protocol):
    """Forward passes of one replacement model, over a key-value cache.

    Hooks act in the one pass that they are given to, and are gone after it, whatever it raises.
    """

    model: Any  # circuit_tracer's replacement model
    transcoders: Any  # circuit_tracer's transcoders of the model

    def reader(self, features: Sequence[Feature], silent: Collection[int]) -> FeatureReader:
        """What reads distinct features of one layer; those at `silent` positions are inactive."""
        return TranscoderReader(self.transcoders, features, silent, self.model.cfg.device)

    def silent_positions(self, n_tokens: int) -> range:
        """Prompt positions at which every feature is taken for inactive, as by circuit-tracer."""
        return range(n_tokens)[self.model.zero_positions]

    def layers_of(self, layers: range) -> range:
        """The layers of steering that a range of the model's layers has."""
        return layers

    def skip(self, layer: int) -> Tensor | None:
        """A layer's skip connection past its features, (d_model written, d_model read)."""
        return TranscoderLayer(self.transcoders, layer).skip

    def blocks(self) -> Sequence[nn.Module]:
        """The modules of the model's layers, in their order."""

    def tokens(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids (n_rows, n_positions) on the model's device."""
        return torch.tensor(rows, device=self.model.cfg.device)

    def record(
        self, token_ids: Sequence[int], functions: Mapping[HookPoint, Callable[[Tensor], Tensor]]
    ) -> dict[HookPoint, Tensor]:
        """What each function returns at its hook point, in a pass over `token_ids`."""
        recorded: dict[HookPoint, Tensor] = {}

        def recording(point: HookPoint) -> Callable[[Tensor], None]:
            return lambda acts: recorded.update({point: functions[point](acts)})

        self.read(self.tokens([token_ids]), {point: recording(point) for point in functions})
        return recorded

    def new_cache(self, n_rows: int) -> Any:
        """A cache for `n_rows` texts that holds nothing yet."""

    def keep_rows(self, cache: Any, rows: Sequence[int]) -> None:
        """Drop the other rows from the cache."""

    def logits(
        self, tokens: Tensor, cache: Any, hooks: Hooks, *, freeze_attention: bool = False
    ) -> Tensor:
        """Logits (n_rows, d_vocab) after the last of `tokens`, (n_rows, n_new).

        The cache takes the tokens in. With `freeze_attention` every row has the attention patterns
        of the first.
        """

    def last_logits(
        self, tokens: Tensor, hooks: Hooks, *, freeze_attention: bool, freeze_norms: bool
    ) -> Tensor:
        """Logits (n_rows, d_vocab) after the last of `tokens`, (n_rows, n_positions), no cache.

        With `freeze_attention` every row has the attention patterns of the first, with
        `freeze_norms` its norms' scales.
        """

    def plain_logits(self, tokens: Tensor) -> Tensor:
        """Logits (d_vocab,) after the last of `tokens`, (1, n_positions), without a cache.

        To the bit what attribution's pass over the prompt gives.
        """

    def read(self, tokens: Tensor, hooks: Hooks) -> None:
        """Run hooks, none of which changes anything, over `tokens`, (n_rows, n_positions).

        They get to the bit what attribution's pass over the prompt computes.
        """
