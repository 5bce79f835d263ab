"""What generation asks of a replacement model's forward pass, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from errors import NotFinite


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


def passes_of(model: Any) -> Passes:
    """The forward passes of a circuit-tracer replacement model."""
    # Each engine's library takes seconds to import, and a worker has one engine.
    if model.backend == "nnsight":
        from steering.huggingface import HuggingFacePasses

        return HuggingFacePasses(model)
    from steering.transformerlens import TransformerLensPasses

    return TransformerLensPasses(model)


def next_token_logits(model: Any, token_ids: Sequence[int]) -> Tensor:
    """Logits (d_vocab,) after the last token, to the bit those that a graph starts from.

    Raises:
        NotFinite: they are not all finite numbers.
    """
    with torch.inference_mode():
        tokens = torch.tensor([list(token_ids)], device=model.cfg.device)
        logits = passes_of(model).plain_logits(tokens)
        if not logits.isfinite().all():
            raise NotFinite.of("the model's logits after this prompt", model.cfg.dtype)
        return logits
