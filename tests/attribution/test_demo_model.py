"""The demo model: attribution and pruning as the worker runs them, against the library's."""

import circuit_tracer
import pytest
import torch
from circuit_tracer.graph import compute_graph_scores, prune_graph

import attribution
import model_loader
from tests.support.demo_worker import PROMPT, demo_settings
from tests.support.edge_masks import edge_mask


@pytest.fixture(scope="module")
def model():
    return model_loader.get_model(demo_settings()).model


@pytest.mark.parametrize("max_feature_nodes", [20, None])
def test_the_demo_models_graph_is_the_librarys(model, max_feature_nodes):
    assert attribution.method_for(model) == "explicit sweep"
    settings = {"max_feature_nodes": max_feature_nodes, "batch_size": 4}
    ours = attribution.attribute(PROMPT, model, **settings)
    theirs = circuit_tracer.attribute(PROMPT, model, **settings)
    assert torch.equal(ours.selected_features, theirs.selected_features)
    largest = theirs.adjacency_matrix.abs().max()
    assert (ours.adjacency_matrix - theirs.adjacency_matrix).abs().max() <= 1e-5 * largest

    pruned = attribution.prune(ours)
    node_mask, library_edge_mask, _ = prune_graph(theirs)
    assert torch.equal(pruned.node_mask, node_mask)
    assert torch.equal(edge_mask(pruned), library_edge_mask)
    scores = (pruned.replacement_score, pruned.completeness_score)
    assert scores == pytest.approx(compute_graph_scores(theirs), abs=1e-5)
