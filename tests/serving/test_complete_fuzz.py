"""Borderline requests to a complete model: an answer, or an error with its code."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import WorkerError
from tests.serving.test_fuzz import FUZZ, JSON, NUMBER, PROMPT, TEXT, UNIT, assert_a_good_error
from tests.support.complete_worker import N_CTX, forget_graphs, serving_complete
from tests.support.demo_worker import FORWARD, GRAPH, ask, comparable
from tests.support.webapp_rules import Graph

TRACED = {**GRAPH, "enable_qk_tracing": True, "qk_top_fraction": 0.5, "qk_topk": 5}
EXTREME = st.sampled_from([0, 1, 2, 256, 257, 10**9, 2**53, 2**53 + 1, -1, 1.5, 5e-324, math.inf])
GRAPHS = st.fixed_dictionaries(
    {"action": st.just("generate-graph")},
    optional={
        **PROMPT,
        "enable_qk_tracing": st.booleans() | JSON,
        "qk_top_fraction": UNIT | EXTREME,
        "qk_topk": NUMBER | EXTREME,
        "node_threshold": UNIT,
        "edge_threshold": UNIT,
        "batch_size": NUMBER | EXTREME,
        "max_feature_nodes": NUMBER | EXTREME,
        "max_n_logits": NUMBER,
        "attribution_targets": st.lists(TEXT, max_size=2),
    },
)
# A good request with a value or two replaced: most of these are attributed.
NEAR = st.builds(
    lambda body, changes: {**body, **dict(changes)},
    st.just(TRACED),
    st.lists(
        st.one_of(
            st.tuples(st.just("qk_topk"), st.integers(1, 300)),
            st.tuples(st.just("qk_top_fraction"), st.floats(0, 1)),
            st.tuples(st.just("node_threshold"), st.sampled_from([0, 1, 1e-9, 0.5])),
            st.tuples(st.just("edge_threshold"), st.sampled_from([0, 1, 1e-9, 0.5])),
            st.tuples(st.just("max_feature_nodes"), st.integers(1, 200)),
            st.tuples(st.just("batch_size"), st.integers(1, 300)),
            st.tuples(st.just("prompt"), st.sampled_from(["a", "<|bos|>", "\n", "a " * 20])),
        ),
        max_size=3,
    ),
)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    with serving_complete(tmp_path_factory.mktemp("complete"), token_limit=80) as served:
        yield served


@pytest.fixture(scope="module")
def good(complete):
    return comparable(ask(TRACED, complete[0]))


def answered_or_refused(body, chosen):
    try:
        output = ask(body, chosen)
    except WorkerError as error:
        assert_a_good_error(error)
        return
    if "nodes" in output:
        Graph.model_validate_json(json.dumps(output, allow_nan=False))


def every_request_is_answered_or_refused(body, complete, good):
    chosen, loaded = complete
    answered_or_refused(body, chosen)
    forget_graphs(loaded)
    answered_or_refused({**body, "signed_url": None} if isinstance(body, dict) else body, chosen)
    assert comparable(ask(TRACED, chosen)) == good


@settings(FUZZ, max_examples=30)
@given(body=NEAR | GRAPHS)
def test_every_graph_is_drawn_or_refused_with_a_reason(complete, good, body):
    every_request_is_answered_or_refused(body, complete, good)


@pytest.mark.soak
@settings(FUZZ, max_examples=3_000)
@given(body=NEAR | GRAPHS)
def test_three_thousand_graphs_are_drawn_or_refused_with_a_reason(complete, good, body):
    every_request_is_answered_or_refused(body, complete, good)


@pytest.mark.parametrize("node_threshold", [0, 1])
@pytest.mark.parametrize("edge_threshold", [0, 1])
def test_the_ends_of_thresholds_give_valid_graphs(complete, node_threshold, edge_threshold):
    body = {**TRACED, "node_threshold": node_threshold, "edge_threshold": edge_threshold}
    graph = ask(body, complete[0])
    Graph.model_validate_json(json.dumps(graph))
    assert [node for node in graph["nodes"] if node["feature_type"] == "logit"]


def test_a_prompt_of_one_token_and_one_as_long_as_the_context(complete):
    chosen, loaded = complete
    for prompt, n_tokens in (("<|bos|>", 1), (" Jordan" * (N_CTX - 1), N_CTX)):
        body = {**TRACED, "prompt": prompt, "max_feature_nodes": 50}
        graph = ask(body, chosen)
        Graph.model_validate_json(json.dumps(graph))
        assert len(graph["metadata"]["prompt_tokens"]) == n_tokens
        assert len(ask({**FORWARD, "prompt": prompt}, chosen)["input_tokens"]) == n_tokens
    assert loaded.n_context == N_CTX


def test_more_feature_nodes_than_are_active_are_all_of_them_once(complete):
    whole = {**GRAPH, "node_threshold": 1, "edge_threshold": 1}
    graphs = [
        comparable(ask({**whole, "max_feature_nodes": n}, complete[0])) for n in (5_000, 2**53)
    ]
    ids = [[node["node_id"] for node in graph["nodes"]] for graph in graphs]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])
    assert graphs[0]["links"] == graphs[1]["links"]


@pytest.mark.parametrize("topk", [257, 10**9])
def test_lists_longer_than_is_sensible_are_refused_by_name(complete, topk):
    with pytest.raises(WorkerError, match=r"^invalid_input: qk_topk.*256"):
        ask({**TRACED, "qk_topk": topk}, complete[0])
