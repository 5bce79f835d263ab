"""The replacement model in memory, and what a request is checked against."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graphs.cache import GraphCache
from loading.entry import ModelEntry
from prompting.token_text import TokenText

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model with its transcoders, its tokenizer, and the graphs of it that are kept."""

    entry: ModelEntry
    model: Any  # circuit_tracer's replacement model, or a CompleteModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]  # tokens that end a generation
    graphs: GraphCache  # finished attributions of this model
    revisions: tuple[str, ...] = ()  # owner/name[/folder]@commit of the repositories it is from
    # Held by the one job that uses `model`; the tokenizer may be used without.
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def token_text(self) -> TokenText:
        """How its tokens stand in a text."""
        return TokenText(self.tokenizer)

    @property
    def n_context(self) -> int:
        """Most tokens of prompt and continuation together."""
        n_tokens: int = self.model.n_ctx if self.is_complete else self.model.cfg.n_ctx
        return n_tokens

    @property
    def is_complete(self) -> bool:
        """Whether attention has features too, so that graphs are those of a complete model."""
        from attribution.complete.modules import CompleteModel  # with torch

        return isinstance(self.model, CompleteModel)

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device(self.model.cfg.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.cfg.dtype

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights in memory, of model and transcoders, by name."""
        if not self.is_complete:
            yield from self.model.named_parameters()
            return
        from loading.complete_modules import weights_of

        yield from weights_of(self.model)

    @property
    def d_vocab(self) -> int:
        return self.model.cfg.d_vocab

    @property
    def name(self) -> str:
        return self.model.cfg.model_name

    def answers_to(self, model_id: str) -> bool:
        """Whether a request's `model_id` means this model, by either of its ids."""
        return model_id.lower() in self.entry.model_names
