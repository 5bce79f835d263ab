"""A pruned graph becomes the document that the library would make of it, in chunks."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.frontend.graph_models import Model
from circuit_tracer.utils.create_graph_files import create_nodes, create_used_nodes_and_edges
from circuit_tracer.utils.decode_url_features import decode_url_features
from hypothesis import given
from hypothesis import strategies as st

from attribution import prune
from errors import Internal, InvalidInput, NotFinite
from graphs import document as graph_document
from tests.support.edge_masks import edge_mask
from tests.support.programs import output_of
from tests.support.synthetic_graph import make_graph, make_metadata, make_pruned


def build(pruned, *, logit_tokens=None, logit_positions=None, **metadata):
    fields = make_metadata(pruned.graph.n_pos, **metadata)
    return graph_document.build(pruned, fields, logit_tokens or {}, logit_positions or {})


def decode(pruned, **given):
    return json.loads(b"".join(build(pruned, **given).encode()), parse_constant=fail)


def fail(constant):
    raise AssertionError(f"JSON has no {constant}")


def of_type(document, kind):
    return [node for node in document["nodes"] if node["feature_type"] == kind]


@pytest.fixture
def pruned():
    return prune(make_graph(), 0.8, 0.9)


def library_document(pruned):
    """The library's own nodes and links, with our ids for errors."""
    nodes = create_nodes(pruned.graph, pruned.node_mask, None, pruned.cumulative_scores)
    for node in nodes.values():
        if node.feature_type == "mlp reconstruction error":
            node.node_id = f"{node.layer}_-1_{node.ctx_idx}"
    used, links = create_used_nodes_and_edges(pruned.graph, nodes, edge_mask(pruned))
    return json.loads(json.dumps([[node.model_dump() for node in used], links]))


def as_float32(value):
    """Numbers as the graph has them; the library writes them out as if they had 64 bits."""
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, list):
        return [as_float32(item) for item in value]
    if isinstance(value, dict):
        return {key: as_float32(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.6), (1.0, 0.999)])
def test_the_document_has_the_library_s_nodes_and_links(thresholds):
    pruned = prune(make_graph(), *thresholds)
    document = decode(pruned)
    nodes, links = library_document(pruned)
    assert as_float32(document["nodes"]) == as_float32(nodes)
    assert as_float32(document["links"]) == as_float32(links)


def test_the_document_is_one_that_the_library_s_model_takes(pruned):
    model = Model(**decode(pruned))
    assert model.metadata.scan == "synthetic"
    assert len(model.nodes) > 20


def test_an_error_and_the_layer_0_feature_that_the_library_confuses_have_two_ids():
    graph = make_graph()
    graph.active_features[graph.selected_features[0]] = torch.tensor([0, 2, 1])
    pruned = make_pruned(graph, 2000)
    error_of_layer_1_at_2 = len(graph.selected_features) + 1 * graph.n_pos + 2
    assert error_of_layer_1_at_2 in pruned.edge_sources
    assert 0 in pruned.edge_sources

    ids = [node["node_id"] for node in decode(pruned)["nodes"]]

    assert "0_1_2" in ids
    assert "1_-1_2" in ids
    assert len(set(ids)) == len(ids)


def test_the_library_reads_layer_and_position_out_of_an_error_s_id(pruned):
    error = of_type(decode(pruned), "mlp reconstruction error")[0]
    _, [pinned] = decode_url_features(f"http://viewer/?pinnedIds={error['node_id']}")
    assert (str(pinned.layer), pinned.pos) == (error["layer"], error["ctx_idx"])
    assert pinned.feature_idx == error["feature"] == -1


def test_every_end_of_a_link_is_a_node(pruned):
    document = decode(pruned)
    ids = {node["node_id"] for node in document["nodes"]}
    assert {link["source"] for link in document["links"]} <= ids
    assert {link["target"] for link in document["links"]} <= ids


def test_the_counts_are_known_before_anything_is_encoded(pruned):
    document = build(pruned)
    decoded = decode(pruned)
    assert document.num_nodes == len(decoded["nodes"])
    assert document.num_links == len(decoded["links"]) > 0
    assert document.num_tokens == 5


