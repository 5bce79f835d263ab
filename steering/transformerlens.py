"""Forward passes of a TransformerLens model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as _Cache

from steering.engine import HookPoint, Hooks, Passes


class TransformerLensPasses(Passes):
    """Passes with hooks at TransformerLens's hook points."""

    def __init__(self, model: Any) -> None:
        self.model, self.transcoders = model, model.transcoders

    def new_cache(self, n_rows: int) -> _Cache:
        cfg = self.model.cfg
        return _Cache.init_cache(cfg, cfg.device, n_rows)

    def keep_rows(self, cache: _Cache, rows: Sequence[int]) -> None:
        cache.previous_attention_mask = cache.previous_attention_mask[rows]
        for entry in cache.entries:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]

    def logits(
        self, tokens: Tensor, cache: _Cache, hooks: Hooks, *, freeze_attention: bool = False
    ) -> Tensor:
        named = self._all_named(hooks)
        if freeze_attention:
            for layer in range(self.model.cfg.n_layers):
                named.append((f"blocks.{layer}.attn.hook_pattern", _first_rows_pattern))
        with self.model.hooks(named):
            # Without a mask TransformerLens makes one in which a pad token, often the EOS token
            # or BOS, isn't attended to.
            mask = torch.ones_like(tokens)
            return self.model(tokens, attention_mask=mask, past_kv_cache=cache)[:, -1]

    def plain_logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)
        return logits[0, -1]

    def read(self, tokens: Tensor, hooks: Hooks) -> None:
        last, _ = max(hooks)
        with self.model.hooks(self._all_named(hooks)):
            self.model(tokens, stop_at_layer=self._block(last) + 1)

    def _all_named(self, hooks: Hooks) -> list[tuple[str, Callable[..., Tensor | None]]]:
        named = [self._named(point, function) for point, function in hooks.items()]
        return [(name, _without_hook_point(function)) for name, function in named]

    def _block(self, layer: int) -> int:
        """The model's block that has a layer of features."""
        return layer

    def _named(
        self, point: HookPoint, function: Callable[[Tensor], Tensor | None]
    ) -> tuple[str, Callable[[Tensor], Tensor | None]]:
        """A hook as TransformerLens knows its point, for one pass."""
        layer, side = point
        reads = side == "feature input"
        hook = self.model.feature_input_hook if reads else self.model.feature_output_hook
        return f"blocks.{layer}.{hook}", function


def _without_hook_point(
    function: Callable[[Tensor], Tensor | None],
) -> Callable[..., Tensor | None]:
    return lambda acts, hook: function(acts)  # noqa: ARG005 - TransformerLens names it


def _first_rows_pattern(pattern: Tensor, **_: Any) -> Tensor:
    return pattern[:1].expand_as(pattern)
