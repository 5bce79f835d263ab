"""Pruning and scores against circuit-tracer's own."""

import pytest
import torch
from circuit_tracer.graph import compute_graph_scores, prune_graph

import attribution
import errors
from attribution.complete.pruning import prune as prune_complete
from attribution.influence import node_influence
from benchmarks.reference_workload import build
from tests.support.edge_masks import edge_mask
from tests.support.synthetic_complete_graph import make_complete_graph
from tests.support.synthetic_graph import make_graph
from tests.support.tiny_models import prompt_tokens, tiny_model

TOLERANCE = 1e-5


def reference_graph(max_feature_nodes=200):
    model, tokens, settings = build("R0")
    settings["max_feature_nodes"] = max_feature_nodes
    return attribution.attribute(tokens, model, **settings)


GRAPHS = {
    "reference": reference_graph,
    "every feature": lambda: reference_graph(None),
    "gemma2": lambda: tiny_graph("gemma2", "jump_relu"),
    "gpt2": lambda: tiny_graph("gpt2", "top_k"),
    "cross-layer": lambda: tiny_graph("llama", "cross_layer_relu"),
}


def tiny_graph(architecture, dictionary):
    return attribution.attribute(prompt_tokens(), tiny_model(architecture, dictionary))


@pytest.fixture(scope="module", params=GRAPHS)
def graph(request):
    return GRAPHS[request.param]()


@pytest.mark.parametrize(
    ("node_threshold", "edge_threshold"),
    [(0.8, 0.98), (0.5, 0.9), (0.95, 0.99), (1.0, 0.98), (0.3, 0.3), (0.0, 0.0), (0.8, 0.0)],
)
def test_masks_and_scores_are_the_librarys(graph, node_threshold, edge_threshold):
    untouched = graph.adjacency_matrix.clone()
    ours = attribution.prune(graph, node_threshold, edge_threshold)
    theirs = prune_graph(graph, node_threshold, edge_threshold)
    assert torch.equal(ours.node_mask, theirs.node_mask)
    assert torch.equal(edge_mask(ours), theirs.edge_mask)
    torch.testing.assert_close(
        ours.cumulative_scores, theirs.cumulative_scores, rtol=0, atol=TOLERANCE
    )
    scores = (ours.replacement_score, ours.completeness_score)
    assert scores == pytest.approx(compute_graph_scores(graph), abs=TOLERANCE)
    assert torch.equal(graph.adjacency_matrix, untouched)


def test_edges_are_listed_by_row_with_their_weights(graph):
    pruned = attribution.prune(graph)
    listed = torch.stack([pruned.edge_targets, pruned.edge_sources], 1)
    assert torch.equal(listed, prune_graph(graph).edge_mask.nonzero())
    weights = graph.adjacency_matrix[pruned.edge_targets, pruned.edge_sources]
    assert torch.equal(pruned.edge_weights, weights)
    assert len(listed) > 0


def test_both_ends_of_every_edge_are_kept_nodes(graph):
    pruned = attribution.prune(graph, 0.6, 0.7)
    assert pruned.node_mask[pruned.edge_targets].all()
    assert pruned.node_mask[pruned.edge_sources].all()


def test_at_an_edge_threshold_of_one_every_edge_between_kept_nodes_stays(graph):
    pruned = attribution.prune(graph, 0.9, 1.0)
    kept = pruned.node_mask[:, None] & pruned.node_mask[None, :]
    influences = attribution.prune(graph, 1.0, 1.0)
    # Edges into nodes that lead nowhere carry no influence, and are none of these.
    carried = graph.adjacency_matrix.ne(0) & kept
    assert (edge_mask(pruned) <= carried).all()
    assert edge_mask(pruned).sum() >= 0.999 * carried.sum()
    assert len(influences.edge_weights) >= len(pruned.edge_weights)


@pytest.mark.parametrize(
    ("name", "value"), [("node_threshold", -0.1), ("edge_threshold", 1.1), ("node_threshold", 2)]
)
def test_thresholds_outside_zero_to_one_are_refused_by_name(name, value):
    with pytest.raises(errors.InvalidInput, match=f"{name} is {value}"):
        attribution.prune(tiny_graph("llama", "jump_relu"), **{name: value})


@pytest.mark.parametrize(
    ("make", "prune"),
    [(make_graph, attribution.prune), (make_complete_graph, prune_complete)],
    ids=["local", "complete"],
)
def test_at_a_node_threshold_of_one_every_node_with_influence_stays(make, prune):
    """Weak nodes too, which a sum in float32 doesn't notice or counts as nothing."""
    for seed in range(5):
        graph = make(n_features=400, seed=seed)
        graph.adjacency_matrix.mul_(torch.logspace(0, -6, len(graph.adjacency_matrix)))
        assert (node_influence(graph)[0][:400] > 0).all()
        assert prune(graph, 1.0, 1.0).node_mask.all()
