"""The graph that circuit-tracer itself computes, beside ours."""

import circuit_tracer
import torch
from circuit_tracer.graph import Graph

import attribution
from tests.support.tiny_models import prompt_tokens

TOLERANCE = 1e-5  # of the largest entry


def assert_same_graph(model, prompt=None, **settings) -> Graph:
    """Ours and the library's graph agree in every field; return ours."""
    prompt = prompt_tokens() if prompt is None else prompt
    ours = attribution.attribute(prompt, model, **settings)
    theirs = circuit_tracer.attribute(prompt, model, **{"batch_size": 48, **settings})
    assert_agree(ours, theirs)
    assert ours.adjacency_matrix[: len(ours.selected_features)].abs().max() > 0
    return ours


def assert_agree(ours: Graph, theirs: Graph) -> None:
    """Two graphs have the same in every field, edges to rounding."""
    assert torch.equal(ours.selected_features, theirs.selected_features)
    assert torch.equal(ours.active_features, theirs.active_features)
    assert torch.equal(ours.input_tokens, theirs.input_tokens)
    assert ours.logit_targets == theirs.logit_targets
    torch.testing.assert_close(ours.activation_values, theirs.activation_values)
    torch.testing.assert_close(ours.logit_probabilities, theirs.logit_probabilities)
    assert (ours.input_string, ours.scan) == (theirs.input_string, theirs.scan)
    assert (ours.vocab_size, ours.n_pos) == (theirs.vocab_size, theirs.n_pos)
    largest = theirs.adjacency_matrix.abs().max()
    assert ours.adjacency_matrix.shape == theirs.adjacency_matrix.shape
    difference = (ours.adjacency_matrix - theirs.adjacency_matrix).abs().max()
    assert difference <= TOLERANCE * largest
