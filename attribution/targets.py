"""What a graph explains: next-token logits, each less the mean of all, or what else is asked for.

The targets are those of circuit-tracer's `AttributionTargets`, and features besides. Probabilities
and vectors are float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from circuit_tracer.attribution.targets import AttributionTargets, LogitTarget

from attribution.salient_logits import probabilities_of, salient_logits
from attribution.target_kinds import ActiveOnPrompt, FeatureTarget, LogitDifference

# A token by its id or as a string, or another kind of target.
Target: TypeAlias = int | str | LogitDifference | FeatureTarget
# What `attribute` takes: token ids (n,), targets of any kinds, or circuit-tracer's custom targets.
Requested: TypeAlias = torch.Tensor | Sequence[Target] | Sequence[Any]

# A difference of two equal probabilities still counts: circuit-tracer's examples have this too.
_LEAST_WEIGHT = 1e-6
# A feature that is active is so for certain.
_WEIGHT_OF_FEATURES = 1.0


@dataclass(frozen=True)
class Targets:
    """The logit nodes of a graph, in its order."""

    logit_targets: list[LogitTarget]
    probabilities: torch.Tensor  # (n,) float32, or the weights that stand for them
    vectors: torch.Tensor  # (n_logits, d_model) float32 of those that aren't features
    vocab_size: int  # of the tokenizer
    features: Sequence[int] = ()  # numbers among the active features, of those that are features
    # Where each target is among the vectors, then the features; None where all are vectors.
    order: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.logit_targets)


def find_targets(
    requested: Requested | None,
    logits: torch.Tensor,
    unembedding: torch.Tensor,
    tokenizer: Any,
    active: ActiveOnPrompt,
    *,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
) -> Targets:
    """The targets that a caller of `attribute` asks for.

    Args:
        requested: None for the salient logits.
        logits: (d_vocab,) after the prompt.
        unembedding: (d_model, d_vocab).

    Raises:
        TypeError: something in the list is no target.
        ValueError: a token isn't one of the model's, or a string isn't one token.
        InvalidInput: a feature isn't active on the prompt.
    """
    if requested is None:
        requested = salient_logits(logits, max_n_logits, desired_logit_prob).token_ids
    if isinstance(requested, torch.Tensor):
        requested = requested.tolist()
    elif requested and isinstance(requested[0], tuple):
        return _custom(requested, logits, unembedding, tokenizer)
    targets: list[Any] = [
        _token_id(target, tokenizer) if isinstance(target, str) else target for target in requested
    ]
    if not targets:
        raise ValueError("attribution_targets is empty: name at least one token")
    for n, target in enumerate(targets):
        if not isinstance(target, int | LogitDifference | FeatureTarget):
            raise TypeError(f"attribution_targets[{n}] is a {type(target).__name__}, no target")
    for token_id in _token_ids(targets):
        if not 0 <= token_id < len(logits):
            raise ValueError(f"attribution target {token_id} is not from 0 to {len(logits) - 1}")
    if any(isinstance(target, LogitDifference | FeatureTarget) for target in targets):
        return _of_all_kinds(targets, logits, unembedding, tokenizer, active)
    where = torch.tensor(targets, device=logits.device)
    mean = unembedding.mean(-1, dtype=torch.float32)
    return Targets(
        [LogitTarget(tokenizer.decode(token_id), token_id) for token_id in targets],
        probabilities_of(logits)[where],
        unembedding[:, where].float().T - mean,
        tokenizer.vocab_size,
    )


def _of_all_kinds(
    requested: Sequence[int | LogitDifference | FeatureTarget],
    logits: torch.Tensor,
    unembedding: torch.Tensor,
    tokenizer: Any,
    active: ActiveOnPrompt,
) -> Targets:
    probabilities, mean = probabilities_of(logits), unembedding.mean(-1, dtype=torch.float32)
    weights = torch.empty(len(requested), device=logits.device)
    nodes: list[LogitTarget] = []
    vectors: dict[int, torch.Tensor] = {}  # by number among the targets
    features: dict[int, int] = {}
    for n, target in enumerate(requested):
        if isinstance(target, int):
            nodes.append(LogitTarget(tokenizer.decode(target), target))
            weights[n] = probabilities[target]
            vectors[n] = unembedding[:, target].float() - mean
            continue
        # The library numbers what is no token from the end of the vocabulary on.
        nodes.append(LogitTarget(target.label, len(logits) + n))
        if isinstance(target, FeatureTarget):
            weights[n] = _WEIGHT_OF_FEATURES
            features[n] = active.number_of(target, f"attribution_targets[{n}]")
        else:
            weights[n] = _difference(probabilities, target).abs().clamp(min=_LEAST_WEIGHT)
            vectors[n] = _difference(unembedding, target)
    # Batches begin with the highest layer; the columns' order is that of the layers.
    by_layer = sorted(features, key=lambda n: features[n], reverse=True)
    places = {n: place for place, n in enumerate([*vectors, *by_layer])}
    return Targets(
        nodes,
        weights,
        torch.stack([*vectors.values()])
        if vectors
        else unembedding.new_empty(0, len(mean)).float(),
        tokenizer.vocab_size,
        [features[n] for n in by_layer],
        [places[n] for n in range(len(nodes))] if features else None,
    )


def _difference(values: torch.Tensor, tokens: LogitDifference) -> torch.Tensor:
    """The mean of `values` (..., d_vocab) of some tokens less that of others, in float32."""
    plus, minus = (
        values[..., torch.tensor(ids, device=values.device)].mean(-1, dtype=torch.float32)
        for ids in (tokens.plus, tokens.minus)
    )
    return plus - minus


def _token_ids(targets: Sequence[Any]) -> list[int]:
    differences = [target for target in targets if isinstance(target, LogitDifference)]
    return [
        *(target for target in targets if isinstance(target, int)),
        *(token_id for each in differences for token_id in (*each.plus, *each.minus)),
    ]


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