def test_features_and_errors_without_a_link_are_left_out():
    pruned = make_pruned(make_graph(), 1)
    document = decode(pruned)
    assert len(document["links"]) == 1
    assert len(of_type(document, "embedding")) == 5
    assert len(of_type(document, "logit")) == 4
    ends = {document["links"][0]["source"], document["links"][0]["target"]}
    others = [n for n in document["nodes"] if n["feature_type"] not in ("embedding", "logit")]
    assert {node["node_id"] for node in others} <= ends


def test_links_of_a_node_that_was_pruned_away_are_left_out():
    pruned = make_pruned(make_graph(), 500)
    pruned.node_mask[:20] = False
    document = build(pruned)
    kept = (pruned.edge_targets >= 20) & (pruned.edge_sources >= 20)
    assert document.num_links == kept.sum() < 500
    assert len(decode(pruned)["links"]) == document.num_links


def test_a_graph_with_no_link_is_a_document():
    document = decode(make_pruned(make_graph(), 0))
    assert document["links"] == []
    assert len(document["nodes"]) == 5 + 4


def test_blocks_join_without_a_seam():
    """More links and nodes than a block, one block of links with nothing kept, a short last one."""
    block = graph_document.ITEMS_PER_CHUNK
    graph = make_graph(n_features=block + 10)
    pruned = make_pruned(graph, 3 * block + 7)
    pruned.node_mask[0] = False
    pruned.edge_sources[block : 2 * block] = 0
    pruned.edge_sources[:block].clamp_(min=1)
    links = decode(pruned)["links"]
    kept = (pruned.edge_sources != 0) & (pruned.edge_targets != 0)
    assert len(links) == kept.sum()
    assert as_float32([link["weight"] for link in links]) == pruned.edge_weights[kept].tolist()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_weight_comes_back_as_the_same_float32(weights):
    pruned = make_pruned(SMALL, len(weights))
    pruned = dataclasses.replace(pruned, edge_weights=torch.tensor(weights, dtype=torch.float32))
    decoded = np.array([link["weight"] for link in decode(pruned)["links"]], dtype=np.float32)
    assert decoded.tobytes() == pruned.edge_weights.numpy().tobytes()


SMALL = make_graph(n_features=3)


def test_a_weight_has_no_digit_more_than_its_float32_needs():
    pruned = make_pruned(SMALL, 1)
    pruned.edge_weights[0] = 0.1
    assert b'"weight":0.1}' in b"".join(build(pruned).encode())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(text):
    graph = make_graph(n_features=3)
    graph.logit_targets[0] = LogitTarget(text, 7)
    fields = {"prompt": text, "prompt_tokens": [text] * 5, "info": {"creator_name": text}}
    document = decode(make_pruned(graph, 9), **fields)
    assert document["metadata"]["prompt"] == text
    assert document["metadata"]["prompt_tokens"] == [text] * 5
    assert document["metadata"]["info"]["creator_name"] == text
    assert of_type(document, "logit")[0]["clerp"].startswith(f'Output "{text}" (p=')


def test_half_a_surrogate_pair_is_refused_before_the_first_byte():
    with pytest.raises(InvalidInput, match="surrogate"):
        build(make_pruned(SMALL, 9), info={"creator_name": "\ud83d"})
    graph = make_graph(n_features=3)
    graph.logit_targets[0] = LogitTarget("\ud83d", 7)
    with pytest.raises(InvalidInput, match="surrogate"):
        build(make_pruned(graph, 9))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["edge_weights", "cumulative_scores", "replacement_score"])
def test_a_number_that_json_lacks_is_refused_before_the_first_byte(where, number):
    pruned = make_pruned(make_graph(), 50)
    if where == "replacement_score":
        pruned = dataclasses.replace(pruned, replacement_score=number)
        where = "graph_scores"
    else:
        getattr(pruned, where)[17] = number
        pruned.edge_sources[0] = 17
    with pytest.raises(NotFinite, match=f"{where} of the graph are not finite numbers in float32"):
        build(pruned)


