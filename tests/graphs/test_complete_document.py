"""A complete replacement model's graph becomes the document that Neuronpedia knows for it."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution.complete.graph import Contributor, QKTrace
from errors import InvalidInput, NotFinite
from graphs import document as graph_document
from tests.support.programs import output_of
from tests.support.synthetic_complete_graph import lorsa_rows, make_complete_graph, make_traces
from tests.support.synthetic_graph import make_metadata, make_pruned
from tests.support.webapp_rules import GraphBody

# Layer 1's Lorsa and transcoder have a feature 7 each, at the same position.
FEATURES = [[0, 1, 5], [2, 2, 7], [3, 2, 7], [4, 3, 9], [5, 4, 0]]
N_FEATURES = len(FEATURES)


def build(pruned, traces=None, *, logit_tokens=None, **metadata):
    fields = make_metadata(pruned.graph.n_pos, **metadata)
    return graph_document.build_complete(pruned, fields, logit_tokens or {}, traces or {})


def decode(pruned, traces=None, **given):
    return json.loads(b"".join(build(pruned, traces, **given).encode()))


def of_type(document, kind):
    return [node for node in document["nodes"] if node["feature_type"] == kind]


def node(document, node_id):
    [found] = [node for node in document["nodes"] if node["node_id"] == node_id]
    return found


def linked(graph):
    """The graph with one edge from every source to the first logit."""
    n_sources = len(graph.adjacency_matrix) - len(graph.logit_targets)
    return dataclasses.replace(
        make_pruned(graph, n_sources),
        edge_targets=torch.full((n_sources,), n_sources),
        edge_sources=torch.arange(n_sources),
    )


@pytest.fixture
def pruned():
    return linked(make_complete_graph(features=FEATURES))


def trace_of(*contributors):
    """A trace in which each contributor is on either side, once in a pair and once alone."""
    alone = [(contributor, 0.5) for contributor in contributors]
    return QKTrace(0, [(c, c, 0.25) for c in contributors], alone, alone)


def test_every_kind_of_node_has_neuronpedia_s_id_type_layer_feature_and_label(pruned):
    document = decode(pruned, logit_tokens={8: " basket"})
    token = pruned.graph.input_tokens.tolist()[2]
    probability = float(pruned.graph.logit_probabilities[1])
    expected = [
        ("1_cro_7_2", "cross layer transcoder", 1, 43, "F43"),
        ("1_lor_7_2", "lorsa", 1, 43, "F43"),
        ("1_error_mlp_2", "mlp reconstruction error", 1, None, 'Err: mlp " c"'),
        ("1_error_attn_2", "lorsa error", 1, None, 'Err: attn " c"'),
        (f"E_{token}_2", "embedding", "E", None, 'Emb: " c"'),
        ("3_8_4", "logit", 3, 8, f'Logit " basket" (p={probability:.3f})'),
    ]
    for node_id, kind, layer, feature, label in expected:
        found = node(document, node_id)
        assert found["jsNodeId"] == node_id
        assert (found["feature_type"], found["layer"]) == (kind, layer)
        assert (found["feature"], found["clerp"]) == (feature, label)
        assert found["ctx_idx"] == int(node_id.rpartition("_")[2])


def test_the_nodes_are_all_features_errors_tokens_and_logits_of_the_graph(pruned):
    document = decode(pruned)
    ids = [node["node_id"] for node in document["nodes"]]
    assert len(set(ids)) == len(ids) == N_FEATURES + 6 * 5 + 5 + 4
    assert len(of_type(document, "lorsa error")) == 15
    assert len(of_type(document, "mlp reconstruction error")) == 15


def test_tokens_and_logits_say_their_token_and_probability(pruned):
    document = decode(pruned, logit_tokens={7: " basket"})
    probabilities = pruned.graph.logit_probabilities.tolist()
    assert [n["token"] for n in of_type(document, "embedding")] == [" a", " b", " c", " d", " e"]
    assert [n["token"] for n in of_type(document, "logit")] == [
        *(" basket", " word1", " word2", " word3")
    ]
    assert [np.float32(n["token_prob"]) for n in of_type(document, "logit")] == probabilities
    assert {n["token_prob"] for n in of_type(document, "lorsa")} == {0}


def test_nodes_have_what_the_product_gives_besides(pruned):
    document = decode(pruned)
    logits = of_type(document, "logit")
    assert [n["is_target_logit"] for n in logits] == [True, False, False, False]
    for found in document["nodes"]:
        assert found["run_idx"] == found["reverse_ctx_idx"] == 0
        assert found["is_target_logit"] is (found is logits[0])


def test_influence_and_activation_are_the_graph_s(pruned):
    document = decode(pruned)
    influences = [np.float32(n["influence"]) for n in document["nodes"]]
    assert influences == pruned.cumulative_scores.tolist()
    activations = [n["activation"] for n in document["nodes"]]
    assert np.array(activations[:N_FEATURES], np.float32).tolist() == (
        pruned.graph.activation_values.tolist()
    )
    assert set(activations[N_FEATURES:]) == {None}


def test_activations_are_those_of_the_selected_features():
    graph = make_complete_graph()
    document = decode(linked(graph))
    features = of_type(document, "lorsa") + of_type(document, "cross layer transcoder")
    active = {
        (sublayer // 2, sublayer % 2, index, position): activation
        for (sublayer, position, index), activation in zip(
            graph.active_features.tolist(), graph.activation_values.tolist(), strict=True
        )
    }
    assert len(features) == 60
    for found in features:
        layer, kind, index, position = found["node_id"].split("_")
        key = (int(layer), int(kind == "cro"), int(index), int(position))
        assert np.float32(found["activation"]) == np.float32(active[key])


def test_links_are_the_edges_with_their_weights(pruned):
    document = decode(pruned)
    assert len(document["links"]) == build(pruned).num_links == len(pruned.edge_weights)
    assert [list(link) for link in document["links"]] == [["source", "target", "weight"]] * 40
    assert [link["source"] for link in document["links"]] == [
        node["node_id"] for node in document["nodes"][:40]
    ]
    assert {link["target"] for link in document["links"]} == {"3_7_4"}
    weights = [np.float32(link["weight"]) for link in document["links"]]
    assert weights == pruned.edge_weights.tolist()


def test_tokens_and_logits_without_a_link_are_kept_and_other_nodes_are_not():
    document = decode(make_pruned(make_complete_graph(), 0))
    kinds = [node["feature_type"] for node in document["nodes"]]
    assert kinds == ["embedding"] * 5 + ["logit"] * 4
    assert document["links"] == []


def test_a_traced_node_has_its_contributors_by_id(pruned):
    query, key = Contributor("feature", 1, 2, 3, 2.5), Contributor("embedding", -1, 0, 17)
    traces = {1: QKTrace(0, [(query, key, 0.5)], [(query, 0.25)], [(key, 0.125)])}
    document = decode(pruned, traces)
    assert node(document, "1_lor_7_2")["qk_tracing_results"] == {
        "pair_wise_contributors": [["0_cro_3_2", "E_17_0", 0.5]],
        "top_q_marginal_contributors": [["0_cro_3_2", 0.25]],
        "top_k_marginal_contributors": [["E_17_0", 0.125]],
    }
    assert [n["node_id"] for n in document["nodes"] if "qk_tracing_results" in n] == ["1_lor_7_2"]


def test_contributors_that_are_no_nodes_are_listed_apart_without_an_influence(pruned):
    outside = [
        Contributor("feature", 0, 2, 11, 1.5),
        Contributor("feature", 1, 2, 3, 2.5),
        Contributor("bias_q", 2, 2, -1),
        Contributor("bias_k", 2, 0, -1),
        Contributor("bias_d", 0, 1, -1),
        Contributor("bias_d", 1, 1, -1),
    ]
    inside = [
        Contributor("feature", 0, 1, 5, 1.0),
        Contributor("error", 0, 2, -1),
        Contributor("error", 1, 2, -1),
        Contributor("embedding", -1, 2, int(pruned.graph.input_tokens[2])),
    ]
    document = decode(pruned, {1: trace_of(*outside, *inside)})
    apart = document["qk_only_nodes"]
    assert {name: (n["feature_type"], n["layer"], n["clerp"]) for name, n in apart.items()} == {
        "0_lor_11_2": ("lorsa", 0, "F77"),
        "0_cro_3_2": ("cross layer transcoder", 0, "F9"),
        "1_bias_lorsa_bQ_2": ("bias", 1, "L1 Bias (lorsa_bQ)"),
        "1_bias_lorsa_bK_0": ("bias", 1, "L1 Bias (lorsa_bK)"),
        "0_bias_lorsa_bD_1": ("bias", 0, "L0 Bias (lorsa_bD)"),
        "0_bias_tc_bD_1": ("bias", 0, "L0 Bias (tc_bD)"),
    }
    assert all(name == n["node_id"] == n["jsNodeId"] for name, n in apart.items())
    assert [n["activation"] for n in apart.values()] == [1.5, 2.5, None, None, None, None]
    assert apart["1_bias_lorsa_bQ_2"]["feature"] is None
    assert set.union(*map(set, apart.values())) == {
        *("node_id", "jsNodeId", "feature", "feature_type", "layer", "ctx_idx", "clerp"),
        "activation",
    }


def test_an_error_that_was_pruned_away_is_listed_apart_with_its_token(pruned):
    error_of_attention_0_at_2 = N_FEATURES + 2
    pruned.node_mask[error_of_attention_0_at_2] = False
    document = decode(pruned, {1: trace_of(Contributor("error", 0, 2, -1))})
    assert document["qk_only_nodes"]["0_error_attn_2"]["clerp"] == 'Err: attn " c"'


def test_the_trace_of_a_node_that_was_pruned_away_is_left_out_with_its_contributors(pruned):
    pruned.node_mask[1] = False
    document = decode(pruned, {1: trace_of(Contributor("bias_q", 2, 2, -1))})
    assert "qk_tracing_results" not in json.dumps(document)
    assert "qk_only_nodes" not in document


def test_without_contributors_outside_the_graph_there_are_no_nodes_apart(pruned):
    document = decode(pruned, {1: trace_of(Contributor("feature", 0, 1, 5, 1.0))})
    assert "qk_tracing_results" in node(document, "1_lor_7_2")
    assert list(document) == ["metadata", "qParams", "nodes", "links"]


def test_a_trace_without_contributors_has_empty_lists(pruned):
    assert node(decode(pruned, {1: QKTrace(0, [], [], [])}), "1_lor_7_2")["qk_tracing_results"] == {
        "pair_wise_contributors": [],
        "top_q_marginal_contributors": [],
        "top_k_marginal_contributors": [],
    }


@given(seed=st.integers(0, 1000), n_links=st.integers(0, 300), n_pruned=st.integers(0, 60))
def test_every_id_of_a_trace_is_a_node_or_listed_apart_and_never_both(seed, n_links, n_pruned):
    graph = make_complete_graph(seed=seed)
    pruned = make_pruned(graph, n_links, seed=seed)
    pruned.node_mask[:n_pruned] = False
    traces = make_traces(graph, topk=4, seed=seed)
    document = GraphBody.model_validate_json(b"".join(build(pruned, traces).encode()))
    ids = {node.node_id for node in document.nodes}
    results = [node.qk_tracing_results for node in document.nodes if node.qk_tracing_results]
    named = {
        name for found in results for *pair, _ in found.pair_wise_contributors for name in pair
    }
    for found in results:
        named |= {name for name, _ in found.top_q_marginal_contributors}
        named |= {name for name, _ in found.top_k_marginal_contributors}
    assert document.qk_only_nodes.keys() == named - ids
    rows = set(lorsa_rows(graph)) - set(range(n_pruned))
    used = set(pruned.edge_sources.tolist()) | set(pruned.edge_targets.tolist())
    assert len(results) <= len(rows & used)
    assert {link.source for link in document.links} | {
        link.target for link in document.links
    } <= ids


def test_blocks_of_nodes_apart_join_without_a_seam(pruned):
    n = 2 * graph_document.ITEMS_PER_CHUNK + 3
    trace = trace_of(*(Contributor("feature", 1, 2, index, 1.0) for index in range(n)))
    assert len(decode(pruned, {1: trace})["qk_only_nodes"]) == n


def test_values_of_a_trace_have_no_digit_more_than_their_float32_needs(pruned):
    value = float(np.float32(0.1))
    trace = QKTrace(0, [], [(Contributor("bias_q", 2, 2, -1), value)], [])
    assert b'["1_bias_lorsa_bQ_2",0.1]' in b"".join(build(pruned, {1: trace}).encode())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["pairs", "q_marginal", "k_marginal"])
def test_a_value_of_a_trace_that_json_lacks_is_refused_before_the_first_byte(pruned, where, number):
    trace = trace_of(Contributor("bias_q", 2, 2, -1))
    item = getattr(trace, where)[0]
    trace = dataclasses.replace(trace, **{where: [(*item[:-1], number)]})
    with pytest.raises(NotFinite, match="qk_tracing_results of the graph are not finite"):
        build(pruned, {1: trace})


def test_an_activation_of_a_node_apart_that_json_lacks_is_refused(pruned):
    trace = trace_of(Contributor("feature", 1, 2, 3, float("inf")))
    with pytest.raises(NotFinite, match="qk_only_nodes"):
        build(pruned, {1: trace})


@pytest.mark.parametrize("name", ["cumulative_scores", "edge_weights"])
def test_a_number_of_the_graph_that_json_lacks_is_refused(pruned, name):
    getattr(pruned, name)[3] = float("nan")
    with pytest.raises(NotFinite, match=name):
        build(pruned)


def test_half_a_surrogate_pair_is_refused_before_the_first_byte(pruned):
    with pytest.raises(InvalidInput, match="surrogate"):
        build(pruned, logit_tokens={7: "\ud83d"})


def test_one_target_given_twice_is_refused(pruned):
    pruned.graph.logit_targets[3] = pruned.graph.logit_targets[0]
    with pytest.raises(InvalidInput, match=r"3_7_4.*attribution_targets"):
        build(pruned)


ENCODE_AND_MEASURE = """
import re
from delivery import spool
from graphs import document as graph_document
from tests.support.synthetic_complete_graph import make_complete_graph, make_traces
from tests.support.synthetic_graph import make_metadata, make_pruned

def status(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

def build(pruned, traces):
    return graph_document.build_complete(pruned, make_metadata(), {}, traces)

graph = make_complete_graph()
spool(build(make_pruned(graph, 1000), make_traces(graph)).encode(), compress=True).close()
graph = make_complete_graph(n_features=5_000)
pruned, traces = make_pruned(graph, 1_000_000), make_traces(graph)
open("/proc/self/clear_refs", "w").write("5")  # start the high-water mark anew
before = status("VmRSS")
with spool(build(pruned, traces).encode(), compress=False) as spooled:
    print(status("VmHWM") - before, spooled.size // 2**20, len(traces))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_traced_document_is_never_in_memory_as_a_whole():
    grown, size, n_traces = map(int, output_of(ENCODE_AND_MEASURE).split())
    assert n_traces > 2_000
    assert size > 70
    assert grown < 40
