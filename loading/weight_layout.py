"""A TransformerLens model's weights in the memory order in which it multiplies with them.

TransformerLens 3 transposes the weights of gated MLPs, attention and unembedding into fresh memory
in every forward pass, which for a few tokens takes longer than the pass. A parameter whose memory
has the transposed order already isn't copied: the same parameters, the same kernels, the same bits.
"""

from typing import Any

from torch import Tensor
from transformer_lens.components import Unembed
from transformer_lens.components.abstract_attention import AbstractAttention
from transformer_lens.components.mlps.gated_mlp import GatedMLP


def lay_out_weights(model: Any) -> None:
    """Reorder the memory of a HookedTransformer's weights in place; shapes and values stay.

    Takes memory for one more copy of the largest weight meanwhile.
    """
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, GatedMLP | Unembed) and weight.ndim == 2:
                weight.data = _in_order(weight.detach(), 1, 0)
            elif isinstance(module, AbstractAttention) and name == "W_O":
                # (n_heads, d_head, d_model), used as (d_model, n_heads * d_head)
                weight.data = _in_order(weight.detach(), 2, 0, 1)
            elif isinstance(module, AbstractAttention) and weight.ndim == 3:
                # W_Q, W_K, W_V, (n_heads, d_model, d_head), used as (n_heads * d_head, d_model)
                weight.data = _in_order(weight.detach(), 0, 2, 1)


def _in_order(weight: Tensor, *dimensions: int) -> Tensor:
    """The same tensor, contiguous in memory when its dimensions are permuted so."""
    back = [dimensions.index(dimension) for dimension in range(weight.ndim)]
    return weight.permute(dimensions).contiguous().permute(back)
