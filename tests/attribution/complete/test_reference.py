"""Graphs of complete replacement models are those that llamascopium gives, in float32."""

import pytest
import torch

from attribution.complete import attribute, freeze, prune, trace_attention
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_engine import complete_model, plain_graph
from tests.support.complete_graphs import assert_same_graph, fixture


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_llamascopiums(name, directory):
    case, theirs = CASES[name], fixture(name)
    model = complete_model(write_case(directory, case))

    local = freeze(model, torch.tensor(theirs.input_ids))
    graph = attribute(
        local,
        max_n_logits=case.max_n_logits,
        desired_logit_prob=case.desired_logit_prob,
        batch_size=case.batch_size,
        max_feature_nodes=case.max_feature_nodes,
    )
    pruned = prune(graph, case.node_threshold, case.edge_threshold)
    traces = trace_attention(graph, local, top_fraction=case.qk_top_fraction, topk=case.qk_topk)

    # llamascopium's model has a centred unembedding.
    logits = local.logits
    values = (logits - logits.mean())[[node.index for node in theirs.logits]]
    ours = plain_graph(graph, pruned, traces, values, theirs.selected)
    assert_same_graph(ours, theirs)
