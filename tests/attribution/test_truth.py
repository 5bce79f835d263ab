"""Edges say what happens: intervene on a source feature, and targets change by just that much.

Nothing of attribution takes part on the other side: the model runs with attention patterns and
norm scales held as they were and each MLP's output as it was, plus what the source's decoder adds.
"""

import pytest
import torch

import attribution
from tests.support.tiny_models import ARCHITECTURES, N_LAYERS, prompt_tokens, tiny_model

CHANGE = 0.5  # of the source's activation


def intervened(model, tokens, layer, position, feature, value):
    """Pre-activations (n_layers, n_pos, d_transcoder) and the last logits before any softcap."""
    with model.zero_softcap():
        logits, activations = model.feature_intervention(
            tokens,
            [(layer, position, feature, value)],
            constrained_layers=range(N_LAYERS),
            apply_activation_function=False,
        )
    return activations, logits[0, -1]


@pytest.mark.parametrize(
    ("dictionary", "skip"),
    [("relu", False), ("jump_relu", True), ("cross_layer_relu", False), ("top_k", False)],
)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "parallel"])
def test_an_intervention_changes_its_targets_by_what_their_edges_say(
    architecture, dictionary, skip
):
    model, tokens = tiny_model(architecture, dictionary, skip=skip), prompt_tokens()
    graph = attribution.attribute(tokens, model)
    edges, features = graph.adjacency_matrix, graph.active_features
    n_features, n_logits = len(features), len(graph.logit_targets)
    targets = graph.logit_token_ids

    # The sources that matter most, of each layer.
    strength = edges.abs().sum(0)[:n_features]
    for layer in range(N_LAYERS):
        here = (features[:, 0] == layer).nonzero().flatten()
        for source in here[strength[here].topk(3).indices].tolist():
            value = graph.activation_values[source].item()
            before, logits_before = intervened(model, tokens, *features[source].tolist(), value)
            after, logits_after = intervened(
                model, tokens, *features[source].tolist(), value * (1 + CHANGE)
            )
            changes = (after - before)[tuple(features.T)]
            said = CHANGE * edges[:n_features, source]
            torch.testing.assert_close(changes, said, rtol=1e-3, atol=1e-4)
            # A logit node is a logit less the mean of all.
            logit_change = logits_after - logits_before
            torch.testing.assert_close(
                logit_change[targets] - logit_change.mean(),
                CHANGE * edges[-n_logits:, source],
                rtol=1e-3,
                atol=1e-4,
            )
            assert edges[:, source].abs().max() > 1e-3


def test_without_biases_the_edges_into_a_feature_sum_to_its_activation():
    model = tiny_model("llama", "relu")
    for name, parameter in model.named_parameters():
        if "b_" in name:
            parameter.data.zero_()
    graph = attribution.attribute(prompt_tokens(), model)
    # Above the first layer a part is missing: what the ignored first position's MLPs write.
    first_layer = (graph.active_features[:, 0] == 0).nonzero().flatten()
    torch.testing.assert_close(
        graph.adjacency_matrix[first_layer].sum(1),
        graph.activation_values[first_layer],
        rtol=1e-3,
        atol=1e-4,
    )
