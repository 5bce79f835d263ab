"""A TransformerLens model's weights in the memory order in which it multiplies with them.

TransformerLens 3 transposes the weights of gated MLPs, attention and unembedding into fresh memory
in every forward pass, which for a few tokens takes longer than the pass. A parameter whose memory
already has the transposed order comes out of that as it is, with nothing copied: the same
parameters, the same kernels, the same bits.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.components import Unembed
from transformer_lens.components.abstract_attention import AbstractAttention
from transformer_lens.components.mlps.gated_mlp import GatedMLP


def lay_out_weights(model: Any) -> None:
    """Reorder the memory of a HookedTransformer's weights in place; shapes and values stay.

    Takes memory for one more copy of the largest weight meanwhile.
    """
    for module in model.modules():
        weights = dict(module.named_parameters(recurse=False))
        for name, weight in weights.items():
            if isinstance(module, GatedMLP | Unembed) and weight.ndim == 2:
                _store(weight, weight.T.contiguous().T)
            elif isinstance(module, AbstractAttention) and name == "W_O":
                n_heads, d_head, d_model = weight.shape
                flat = weight.reshape(n_heads * d_head, d_model)
                _store(weight, flat.T.contiguous().T.view(n_heads, d_head, d_model))
            elif isinstance(module, AbstractAttention) and weight.ndim == 3:
                # W_Q, W_K, W_V, (n_heads, d_model, d_head), used as (n_heads * d_head, d_model)
                _store(weight, weight.transpose(1, 2).contiguous().transpose(1, 2))


def _store(weight: nn.Parameter, reordered: Tensor) -> None:
    with torch.no_grad():
        weight.data = reordered.detach()
