"""In which dtype attribution computes what, and the one matrix product that joins both dtypes.

The model runs in its own dtype, and so do the transcoders' encoders: these are the activations that
circuit-tracer finds, and that steering sets. What follows from one forward pass is float32:
attention patterns, norm scales, errors, tokens, what targets read, the gradients that are carried
down, every sum, every edge. Weights, decoder vectors and encoder vectors stay in the model's dtype,
as they take most of the memory; what is folded into them is computed in float32 and rounded once.

A product of float32 gradients with weights of 16 bits therefore sums in float32 and gives float32.
On a CUDA device bfloat16 weights are multiplied by its matrix units, for which the gradients are
rounded to bfloat16 first. In float16, whose exponents gradients leave, and on a CPU, the weights
are widened instead.
"""

from __future__ import annotations

import torch


def operand_dtype(weights: torch.Tensor) -> torch.dtype:
    """The dtype in which gradients enter products with `weights`."""
    if weights.device.type == "cuda" and weights.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.float32


def product(
    vectors: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The float32 product (n, m) of vectors (n, d) and weights (d, m) of the model's dtype.

    Args:
        vectors: float32, or rounded to `operand_dtype` where several products take them.
        out: (n, m) float32, written to where it is given.
    """
    dtype = operand_dtype(weights)
    vectors, weights = vectors.to(dtype), weights.to(dtype)
    if dtype == torch.float32:
        return torch.mm(vectors, weights, out=out)
    return torch.mm(vectors, weights, out_dtype=torch.float32, out=out)


def add_product_(total: torch.Tensor, vectors: torch.Tensor, weights: torch.Tensor) -> None:
    """Add `product` of vectors (n, d) and weights (d, m) to total (n, m), float32."""
    dtype = operand_dtype(weights)
    vectors, weights = vectors.to(dtype), weights.to(dtype)
    if dtype == torch.float32:
        total.addmm_(vectors, weights)
    else:
        torch.addmm(total, vectors, weights, out_dtype=torch.float32, out=total)


def batched_product(vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As `product` for several at once: (b, n, m) of (b, n, d) and (b, d, m)."""
    dtype = operand_dtype(weights)
    vectors, weights = vectors.to(dtype), weights.to(dtype)
    if dtype == torch.float32:
        return torch.bmm(vectors, weights)
    return torch.bmm(vectors, weights, out_dtype=torch.float32)
