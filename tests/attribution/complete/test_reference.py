"""Graphs of complete replacement models are those that llamascopium gives, in float32."""

import pytest

import model_loader
from attribution.complete import prune, trace_attention
from settings import read_settings
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_demo import DEMO_CASES
from tests.support.complete_engine import attributed, complete_model, plain_graph
from tests.support.complete_graphs import assert_same_graph, fixture


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_llamascopiums(name, directory):
    case, theirs = CASES[name], fixture(name)
    model = complete_model(write_case(directory, case))
    _assert_is(theirs, case, model)


@pytest.mark.parametrize("name", DEMO_CASES)
def test_a_graph_of_the_demo_is_llamascopiums(name):
    loaded = model_loader.load(read_settings(model_id="demo", transcoder_set="demo-crm"))
    _assert_is(fixture(name), DEMO_CASES[name], loaded.model)


def _assert_is(theirs, case, model):
    local, graph = attributed(model, case)
    pruned = prune(graph, case.node_threshold, case.edge_threshold)
    traces = trace_attention(graph, local, top_fraction=case.qk_top_fraction, topk=case.qk_topk)

    # llamascopium's model has a centred unembedding.
    logits = local.logits
    values = (logits - logits.mean())[[node.index for node in theirs.logits]]
    ours = plain_graph(graph, pruned, traces, values, theirs.selected)
    assert_same_graph(ours, theirs)
