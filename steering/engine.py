"""What steering asks of a replacement model's forward pass, whichever engine runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

HookPoint = Literal["feature input", "feature output"]


@dataclass(frozen=True, eq=False)
class Hook:
    """A function of what a layer's features read or write, (n_rows, n_positions, d_model).

    At "feature output" it returns what the model goes on with.
    """

    layer: int
    point: HookPoint
    function: Callable[[Tensor], Tensor | None]


class Passes(ABC):
    """Forward passes of one replacement model, over a key-value cache.

    Hooks act in the one pass that they are given to, and are gone after it, whatever it raises.
    """

    def __init__(self, model: Any, transcoders: Any) -> None:
        self.model = model  # circuit_tracer's replacement model
        self.transcoders = transcoders  # circuit_tracer's transcoders of the model

    def tokens(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids (n_rows, n_positions) on the model's device."""
        return torch.tensor(rows, device=self.model.cfg.device)

    def record(
        self,
        token_ids: Sequence[int],
        functions: Mapping[tuple[int, HookPoint], Callable[[Tensor], Tensor]],
    ) -> dict[tuple[int, HookPoint], Tensor]:
        """What each function returns at its layer's hook point, in a pass over `token_ids`.

        Functions see to the bit what attribution's pass over the prompt computes.
        """
        recorded: dict[tuple[int, HookPoint], Tensor] = {}

        def recording(at: tuple[int, HookPoint]) -> Callable[[Tensor], None]:
            return lambda acts: recorded.update({at: functions[at](acts)})

        self.read(self.tokens([token_ids]), [Hook(*at, recording(at)) for at in functions])
        return recorded

    @abstractmethod
    def new_cache(self, n_rows: int) -> Any:
        """A cache for `n_rows` texts that holds nothing yet."""

    @abstractmethod
    def keep_rows(self, cache: Any, rows: Sequence[int]) -> None:
        """Drop the other rows from the cache."""

    @abstractmethod
    def logits(
        self, tokens: Tensor, cache: Any, hooks: Sequence[Hook], *, freeze_attention: bool = False
    ) -> Tensor:
        """Logits (n_rows, d_vocab) after the last of `tokens`, (n_rows, n_new).

        The cache takes the tokens in. With `freeze_attention` every row has the attention patterns
        of the first.
        """

    @abstractmethod
    def plain_logits(self, tokens: Tensor) -> Tensor:
        """Logits (d_vocab,) after the last of `tokens`, (1, n_positions), without a cache.

        To the bit what attribution's pass over the prompt gives.
        """

    @abstractmethod
    def read(self, tokens: Tensor, hooks: Sequence[Hook]) -> None:
        """Run hooks, none of which changes anything, over `tokens`, (n_rows, n_positions)."""
