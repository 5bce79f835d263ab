"""Traced graphs of some size: uploaded to a store that checks signatures, streamed, kept."""

import gzip
import hashlib
import json
import threading

import pytest

from actions.answer import answer
from errors import UploadFailed
from graphs.cache import TracedGraph, kept_bytes
from tests.support.complete_worker import forbidding_runs, forget_graphs, serving_complete
from tests.support.demo_worker import GRAPH, as_json, ask, comparable, without_times
from tests.support.http_server import assert_error, post, serving
from tests.support.webapp_rules import Graph

LONG = "Michael Jordan joue au basket , Rafael Nadal juega al tenis . " * 4
TRACED = {**GRAPH, "enable_qk_tracing": True, "qk_top_fraction": 1, "qk_topk": 40}
LARGE = {**TRACED, "prompt": LONG, "node_threshold": 1, "edge_threshold": 1}
LARGE |= {"max_feature_nodes": 600}
ALLOWED = {"upload_allowed_hosts": ("127.0.0.1",)}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    with serving_complete(tmp_path_factory.mktemp("complete"), **ALLOWED) as served:
        yield served


@pytest.fixture
def settings(complete):
    forget_graphs(complete[1])
    return complete[0]


@pytest.fixture
def no_model(complete):
    with forbidding_runs(complete[1]) as forbid:
        yield forbid


def test_a_large_traced_graph_is_uploaded_and_the_receipt_tells_what_the_store_then_has(
    settings, store
):
    plain = ask(LARGE, settings)
    Graph.model_validate_json(json.dumps(plain))
    for compress in (False, True):
        key = f"large-{compress}.json"
        body = {**LARGE, "signed_url": store.presign(key), "compress": compress}
        receipt = ask(body, settings)
        stored, headers = store.get(key)
        assert receipt["success"] == "Graph uploaded"
        assert receipt["bytes"] == len(stored)
        assert receipt["sha256"] == hashlib.sha256(stored).hexdigest()
        assert headers.get("content-encoding") == ("gzip" if compress else None)
        text = gzip.decompress(stored) if compress else stored
        assert len(text) > 2_000_000
        graph = json.loads(text)
        assert receipt["num_nodes"] == len(graph["nodes"])
        assert receipt["num_links"] == len(graph["links"])
        assert receipt["num_tokens"] == len(graph["metadata"]["prompt_tokens"])
        assert without_times(graph) == without_times(plain)


def test_a_traced_graph_whose_upload_failed_is_uploaded_to_a_fresh_url_without_the_model(
    settings, store, no_model
):
    wrong = store.presign("kept.json").replace("X-Amz-Signature=", "X-Amz-Signature=0")
    with pytest.raises(UploadFailed, match=r"kept.*fresh signed_url"):
        ask({**TRACED, "signed_url": wrong}, settings)
    no_model()
    receipt = ask({**TRACED, "signed_url": store.presign("kept.json")}, settings)
    stored = store.get("kept.json")[0]
    assert receipt["bytes"] == len(stored)
    assert [node for node in json.loads(stored)["nodes"] if "qk_tracing_results" in node]


def test_without_room_for_the_traces_their_graph_is_kept_and_without_room_nothing(
    settings, complete, store
):
    ask(TRACED, settings)
    [(_, traced)] = complete[1].graphs.kept.items()
    assert isinstance(traced, TracedGraph)
    wrong = store.presign("lost.json").replace("X-Amz-Signature=", "X-Amz-Signature=0")
    for room, is_kept in ((kept_bytes(traced.graph), True), (0, False)):
        forget_graphs(complete[1], room)
        with pytest.raises(UploadFailed) as raised:
            ask({**TRACED, "signed_url": wrong}, settings)
        assert ("kept" in str(raised.value)) is is_kept


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Rafael Nadal juega al"},
        {"max_n_logits": 3},
        {"desired_logit_prob": 0.5},
        {"max_feature_nodes": 20},
        {"batch_size": 3, "max_feature_nodes": 20},
        {"attribution_targets": [" tennis"]},
    ],
)
def test_what_changes_the_attribution_is_attributed_and_traced_anew(fields, settings, complete):
    ask(TRACED, settings)
    after_another = ask({**TRACED, **fields}, settings)
    forget_graphs(complete[1])
    assert without_times(after_another) == without_times(ask({**TRACED, **fields}, settings))


def test_a_graph_is_the_same_with_the_pieces_that_http_streams(settings, complete):
    expected = ask(LARGE, settings)
    changed = {"transcoder_set": settings.transcoder_set, "model_id": "demo"}
    with serving(**changed) as server:
        answered = post(server, "generate-graph", LARGE)
        assert answered.headers["Content-Type"] == "application/json"
        assert without_times(answered.json()) == without_times(expected)
        with complete[1].lock:
            assert_error(post(server, "generate-graph", TRACED), 503, "busy")


def test_jobs_at_the_same_time_are_answered_as_each_alone(settings, complete):
    bodies = [
        {**TRACED, "prompt": prompt, "qk_topk": topk}
        for prompt in (GRAPH["prompt"], "Rafael Nadal juega al")
        for topk in (2, 5)
    ]
    alone = []
    for body in bodies:
        forget_graphs(complete[1])
        alone.append(comparable(ask(body, settings)))
    forget_graphs(complete[1])
    found = {}

    def work(i):
        found[i] = comparable(as_json(answer(bodies[i], complete[1], settings)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(bodies))] == alone
