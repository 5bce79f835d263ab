"""What generation asks of a replacement model's forward pass, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Hook:
    """A function of what a layer's features read or write, (n_rows, n_positions, d_model).

    At "feature output" it returns what the model goes on with.
    """

    layer: int
    place: Literal["feature input", "feature output"]
    function: Callable[[Tensor], Tensor | None]


class Passes(Protocol):
    """Forward passes of one replacement model, over a key-value cache.

    Hooks act in the one pass that they are given to, and are gone after it, whatever it raises.
    """

    model: Any  # circuit_tracer's replacement model
    transcoders: Any  # circuit_tracer's transcoders of the model

    def new_cache(self, n_rows: int) -> Any:
        """A cache for `n_rows` texts that holds nothing yet."""

    def keep_rows(self, cache: Any, rows: Sequence[int]) -> None:
        """Drop the other rows from the cache."""

    def logits(
        self, tokens: Tensor, cache: Any, hooks: Sequence[Hook], *, freeze_attention: bool = False
    ) -> Tensor:
        """Logits (n_rows, d_vocab) after the last of `tokens`, (n_rows, n_new).

        The cache takes the tokens in. With `freeze_attention` every row has the attention patterns
        of the first.
        """

    def plain_logits(self, tokens: Tensor) -> Tensor:
        """Logits (d_vocab,) after the last of `tokens`, (1, n_positions), without a cache.

        To the bit what attribution's pass over the prompt gives.
        """

    def read(self, tokens: Tensor, hooks: Sequence[Hook]) -> None:
        """Run hooks, none of which changes anything, over `tokens`, (n_rows, n_positions).

        They see to the bit what attribution's pass over the prompt computes.
        """
