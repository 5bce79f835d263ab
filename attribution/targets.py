"""What a graph explains: next-token logits, each less the mean of all, or directions of any kind.

The targets are those of circuit-tracer's `AttributionTargets`; their probabilities and vectors are
float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from circuit_tracer.attribution.targets import AttributionTargets, LogitTarget

from attribution.salient_logits import probabilities_of, salient_logits


@dataclass(frozen=True)
class Targets:
    """The logit nodes of a graph, in its order."""

    logit_targets: list[LogitTarget]
    probabilities: torch.Tensor  # (n,) float32
    vectors: torch.Tensor  # (n, d_model) float32, behind the final norm
    vocab_size: int  # of the tokenizer

    def __len__(self) -> int:
        return len(self.logit_targets)


def find_targets(
    requested: Sequence[Any] | torch.Tensor | None,
    logits: torch.Tensor,
    unembedding: torch.Tensor,
    tokenizer: Any,
    *,
    max_n_logits: int,
    desired_logit_prob: float,
) -> Targets:
    """The targets that a caller of `attribute` asks for.

    Args:
        requested: token ids (n,), token strings, circuit-tracer's custom targets, or None for the
            salient logits.
        logits: (d_vocab,) after the prompt.
        unembedding: (d_model, d_vocab).

    Raises:
        ValueError: a token isn't one of the model's, or a string isn't one token.
    """
    if requested is None:
        token_ids = salient_logits(logits, max_n_logits, desired_logit_prob).token_ids.tolist()
    elif isinstance(requested, torch.Tensor):
        token_ids = requested.tolist()
    elif len(requested) and not isinstance(requested[0], str):
        return _custom(requested, logits, unembedding, tokenizer)
    else:
        token_ids = [_token_id(text, tokenizer) for text in requested]
    if not token_ids:
        raise ValueError("attribution_targets is empty: name at least one token")
    for token_id in token_ids:
        if not 0 <= token_id < len(logits):
            raise ValueError(f"attribution target {token_id} is not from 0 to {len(logits) - 1}")
    where = torch.tensor(token_ids, device=logits.device)
    mean = unembedding.mean(-1, dtype=torch.float32)
    return Targets(
        [LogitTarget(tokenizer.decode(token_id), token_id) for token_id in token_ids],
        probabilities_of(logits)[where],
        unembedding[:, where].float().T - mean,
        tokenizer.vocab_size,
    )


def _custom(
    requested: Sequence[Any], logits: torch.Tensor, unembedding: torch.Tensor, tokenizer: Any
) -> Targets:
    """Targets with probabilities and vectors of the caller's own."""
    targets = AttributionTargets(requested, logits, unembedding, tokenizer)
    return Targets(
        targets.logit_targets,
        targets.logit_probabilities.float(),
        targets.logit_vectors.to(logits.device, torch.float32),
        targets.vocab_size,
    )


def _token_id(text: str, tokenizer: Any) -> int:
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if len(token_ids) != 1:
        raise ValueError(f"attribution target {text!r} is {len(token_ids)} tokens; it must be one")
    return token_ids[0]