def test_activations_and_probabilities_that_json_lacks_are_refused_too():
    graph = make_graph()
    graph.activation_values[:] = float("inf")
    with pytest.raises(NotFinite, match="activation_values"):
        build(make_pruned(graph, 50))
    graph = make_graph()
    graph.logit_probabilities[0] = float("nan")
    with pytest.raises(NotFinite, match="logit_probabilities"):
        build(make_pruned(graph, 50))


def test_a_target_that_is_no_token_has_an_id_of_its_own():
    graph = make_graph()
    graph.logit_targets[1] = LogitTarget("basket - tennis", 256 + 1)
    logits = of_type(decode(make_pruned(graph, 50)), "logit")
    assert logits[1]["node_id"] == "4_257_4"
    assert logits[1]["jsNodeId"] == "L_257-4"
    assert logits[1]["clerp"].startswith('Output "basket - tennis" (p=0.')


def test_a_logit_that_stands_for_a_feature_is_at_the_feature_s_position():
    graph = make_graph()
    graph.logit_targets[1] = LogitTarget("layer 1 feature 5 at 2", 256 + 1)
    nodes = of_type(decode(make_pruned(graph, 50), logit_positions={257: 2}), "logit")
    assert [node["node_id"] for node in nodes] == ["4_7_4", "4_257_2", "4_9_4", "4_10_4"]
    assert [node["ctx_idx"] for node in nodes] == [4, 2, 4, 4]
    assert nodes[1]["jsNodeId"] == "L_257-2"
    links = decode(make_pruned(graph, 900), logit_positions={257: 2})["links"]
    assert "4_257_2" in {link["target"] for link in links}


def test_a_logit_shows_its_token_as_the_caller_has_it():
    pruned = make_pruned(make_graph(), 50)
    logits = of_type(decode(pruned, logit_tokens={8: " as it stands"}), "logit")
    assert [node["clerp"].split('"')[1] for node in logits] == [
        *(" word0", " as it stands", " word2", " word3")
    ]


def test_one_target_given_twice_is_refused():
    graph = make_graph()
    graph.logit_targets[3] = graph.logit_targets[0]
    with pytest.raises(InvalidInput, match=r"4_7_4.*attribution_targets"):
        build(make_pruned(graph, 50))


def test_activations_of_sixteen_bits_are_written_as_what_they_are():
    graph = make_graph()
    graph.activation_values = graph.activation_values.bfloat16()
    features = of_type(decode(make_pruned(graph, 900)), "cross layer transcoder")
    assert features[0]["activation"] == float(graph.activation_values[graph.selected_features[0]])


def test_prompt_tokens_must_fit_the_positions():
    with pytest.raises(Internal, match="4 prompt_tokens, the graph 5 positions"):
        build(make_pruned(SMALL, 9), prompt_tokens=["a"] * 4)


ENCODE_AND_MEASURE = """
import re
from graphs import document as graph_document
from delivery import spool
from tests.support.edge_masks import edge_mask
from tests.support.synthetic_graph import make_graph, make_metadata, make_pruned

def status(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

def build(pruned):
    return graph_document.build(pruned, make_metadata(), {})

spool(build(make_pruned(make_graph(), 1000)).encode(), compress=True).close()
pruned = make_pruned(make_graph(n_features=10_000), 3_000_000)
for compress in (False, True):
    open("/proc/self/clear_refs", "w").write("5")  # start the high-water mark anew
    before = status("VmRSS")
    with spool(build(pruned).encode(), compress=compress) as spooled:
        print(spooled.size >> 20, status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_million_links_need_less_than_64_mb_beyond_the_arrays():
    output = output_of(ENCODE_AND_MEASURE)
    plain_mb, plain_peak_mb, gzipped_mb, gzipped_peak_mb = map(int, output.split())
    assert plain_mb > 150 > 64 > gzipped_mb > 30
    assert max(plain_peak_mb, gzipped_peak_mb) < 64
