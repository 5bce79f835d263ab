"""Targets that circuit-tracer's loop has no name for, in the form that it takes.

It takes token ids, token strings, or custom targets, each list of one kind.
"""

from __future__ import annotations

from typing import Any

import torch
from circuit_tracer.attribution.targets import CustomTarget, LogitTarget

from attribution.circuit_tracer_names import unembedding
from attribution.target_kinds import ActiveOnPrompt, FeatureTarget, LogitDifference
from attribution.targets import Requested, find_targets


def for_the_library(requested: Requested | None) -> tuple[Any, OwnTargets | None]:
    """What to give the library for `attribution_targets`, and what to find before it looks."""
    if requested is None or isinstance(requested, torch.Tensor):
        return requested, None
    kinds = {type(target) for target in requested}
    if kinds == {int}:
        return torch.tensor(requested), None
    if not kinds & {int, LogitDifference, FeatureTarget}:
        return requested, None
    own = OwnTargets(requested)
    return own.customs, own


class OwnTargets:
    """Targets of all kinds as custom targets of the library.

    The library looks at `customs` after the model has run, and takes each for a vector at the last
    position's logits. A feature's vector belongs at the feature's place, which is in `places`.
    """

    def __init__(self, requested: Requested) -> None:
        self._requested = requested
        self.customs: list[CustomTarget] = []
        self.logit_targets: list[LogitTarget] = []
        self.places = torch.empty(0, 2, dtype=torch.long)  # (n, 2): layer, position

    @torch.no_grad()
    def find(self, context: Any, model: Any) -> None:
        """Find them, once the model's context has logits and active features."""
        active, matrix = context.activation_matrix, unembedding(model)
        encoders: torch.Tensor = context.encoder_vecs
        targets = find_targets(
            self._requested,
            context.logits[0, -1],
            matrix.T if model.backend == "nnsight" else matrix,
            model.tokenizer,
            ActiveOnPrompt(active.indices().T, active.values()),
        )
        # The library computes a batch in the dtype of its vectors.
        dtype = torch.promote_types(matrix.dtype, encoders.dtype)
        features = list(targets.features)
        vectors = torch.cat([targets.vectors.to(dtype), encoders[features].to(dtype)])
        n_layers, n_pos, _ = active.shape
        places = torch.tensor([[n_layers, n_pos - 1]]).repeat(len(vectors), 1)
        places[len(targets.vectors) :] = active.indices()[:2, features].T.cpu()
        order = range(len(vectors)) if targets.order is None else targets.order
        self.places, self.logit_targets = places[list(order)], targets.logit_targets
        self.customs += [
            CustomTarget(node.token_str, weight, vectors[at])
            for node, weight, at in zip(
                targets.logit_targets, targets.probabilities.tolist(), order, strict=True
            )
        ]
