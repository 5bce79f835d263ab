"""The nnsight engine in bfloat16 and float16: every architecture, dictionary, place and action."""

import copy
import math
from functools import cache
from typing import Any

import circuit_tracer
import pytest
import torch
from tokenizers import processors

import attribution
import model_loader
import steering
from graphs.cache import GraphCache
from loading.entry import ModelEntry
from loading.loaded_model import LoadedModel
from loading.nnsight_engine import replacement_model
from tests.support.demo_worker import ask, demo_settings
from tests.support.hugging_face_models import FAMILIES, hugging_face_model
from tests.support.steering_cases import PROMPT, generate
from tests.support.tiny_models import prompt_tokens, tiny_transcoders, word_tokenizer

TOKENS = prompt_tokens()
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# The library reads a norm's output in float32 in the families of Gemma.
WORST = ("cross_layer_jump_relu", True)
KINDS = [WORST, ("cross_layer_relu", False), ("jump_relu", True), ("top_k", False)]
PLACES = [
    ("gemma2", "gemma scope"), ("gemma2", "residual"), ("gemma3", "gemma scope"),
    ("gemma3", "residual"), ("gemma3 with vision", "gemma scope"), ("llama", "residual"),
    ("llama", "mlp"), ("qwen3", "mlp"), ("gpt-oss", "residual"), ("gpt-oss", "mlp"),
]  # fmt: skip


def new_model(
    family: str, hooks: str, kind: tuple[str, bool], dtype: torch.dtype, rounded_to: torch.dtype
) -> Any:
    """A replacement model in a dtype, its weights rounded to another before."""
    hf_model = hugging_face_model(copy.deepcopy(FAMILIES[family][0]))
    dictionary, skip = kind
    transcoders = tiny_transcoders(dictionary, hooks, skip=skip)
    for part in (hf_model, transcoders):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(rounded_to).float()
    model = replacement_model(hf_model, transcoders, f"tiny-{family}", torch.device("cpu"), dtype)
    model.tokenizer = word_tokenizer()
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return model


@cache
def pair(family: str, hooks: str, kind: tuple[str, bool], dtype: torch.dtype) -> tuple[Any, Any]:
    """The same rounded weights in 16 bits and, for the truth, in float32."""
    narrow, exact = (new_model(family, hooks, kind, d, dtype) for d in (dtype, torch.float32))
    return narrow, exact


def nodes(graph: Any) -> list[tuple[Any, ...]]:
    """What the rows and columns of a graph's adjacency matrix stand for."""
    names: list[tuple[Any, ...]] = [
        tuple(feature) for feature in graph.active_features[graph.selected_features].tolist()
    ]
    n_others = (graph.cfg.n_layers + 1) * len(graph.input_tokens)
    names += [("error or token", i) for i in range(n_others)]
    names += [("logit", i) for i in graph.logit_token_ids.tolist()]
    assert len(names) == len(graph.adjacency_matrix)
    return names


def distance(graph: Any, truth: Any) -> tuple[float, float]:
    """Jaccard of the nodes with the truth's, and the relative error of edges between shared."""
    ours, exact = nodes(graph), nodes(truth)
    shared = [node for node in ours if node in set(exact)]
    matrices = []
    for names, g in ((ours, graph), (exact, truth)):
        places = torch.tensor([names.index(node) for node in shared])
        matrices.append(g.adjacency_matrix.float()[places][:, places])
    error = (matrices[0] - matrices[1]).abs().sum() / matrices[1].abs().sum()
    return len(shared) / len({*ours, *exact}), float(error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}{', skip' * kind[1]}")
@pytest.mark.parametrize(("family", "hooks"), PLACES)
def test_graphs_and_steers_are_as_near_the_exact_ones_as_the_dtype_allows(
    family: str, hooks: str, kind: tuple[str, bool], dtype: str
) -> None:
    narrow, exact = pair(family, hooks, kind, DTYPES[dtype])
    graph, truth = (
        attribution.attribute(TOKENS, m, max_feature_nodes=60, batch_size=64)
        for m in (narrow, exact)
    )
    overlap, error = distance(graph, truth)
    assert overlap >= {"bfloat16": 0.9, "float16": 0.97}[dtype]
    assert error <= {"bfloat16": 0.05, "float16": 0.01}[dtype]
    interventions = [
        steering.Intervention(0, 3, 2, 3.0),
        steering.Intervention(2, 40, None, 5.0),
    ]
    for frozen in (False, True):
        ours, expected = (
            generate(m, interventions, n_tokens=1, freeze_attention=frozen) for m in (narrow, exact)
        )
        far = (ours.top_probs[0].sort().values - expected.top_probs[0].sort().values).abs().max()
        assert far < {"bfloat16": 0.03, "float16": 0.004}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt-oss"])
def test_the_graph_is_the_library_s(family: str, dtype: str) -> None:
    model, _ = pair(family, FAMILIES[family][1], ("jump_relu", False), DTYPES[dtype])
    how: dict[str, Any] = {"max_feature_nodes": 40, "batch_size": 16}
    ours = attribution.attribute(TOKENS, model, **how)
    theirs = circuit_tracer.attribute(TOKENS, model, **how)
    assert torch.equal(ours.selected_features, theirs.selected_features)
    assert torch.equal(ours.adjacency_matrix, theirs.adjacency_matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_four_actions_answer(family: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(family, FAMILIES[family][1], WORST, DTYPES[dtype])
    entry = ModelEntry("someone/tiny", "someone/set", "tiny", engine="nnsight")
    loaded = LoadedModel(entry, model, model.tokenizer, frozenset(), GraphCache(10**6))
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    settings = demo_settings(model_engine="nnsight", model_dtype=dtype)
    prompt = " ".join(f"w{i}" for i in PROMPT[1:])
    forward = ask({"action": "forward-pass", "prompt": prompt}, settings)
    graph = ask(
        {"action": "generate-graph", "prompt": prompt, "slug_identifier": "narrow"}, settings
    )
    [target] = [node for node in graph["nodes"] if node["is_target_logit"]]
    assert int(target["node_id"].split("_")[1]) == forward["salient_logits"][0]["token_id"]
    assert graph["links"]
    assert all(math.isfinite(link["weight"]) for link in graph["links"])
    feature = {"layer": 1, "index": 7, "token_active_position": 3, "steer_position": 3, "delta": 4}
    steer = ask(
        {"action": "steer", "prompt": prompt, "features": [feature], "n_tokens": 2}, settings
    )
    assert steer["STEERED_LOGITS_BY_TOKEN"] != steer["DEFAULT_LOGITS_BY_TOKEN"]
    assert ask({"action": "parse-chat-prompt", "prompt": prompt}, settings)["messages"] is None
