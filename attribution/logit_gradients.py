"""The gradient of one direction of the logits, carried down the layers.

Attention patterns, norm scales and MLPs are held still, as in the local replacement model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from attribution.freezing import LayerNorms, freeze_attention
from attribution.local_replacement_model import FrozenSkip
from attribution.norms import FrozenNorm
from attribution.precision import add_product_, operand_dtype
from attribution.sweep import values_of_spread


def stream_gradients(
    model: Any,
    seen: dict[str, Tensor],
    position: int,
    direction: Tensor,
    norms_of: Callable[[Any, int, dict[str, Tensor], int], LayerNorms],
    check: Callable[[], None],
    skip_of: Callable[[int, LayerNorms], FrozenSkip | None] = lambda *_: None,
) -> list[tuple[Tensor, LayerNorms]]:
    """Each layer's gradient (1, d_model), float32, of the stream behind it at `position`.

    Args:
        model: a HookedTransformer.
        seen: what `recorded_hooks` recorded.
        direction: (d_model,) float32, read behind the final norm at the last position.
        norms_of: the norms of a layer, at the scales seen at so many positions. They are returned
            too, at `position` and those after it.
        check: called at each layer; raises to stop.
        skip_of: what passes a layer's MLP.
    """
    # No gradient comes back to a position from those before it.
    from_there = {
        name: values[:, :, position:, position:]
        if name.endswith("hook_pattern")
        else values[:, position:]
        for name, values in seen.items()
    }
    final_scale = from_there["ln_final.hook_scale"]
    n_pos, n_layers = final_scale.shape[1], model.cfg.n_layers
    final = FrozenNorm.of(model.ln_final, final_scale)
    gradient = direction.new_zeros(1, n_pos, len(direction))
    gradient[0, -1:] = final.scaled(final.backward(direction[None]), slice(-1, None))
    gradients: list[tuple[Tensor, LayerNorms]] = []
    for layer in reversed(range(n_layers)):
        check()
        norms = norms_of(model, layer, from_there, n_pos)
        gradients.append((gradient[0, :1].clone(), norms))
        skip = skip_of(layer, norms)
        if skip is not None:
            gradient = gradient + skip.scale * (gradient @ skip.weight)
        if layer == 0:  # no features are below its attention
            break
        attn = model.blocks[layer].attn
        attention = freeze_attention(attn, from_there[attn.hook_pattern.name][0], norms)
        dtype = operand_dtype(attention.reads)
        values = values_of_spread(attention, gradient.to(dtype), dtype)
        add_product_(gradient.flatten(0, 1), values.flatten(0, 1), attention.reads)
    return gradients[::-1]
