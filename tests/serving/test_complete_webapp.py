"""The webapp's graphs of a complete replacement model, as it asks for those of qwen3-1.7b."""

import json

import pytest
import torch

from settings import get_settings
from tests.support.complete_worker import serving_complete
from tests.support.demo_worker import PROMPT
from tests.support.http_server import serving
from tests.support.webapp_calls import TRANSPORTS
from tests.support.webapp_rules import Graph, Preview, Steered

# Its dialog's defaults for such a model, and their bounds.
GENERATE = {
    "prompt": PROMPT,
    "model_id": "demo",
    "batch_size": 16,
    "max_n_logits": 10,
    "desired_logit_prob": 0.95,
    "node_threshold": 0.7,
    "edge_threshold": 0.8,
    "slug_identifier": "michaeljordan-1",
    "max_feature_nodes": 3000,
    "user_id": "Ada",
    "enable_qk_tracing": True,
    "qk_top_fraction": 0.5,
    "qk_topk": 5,
}
# Its dialog sends a node's layer and index, and not what kind of node it is.
STEER = {
    "prompt": PROMPT,
    "model_id": "demo",
    "n_tokens": 10,
    "top_k": 5,
    "freeze_attention": True,
    "temperature": 0,
    "freq_penalty": 0,
    "seed": 16,
    "request_type": "steer",
}
LEAST = {"node_threshold": 0.3, "edge_threshold": 0.5, "qk_top_fraction": 0.05, "qk_topk": 1}


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def complete(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("complete")
    with serving_complete(directory, model_dtype=request.param) as served:
        assert served[1].dtype is getattr(torch, request.param)
        yield served


@pytest.fixture(scope="module")
def server(complete):
    changed = {"transcoder_set": complete[0].transcoder_set, "model_id": "demo"}
    changed["model_dtype"] = complete[0].model_dtype
    with serving(upload_allowed_hosts=("127.0.0.1",), **changed) as running:
        yield running


@pytest.fixture(autouse=True)
def _environment(monkeypatch, complete):
    monkeypatch.setenv("MODEL_ID", "demo")
    monkeypatch.setenv("TRANSCODER_SET", str(complete[0].transcoder_set))
    monkeypatch.setenv("MODEL_DTYPE", complete[0].model_dtype)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("UPLOAD_ALLOWED_HOSTS", "127.0.0.1")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(params=TRANSPORTS)
def call(request, server):
    """The output, as the webapp reads it."""

    def output(action, body):
        answered = request.param(server, action, body)
        assert list(answered) == ["output"], answered
        return answered["output"]

    return output


@pytest.mark.parametrize("chosen", [{}, LEAST], ids=["defaults", "least"])
def test_a_traced_graph_is_generated_uploaded_and_valid(call, store, chosen):
    url = store.presign("user-graphs/1/traced.json", ContentType="application/json")
    receipt = call("generate-graph", {**GENERATE, **chosen, "signed_url": url})
    assert receipt["success"] == "Graph uploaded", receipt
    graph = Graph.model_validate_json(store.get("user-graphs/1/traced.json")[0])
    settings = graph.metadata.generation_settings
    assert settings.enable_qk_tracing
    assert settings.qk_topk == {**GENERATE, **chosen}["qk_topk"]
    ids = {node.node_id for node in graph.nodes}
    assert all({link.source, link.target} <= ids for link in graph.links)
    # It fetches a feature by the node's layer, and needs one above 0 to draw anything.
    assert any(isinstance(node.layer, int) and node.layer > 0 for node in graph.nodes)
    logits = [node for node in graph.nodes if node.feature_type == "logit"]
    assert all("(p=" in node.clerp for node in logits)


def test_a_traced_graph_without_an_upload_is_valid_too(call):
    graph = Graph.model_validate_json(json.dumps(call("generate-graph", GENERATE)))
    assert any(node.qk_tracing_results for node in graph.nodes)


def test_the_preview_counts_the_graph_s_tokens(call):
    preview = Preview.model_validate(
        call("forward-pass", {"prompt": PROMPT, "request_type": "forward-pass"})
    )
    graph = call("generate-graph", GENERATE)
    assert preview.input_tokens == graph["metadata"]["prompt_tokens"]


def test_nodes_of_both_kinds_are_steered_without_their_kind(call):
    nodes = call("generate-graph", {**GENERATE, "node_threshold": 1, "edge_threshold": 1})["nodes"]
    features: dict[tuple[str, ...], list[str]] = {}
    for node in nodes:
        if node["activation"] is not None:
            layer, _, index, position = node["node_id"].split("_")
            features.setdefault((layer, index, position), []).append(node["feature_type"])
    for kind in ("lorsa", "cross layer transcoder"):
        layer, index, position = next(
            map(int, at) for at, kinds in features.items() if kinds == [kind] and at[2] != "0"
        )
        feature = {"layer": layer, "index": index, "token_active_position": position}
        changes = [
            {"steer_position": position, "steer_generated_tokens": False, "delta": 30},
            {"steer_position": None, "steer_generated_tokens": True, "delta": 30},
        ]
        asked = [{**feature, "ablate": False, **change} for change in changes]
        output = call("steer", {**STEER, "features": asked})
        steered = Steered.model_validate(output)
        assert steered.STEERED_GENERATION.startswith(PROMPT)
        assert steered.STEERED_LOGITS_BY_TOKEN != steered.DEFAULT_LOGITS_BY_TOKEN
