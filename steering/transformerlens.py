"""Forward passes of a TransformerLens model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as _Cache

from steering.engine import HookPoint, Hooks, Passes


class TransformerLensPasses(Passes):
    """Passes with hooks at TransformerLens's hook points."""

    def __init__(self, model: Any) -> None:
        self.model, self.transcoders = model, model.transcoders

    def blocks(self) -> Sequence[nn.Module]:
        blocks: nn.ModuleList = self.model.blocks
        return list(blocks)

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
            named += self._frozen("hook_pattern")
        with self.model.hooks(named):
            # Without a mask TransformerLens makes one in which a pad token, often the EOS token
            # or BOS, isn't attended to.
            mask = torch.ones_like(tokens)
            return self.model(tokens, attention_mask=mask, past_kv_cache=cache)[:, -1]

    def last_logits(
        self, tokens: Tensor, hooks: Hooks, *, freeze_attention: bool, freeze_norms: bool
    ) -> Tensor:
        frozen = self._frozen("hook_pattern") if freeze_attention else []
        frozen += self._frozen("hook_scale") if freeze_norms else []
        model, cap = self.model, self.model.cfg.output_logits_soft_cap
        with model.hooks([*self._all_named(hooks), *frozen]):
            stream = model(tokens, stop_at_layer=model.cfg.n_layers)
            # Logits of all positions would take most of the memory.
            logits: Tensor = model.unembed(model.ln_final(stream[:, -1:]))[:, 0]
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def plain_logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)
        return logits[0, -1]

    def read(self, tokens: Tensor, hooks: Hooks) -> None:
        last, _ = max(hooks)
        with self.model.hooks(self._all_named(hooks)):
            self.model(tokens, stop_at_layer=self._block(last) + 1)

    def _frozen(self, end: str) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """Hooks by which the hook points of this name give every row what the first one has.

        The norms of queries and keys, whose scales have no dimension of rows, act on attention
        patterns alone.
        """
        names = (name for name in self.model.hook_dict if name.endswith(f".{end}"))
        return [(name, _first_rows) for name in names if "_norm.hook_scale" not in name]

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


def _first_rows(values: Tensor, **_: Any) -> Tensor:
    return values[:1].expand_as(values)
