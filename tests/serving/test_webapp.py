"""The Neuronpedia webapp's way through the worker, with the bodies that it sends.

It names the action `request_type`, or not at all for a generation, and reads `error` and `output`.
"""

import asyncio
import json
import math

import pytest

import handler as door
from settings import get_settings
from tests.support.demo_worker import PROMPT
from tests.support.object_store import running_store

FEATURE = {
    "layer": 2,
    "index": 157,
    "token_active_position": 4,
    "steer_position": 4,
    "steer_generated_tokens": False,
    "delta": None,
    "ablate": True,
}
STEER = {
    "model_id": "demo",
    "features": [FEATURE],
    "n_tokens": 3,
    "top_k": 5,
    "freeze_attention": False,
    "temperature": 0,
    "freq_penalty": 0,
    "seed": None,
    "steered_output_only": False,
    "request_type": "steer",
}
GENERATE = {
    "model_id": "demo",
    "batch_size": 48,
    "max_n_logits": 10,
    "desired_logit_prob": 0.95,
    "node_threshold": 0.8,
    "edge_threshold": 0.85,
    "slug_identifier": "michaeljordan-1",
    "max_feature_nodes": 5000,
    "user_id": "Ada",
}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
CONTENT = [
    pytest.param({"prompt": PROMPT}, id="prompt"),
    pytest.param({"messages": MESSAGES}, id="messages"),
]

# What its validator of graphs and its reader of steering require.
NODE_FIELDS = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
METADATA_FIELDS = {"slug", "scan", "prompt_tokens", "prompt"}


@pytest.fixture(autouse=True)
def _demo(monkeypatch):
    for name in ("MODEL_ID", "TRANSCODER_SET", "MAX_OUTPUT_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("UPLOAD_ALLOWED_HOSTS", "127.0.0.1")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with running_store(tmp_path_factory.mktemp("store")) as running:
        yield running


def run_job(body):
    # The SDK posts JSON: what that can't hold would be lost.
    output = asyncio.run(door.handler({"id": "job", "input": json.loads(json.dumps(body))}))
    return json.loads(json.dumps(output, allow_nan=False))


@pytest.mark.parametrize("content", CONTENT)
def test_a_graph_is_generated_uploaded_and_valid(store, content):
    url = store.presign("user-graphs/1/michaeljordan-1.json", ContentType="application/json")
    receipt = run_job({**GENERATE, **content, "signed_url": url})
    assert receipt["success"] == "Graph uploaded", receipt
    graph = json.loads(store.get("user-graphs/1/michaeljordan-1.json")[0])
    assert set(graph["metadata"]) >= METADATA_FIELDS
    assert graph["metadata"]["slug"] == "michaeljordan-1"
    assert graph["metadata"]["info"]["creator_name"] == "Ada"
    assert all(set(node) >= NODE_FIELDS for node in graph["nodes"])
    ids = {node["node_id"] for node in graph["nodes"]}
    assert len(ids) == len(graph["nodes"])
    assert all(set(link) == {"source", "target", "weight"} for link in graph["links"])
    assert all({link["source"], link["target"]} <= ids for link in graph["links"])
    assert all(math.isfinite(link["weight"]) for link in graph["links"])


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("only_steered", [False, True])
def test_a_steered_text_is_one_that_the_webapp_reads(content, only_steered):
    output = run_job({**STEER, **content, "steered_output_only": only_steered})
    for side in ("DEFAULT", "STEERED"):
        assert output[f"{side}_GENERATION"]  # an empty text isn't taken
        entries = output[f"{side}_LOGITS_BY_TOKEN"]
        assert all(set(entry) == {"token", "top_logits"} for entry in entries)
        assert all(set(top) == {"token", "prob"} for e in entries for top in e["top_logits"])
    assert (output["DEFAULT_LOGITS_BY_TOKEN"] == []) is only_steered


@pytest.mark.parametrize("content", CONTENT)
def test_the_preview_counts_the_graph_s_tokens(content):
    wanted = {"max_n_logits": 10, "desired_logit_prob": 0.95}
    preview = run_job({**content, **wanted, "request_type": "forward-pass"})
    graph = run_job({**GENERATE, **content})
    assert preview["input_tokens"] == graph["metadata"]["prompt_tokens"]


def test_a_stored_prompt_without_its_bos_steers_at_the_graph_s_positions():
    graph = run_job({**GENERATE, "messages": MESSAGES})["metadata"]
    stored = graph["prompt"].removeprefix(graph["prompt_tokens"][0])
    parsed = run_job({"prompt": graph["prompt"], "request_type": "parse-chat-prompt"})
    assert (parsed["messages"], parsed["is_chat"]) == (MESSAGES, True)
    assert (parsed["prompt"], parsed["unsteerable_positions"]) == (stored, [0])
    steered = run_job({**STEER, "prompt": stored})
    tokens = [entry["token"] for entry in steered["DEFAULT_LOGITS_BY_TOKEN"]]
    assert tokens[: len(graph["prompt_tokens"]) - 1] == graph["prompt_tokens"][1:]


def test_a_failure_is_an_error_string():
    assert run_job({**GENERATE, "prompt": "a " * 80})["error"].startswith("prompt_too_long: ")
