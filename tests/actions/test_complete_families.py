"""Complete sets under their official names: from the cache to all actions, in every dtype."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import model_loader
from loading.loaded_model import LoadedModel
from serving import fitness
from settings import Settings
from tests.actions.test_cuda_worker import CLOSE, assert_like, share_of_nodes
from tests.support.chat_messages import user
from tests.support.cuda_devices import DEVICES, cuda_device
from tests.support.demo_worker import ask, settings_at, without_times
from tests.support.fitted_sets import fit_set
from tests.support.model_cache import commit_of
from tests.support.tiny_families import COMPLETE, write_family
from tests.support.webapp_rules import Graph

FAMILY = COMPLETE["Qwen 3 1.7B, complete 8x"]
TEXT = "The capital of France is"
PROMPTS: dict[str, dict[str, Any]] = {"text": {"prompt": TEXT}, "chat": {"messages": [user(TEXT)]}}
GRAPH = {
    "action": "generate-graph",
    "slug_identifier": "family",
    "max_feature_nodes": 60,
    "batch_size": 16,
}
TRACED = {**GRAPH, "enable_qk_tracing": True, "qk_top_fraction": 0.5, "qk_topk": 5}
DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Hugging Face's with a model, and a set that explains some of it."""
    home = tmp_path_factory.mktemp("home")
    write_family(home / "hub", FAMILY)
    fit_set(model_loader.load(settings(home)), home / "hub")
    return home


def settings(home: Path, **changed: Any) -> Settings:
    return settings_at(
        home,
        model_id=FAMILY.model,
        transcoder_set=FAMILY.transcoder_set,
        token_limit=100,
        **changed,
    )


def served(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Load the model of the settings as the process's one."""
    loaded = model_loader.load(chosen)
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    return loaded


def bodies(kind: str) -> dict[str, dict[str, Any]]:
    prompt = PROMPTS[kind]
    return {
        "forward-pass": {"action": "forward-pass", **prompt},
        "graph": {**GRAPH, **prompt},
        "traced": {**TRACED, **prompt},
    }


def answers(kind: str, chosen: Settings) -> dict[str, dict[str, Any]]:
    outputs = {name: ask(body, chosen) for name, body in bodies(kind).items()}
    rendered = {"action": "parse-chat-prompt", "prompt": outputs["forward-pass"]["prompt"]}
    steered = ask(steer_body(kind, outputs["traced"]), chosen)
    return {**outputs, "parse-chat-prompt": ask(rendered, chosen), "steer": steered}


def steer_body(kind: str, graph: dict[str, Any]) -> dict[str, Any]:
    """The feature of each kind with most influence, ablated or changed."""
    features = []
    for node_type in ("lorsa", "cross layer transcoder"):
        of_type = [node for node in graph["nodes"] if node["feature_type"] == node_type]
        best = max(of_type, key=lambda node: node["influence"])
        layer, name, index, position = best["node_id"].split("_")
        at = {"layer": int(layer), "index": int(index), "token_active_position": int(position)}
        kind_of = {"lor": "lorsa", "cro": "transcoder"}[name]
        features.append({**at, "kind": kind_of, "steer_position": int(position), "delta": 30.0})
    return {"action": "steer", "features": features, "n_tokens": 3, **PROMPTS[kind]}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_action_is_answered_alike_eager_and_lazy(
    dtype: str, kind: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_loading = []
    for lazy in (False, True):
        chosen = settings(home, model_dtype=dtype, lazy_decoder=lazy)
        loaded = served(chosen, monkeypatch)
        assert loaded.dtype is getattr(torch, dtype)
        by_loading.append(answers(kind, chosen))
    eager, lazily = by_loading
    for name in ("graph", "traced"):
        assert without_times(lazily[name]) == without_times(eager[name])
    for name in ("forward-pass", "steer"):
        assert lazily[name] == eager[name]
    steer = eager["steer"]
    assert steer["ignored_features"] == []
    assert steer["DEFAULT_LOGITS_BY_TOKEN"] != steer["STEERED_LOGITS_BY_TOKEN"]

    graph, forward = eager["traced"], eager["forward-pass"]
    Graph.model_validate_json(json.dumps(graph))
    metadata = graph["metadata"]
    assert metadata["prompt_tokens"] == forward["input_tokens"]
    assert metadata["scan"] == "qwen3-1.7b"
    repository = FAMILY.transcoder_set.rpartition("/")[0].rpartition("/")[0]
    assert metadata["info"]["weight_revisions"] == [
        f"{FAMILY.model}@{commit_of(FAMILY.model)}",
        f"{FAMILY.transcoder_set}@{commit_of(repository)}",
    ]
    assert [node for node in graph["nodes"] if "qk_tracing_results" in node]
    targets = [node for node in graph["nodes"] if node["is_target_logit"]]
    assert [node["feature"] for node in targets] == [
        salient["token_id"] for salient in forward["salient_logits"][: len(targets)]
    ]
    messages = eager["parse-chat-prompt"]["messages"]
    if kind == "chat":
        assert messages[-1] == user(TEXT)
    else:
        assert messages is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_graph_in_16_bits_is_near_that_of_float32(
    dtype: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = settings(home, model_dtype="float32")
    served(exact, monkeypatch)
    expected = answers("text", exact)
    chosen = settings(home, model_dtype=dtype)
    served(chosen, monkeypatch)
    found = answers("text", chosen)
    assert found["forward-pass"]["input_tokens"] == expected["forward-pass"]["input_tokens"]
    assert share_of_nodes(found["graph"], expected["graph"]) >= 0.8
    probabilities = [
        answer["forward-pass"]["cumulative_probability"] for answer in (found, expected)
    ]
    assert math.isclose(*probabilities, abs_tol=CLOSE[dtype])


@pytest.mark.parametrize(
    ("dtype", "lazy"), [("float32", False), ("bfloat16", True), ("float16", True)]
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_complete_set_is_read_onto_the_device_and_answers(
    device: str, dtype: str, lazy: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = settings(home, model_dtype=dtype, lazy_decoder=lazy)
    served(on_cpu, monkeypatch)
    expected = answers("text", on_cpu)
    with cuda_device(device):
        chosen = on_cpu.model_copy(update={"device": "cuda"})
        loaded = served(chosen, monkeypatch)
        weights = [weight for _, weight in loaded.weights()]
        assert {weight.device.type for weight in weights} == {"cuda"}
        fitness.check_weights(loaded)
        fitness.check_model(loaded)
        found = answers("text", chosen)
    assert found["parse-chat-prompt"] == expected["parse-chat-prompt"]
    if dtype == "float32":
        for name in ("forward-pass", "graph", "traced", "steer"):
            assert_like(found[name], expected[name], CLOSE[dtype], name)
        return
    for name in ("graph", "traced"):
        assert share_of_nodes(found[name], expected[name]) >= 0.8
    probabilities = [
        answer["forward-pass"]["cumulative_probability"] for answer in (found, expected)
    ]
    assert math.isclose(*probabilities, abs_tol=CLOSE[dtype])
