"""Graphs uploaded to a store that checks signatures, and attributions kept for the next request."""

import gzip
import hashlib
import json
import logging

import pytest

from errors import UploadFailed, UploadUrlRefused
from model_loader import get_model
from tests.support.demo_worker import GRAPH, ask, demo_settings, forget_graphs, without_times

SETTINGS = demo_settings(upload_allowed_hosts=("127.0.0.1",))
OTHER_THRESHOLDS = {"node_threshold": 0.95, "edge_threshold": 0.999}


@pytest.fixture(autouse=True)
def _nothing_kept():
    forget_graphs()


@pytest.fixture
def no_model():
    """From here on a run of the model fails the test."""

    def fail(*_):
        raise AssertionError("the model ran")

    handle = get_model(SETTINGS).model.blocks[0].register_forward_pre_hook(fail)
    yield
    handle.remove()


@pytest.mark.parametrize("compress", [False, True])
def test_the_receipt_tells_what_the_store_then_has(store, compress):
    key = f"graph-{compress}.json"
    body = {**GRAPH, "signed_url": store.presign(key), "compress": compress}
    receipt = ask(body, SETTINGS)
    stored, headers = store.get(key)
    assert receipt["success"] == "Graph uploaded"
    assert receipt["url"] == f"{store.url}/graphs/{key}"
    assert receipt["bytes"] == len(stored)
    assert receipt["sha256"] == hashlib.sha256(stored).hexdigest()
    assert receipt["compressed"] is compress
    assert headers.get("content-encoding") == ("gzip" if compress else None)
    graph = json.loads(gzip.decompress(stored) if compress else stored)
    assert receipt["num_nodes"] == len(graph["nodes"])
    assert receipt["num_links"] == len(graph["links"])
    assert receipt["num_tokens"] == len(graph["metadata"]["prompt_tokens"])
    assert set(receipt["timings_ms"]) >= {"tokenise", "attribute", "prune", "encode", "upload"}
    assert without_times(graph) == without_times(ask(GRAPH))


def test_headers_that_were_signed_are_sent(store):
    url = store.presign("tagged.json", Metadata={"user": "ada"}, ContentType="application/json")
    headers = {"x-amz-meta-user": "ada", "Content-Type": "application/json"}
    ask({**GRAPH, "signed_url": url, "signed_headers": headers}, SETTINGS)
    assert store.get("tagged.json")[1]["x-amz-meta-user"] == "ada"


def test_a_graph_whose_upload_failed_is_uploaded_to_a_fresh_url_without_the_model(store, request):
    wrong = store.presign("kept.json").replace("X-Amz-Signature=", "X-Amz-Signature=0")
    with pytest.raises(UploadFailed) as raised:
        ask({**GRAPH, "signed_url": wrong}, SETTINGS)
    assert "kept" in str(raised.value)
    assert "fresh signed_url" in str(raised.value)
    request.getfixturevalue("no_model")
    receipt = ask({**GRAPH, "signed_url": store.presign("kept.json")}, SETTINGS)
    assert receipt["bytes"] == len(store.get("kept.json")[0])


def test_other_thresholds_slug_and_user_are_served_from_what_was_kept_without_the_model(request):
    first = ask(GRAPH)
    request.getfixturevalue("no_model")
    repeated = ask({**GRAPH, **OTHER_THRESHOLDS, "slug_identifier": "again", "user_id": "Ada"})
    assert len(repeated["nodes"]) > len(first["nodes"])
    assert repeated["metadata"]["slug"] == "again"
    assert repeated["metadata"]["info"]["creator_name"] == "Ada"


def test_a_graph_from_what_was_kept_is_the_graph_of_a_fresh_attribution():
    ask(GRAPH)
    repeated = ask({**GRAPH, **OTHER_THRESHOLDS})
    forget_graphs()
    assert without_times(repeated) == without_times(ask({**GRAPH, **OTHER_THRESHOLDS}))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Rafael Nadal juega al"},
        {"max_n_logits": 3},
        {"desired_logit_prob": 0.5},
        {"max_feature_nodes": 20},
        {"batch_size": 3, "max_feature_nodes": 20},
        {"attribution_targets": [" tennis"]},
        {"attribution_targets": [{"plus": [" tennis"], "minus": [" basket"]}]},
    ],
)
def test_what_changes_the_attribution_is_attributed_anew(fields):
    ask(GRAPH)
    after_another = ask({**GRAPH, **fields})
    forget_graphs()
    assert without_times(after_another) == without_times(ask({**GRAPH, **fields}))


def test_targets_that_differ_in_kind_side_or_order_are_not_taken_for_one_another():
    sides = {"plus": [" tennis"], "minus": [" basket"]}
    feature = {"layer": 1, "position": 4}
    active = [
        node["node_id"].split("_")[1]
        for node in ask({**GRAPH, "node_threshold": 1, "edge_threshold": 1})["nodes"]
        if node["node_id"].startswith("1_") and node["ctx_idx"] == 4 and node["activation"]
    ]
    asked = [
        [" tennis", " basket"],
        [" basket", " tennis"],
        [sides],
        [{"plus": sides["minus"], "minus": sides["plus"]}],
        [{**feature, "index": int(active[0])}],
        [{**feature, "index": int(active[1])}],
    ]
    graphs = [without_times(ask({**GRAPH, "attribution_targets": each})) for each in asked]
    for targets, graph in zip(asked, graphs, strict=True):
        forget_graphs()
        assert graph == without_times(ask({**GRAPH, "attribution_targets": targets}))


def test_a_graph_of_a_difference_and_a_feature_is_kept_too(request):
    [feature] = [
        node for node in ask(GRAPH)["nodes"] if node["feature_type"] == "cross layer transcoder"
    ][:1]
    layer, index, position = map(int, feature["node_id"].split("_"))
    targets = [
        {"plus": [" tennis"], "minus": [" basket"]},
        {"layer": layer, "index": index, "position": position},
    ]
    body = {**GRAPH, "attribution_targets": targets}
    first = ask(body)
    request.getfixturevalue("no_model")
    again = ask({**body, **OTHER_THRESHOLDS})
    assert again["metadata"]["attribution_targets"] == targets
    assert len(again["nodes"]) >= len(first["nodes"])


def test_without_room_nothing_is_kept_and_nothing_is_promised(store):
    forget_graphs(max_bytes=0)
    wrong = store.presign("lost.json").replace("X-Amz-Signature=", "X-Amz-Signature=0")
    with pytest.raises(UploadFailed) as raised:
        ask({**GRAPH, "signed_url": wrong}, SETTINGS)
    assert "kept" not in str(raised.value)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/key?X-Amz-Signature=feedbeef",
        "http://169.254.169.254/latest?X-Amz-Signature=feedbeef",
        "ftp://store.example/key?X-Amz-Signature=feedbeef",
        "file:///etc/passwd?X-Amz-Signature=feedbeef",
    ],
)
def test_a_url_the_worker_must_not_go_to_is_refused_before_any_work(url, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UploadUrlRefused) as raised:
        ask({**GRAPH, "signed_url": url})
    assert "feedbeef" not in str(raised.value)
    assert "feedbeef" not in caplog.text
