"""The next-token predictions that count: their probabilities, and how many of them are salient.

Probabilities are the softmax of the logits in float32, whatever the model's dtype. In bfloat16 a
probability has three digits, and a running sum reaches its threshold some tokens early or late.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class SalientLogits(NamedTuple):
    """The likeliest tokens, likeliest first, on the CPU."""

    token_ids: torch.Tensor  # (n,) int64
    probabilities: torch.Tensor  # (n,) float32


def probabilities_of(logits: torch.Tensor) -> torch.Tensor:
    """Next-token probabilities, float32, of logits (..., d_vocab) of any dtype."""
    return torch.softmax(logits, dim=-1, dtype=torch.float32)


def salient_logits(
    logits: torch.Tensor, max_n_logits: int, desired_logit_prob: float
) -> SalientLogits:
    """As few of the likeliest tokens as reach `desired_logit_prob`, at most `max_n_logits`.

    The rule is circuit-tracer's (`AttributionTargets`). The running sum is taken on the CPU: on a
    CUDA device it depends on the order in which the device adds.

    Args:
        logits: (d_vocab,), finite.
    """
    top = probabilities_of(logits).topk(max_n_logits)
    probabilities, token_ids = top.values.cpu(), top.indices.cpu()
    reached = torch.searchsorted(probabilities.cumsum(0), desired_logit_prob)
    n = min(int(reached) + 1, max_n_logits)
    return SalientLogits(token_ids[:n], probabilities[:n])
