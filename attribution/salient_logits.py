"""The next-token predictions that count: their probabilities, and how many of them are salient.

Probabilities are the softmax of the logits in float32, whatever the model's dtype. In bfloat16 a
probability has three digits, and a running sum reaches its threshold some tokens early or late.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class SalientLogits(NamedTuple):
    """The likeliest tokens, likeliest first, on the CPU; of equally likely ones the lower id."""

    token_ids: torch.Tensor  # (n,) int64
    probabilities: torch.Tensor  # (n,) float32


def probabilities_of(logits: torch.Tensor) -> torch.Tensor:
    """Next-token probabilities, float32, of logits (..., d_vocab) of any dtype."""
    return torch.softmax(logits, dim=-1, dtype=torch.float32)


def likeliest(logits: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n likeliest tokens: their probabilities and ids, on the device of the logits.

    In 16 bits many tokens have equal logits, and which of them `topk` takes, and in which order,
    depends on n. Here the lower id comes first, as with `argmax`, so that the first of any n is the
    token that a generation takes.

    Args:
        logits: (d_vocab,), finite.
    """
    least = logits.topk(max(n, 1)).values[-1]
    token_ids = (logits >= least).nonzero().flatten()  # ascending; more than n where some are equal
    order = logits[token_ids].sort(descending=True, stable=True).indices[:n]
    token_ids = token_ids[order]
    return probabilities_of(logits)[token_ids], token_ids


def salient_logits(
    logits: torch.Tensor, max_n_logits: int, desired_logit_prob: float
) -> SalientLogits:
    """As few of the likeliest tokens as reach `desired_logit_prob`, at most `max_n_logits`.

    The rule is circuit-tracer's (`AttributionTargets`). The running sum is taken on the CPU: on a
    CUDA device it depends on the order in which the device adds.

    Args:
        logits: (d_vocab,), finite.
    """
    probabilities, token_ids = (top.cpu() for top in likeliest(logits, max_n_logits))
    reached = torch.searchsorted(probabilities.cumsum(0), desired_logit_prob)
    n = min(int(reached) + 1, max_n_logits)
    return SalientLogits(token_ids[:n], probabilities[:n])
