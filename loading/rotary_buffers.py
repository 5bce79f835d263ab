"""Rotary embeddings of models whose local and global layers turn at different rates (Gemma 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def rotary_buffers_kept(model: Any) -> Iterator[None]:
    """Give each layer its own kind's rotary buffers back, shared by all layers of the kind.

    circuit-tracer's `_deduplicate_attention_buffers`, part of making a replacement model, gives
    every layer those of the last one: right for models with one rope base, silently wrong for
    others.
    """
    kept = {
        block.attn.attn_type: (block.attn.rotary_sin, block.attn.rotary_cos)
        for block in model.blocks
        if hasattr(block.attn, "rotary_sin")
    }
    yield
    for block in model.blocks:
        if block.attn.attn_type in kept:
            block.attn.rotary_sin, block.attn.rotary_cos = kept[block.attn.attn_type]
