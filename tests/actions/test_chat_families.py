"""Every action counts a conversation's tokens alike, for each family's model and chat template."""

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

import model_loader
import schemas
from actions.answer import ACTIONS
from actions.job import Job
from loading.loaded_model import LoadedModel
from tests.support import tiny_tokenizers
from tests.support.chat_messages import assistant, user
from tests.support.demo_worker import as_json, demo_settings
from tests.support.model_configs import GPT2_SHAPE, SHAPE, gemma3_with_vision, hugging_face_model

CONVERSATION = [user("What is one?"), assistant("The big")]
TEXT = "The capital of France is"
N_LAYERS, D_MODEL, N_FEATURES = 3, 32, 12


@dataclass
class Family:
    """A model of the family in a directory, loaded as the worker loads it."""

    loaded: LoadedModel
    hf_model: Any
    ids: list[int]  # the tokens of the conversation or text, by hand
    n_unsteerable: int
    asked: dict[str, Any]  # `messages`, or `prompt` where there is no chat template

    def ask(self, action: str, **fields: Any) -> dict[str, Any]:
        request = schemas.parse_request({"action": action, **fields})
        settings = demo_settings(token_limit=128)
        job = Job(settings, threading.Event())
        return as_json(ACTIONS[type(request)](request, self.loaded, job))


def with_template(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    # transformers' own continuation of a last message.
    return tokenizer.apply_chat_template(CONVERSATION, continue_final_message=True)


def qwen3_base() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizers.qwen3()
    tokenizer.chat_template = None
    return tokenizer


# Tokenizer, configuration, tokens, unsteerable positions.
FAMILIES: dict[str, tuple[Any, Any, Any, int]] = {
    # No BOS: a turn's own marker leads, and text without one gets the pad token.
    "qwen3": (
        tiny_tokenizers.qwen3,
        lambda **c: Qwen3Config(**{**SHAPE, **c}),
        with_template,
        1,
    ),
    "qwen3, text": (
        qwen3_base,
        lambda **c: Qwen3Config(**{**SHAPE, **c}),
        lambda t: [t.pad_token_id, *t.encode(TEXT)],
        1,
    ),
    "gemma2-it": (
        tiny_tokenizers.gemma2,
        lambda **c: Gemma2Config(**{**SHAPE, "sliding_window": 8, **c}),
        with_template,
        1,
    ),
    "gemma3-it": (tiny_tokenizers.gemma3, gemma3_with_vision, with_template, 4),
    "llama3-instruct": (
        tiny_tokenizers.llama3,
        lambda **c: LlamaConfig(**{**SHAPE, **c}),
        with_template,
        1,
    ),
    "gpt2": (
        tiny_tokenizers.gpt2,
        lambda **c: GPT2Config(**{**GPT2_SHAPE, **c}),
        lambda t: [t.eos_token_id, *t.encode(TEXT)],
        1,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Family:
    new_tokenizer, new_config, ids_of, n_unsteerable = FAMILIES[request.param]
    tokenizer = new_tokenizer()
    # A directory's name tells nothing of the family.
    directory = tmp_path_factory.mktemp("weights")
    config: PretrainedConfig = new_config(vocab_size=len(tokenizer), initializer_range=0.2)
    hugging_face_model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    transcoders = save_transcoders(tmp_path_factory.mktemp("transcoders"))
    settings = demo_settings(model_id=str(directory), transcoder_set=str(transcoders))
    return Family(
        model_loader.load(settings),
        AutoModelForCausalLM.from_pretrained(directory),
        ids_of(tokenizer),
        n_unsteerable,
        {"messages": CONVERSATION} if tokenizer.chat_template else {"prompt": TEXT},
    )


def save_transcoders(directory):
    torch.manual_seed(1)
    layers = {}
    for layer in range(N_LAYERS):
        layers[layer] = SingleLayerTranscoder(
            D_MODEL, N_FEATURES, torch.nn.functional.relu, layer, dtype=torch.float32
        )
        for parameter in layers[layer].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    TranscoderSet(layers, "mlp.hook_in", "hook_mlp_out").to_safetensors(str(directory))
    (directory / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    return directory


@pytest.fixture(scope="module")
def tokens(family) -> list[str]:
    return [family.loaded.tokenizer.decode([i]) for i in family.ids]


@pytest.fixture(scope="module")
def graph(family) -> dict[str, Any]:
    """The whole graph, nothing pruned."""
    return family.ask("generate-graph", **family.asked, node_threshold=1, edge_threshold=1)


@pytest.fixture(scope="module")
def forward(family) -> dict[str, Any]:
    return family.ask("forward-pass", **family.asked)


def steer(family, position: int, **fields: Any) -> dict[str, Any]:
    # In the first layer, so that a global one can carry it on to the last position.
    feature = {"layer": 0, "index": 5, "token_active_position": position, "delta": 20}
    features = [{**feature, "steer_position": position}]
    return family.ask("steer", **family.asked, features=features, n_tokens=2, **fields)


def test_every_action_has_the_same_tokens(family, tokens, graph, forward):
    assert graph["metadata"]["prompt_tokens"] == tokens
    assert forward["input_tokens"] == tokens
    steered = steer(family, len(tokens) - 1)
    for side in ("DEFAULT", "STEERED"):
        entries = steered[f"{side}_LOGITS_BY_TOKEN"]
        assert [token for token, _ in entries[: len(tokens) - 1]] == tokens[1:]
        assert not any(top for _, top in entries[: len(tokens) - 2])
        assert all(top for _, top in entries[len(tokens) - 2 :])


def test_every_action_predicts_what_hugging_face_predicts(family, graph, forward):
    with torch.no_grad():
        logits = family.hf_model(torch.tensor([family.ids])).logits[0, -1]
    expected = logits.softmax(-1)
    default = steer(family, len(family.ids) - 1, top_k=3)["DEFAULT_LOGITS_BY_TOKEN"]
    likeliest = default[len(family.ids) - 2][1]
    top = expected.topk(3)
    assert [p for _, p in likeliest] == pytest.approx(top.values.tolist(), abs=1e-4)
    for salient in forward["salient_logits"]:
        assert salient["probability"] == pytest.approx(
            expected[salient["token_id"]].item(), abs=1e-4
        )
    logit_nodes = [n for n in graph["nodes"] if n["feature_type"] == "logit"]
    assert [n["feature"] for n in logit_nodes] == [s["token_id"] for s in forward["salient_logits"]]
    for node in logit_nodes:
        assert node["token_prob"] == pytest.approx(expected[node["feature"]].item(), abs=1e-4)


def test_features_begin_where_steering_can(family, graph):
    first = family.n_unsteerable
    features = {
        n["ctx_idx"] for n in graph["nodes"] if n["feature_type"] == "cross layer transcoder"
    }
    assert features == set(range(first, len(family.ids)))
    for position in range(first):
        output = steer(family, position)
        assert [f["steer_position"] for f in output["ignored_features"]] == [position]
        assert output["STEERED_LOGITS_BY_TOKEN"] == output["DEFAULT_LOGITS_BY_TOKEN"]
    output = steer(family, first)
    assert output["ignored_features"] == []
    assert output["STEERED_LOGITS_BY_TOKEN"] != output["DEFAULT_LOGITS_BY_TOKEN"]


@pytest.mark.parametrize("shown", ["metadata", "parsed"])
def test_the_prompt_that_a_graph_shows_is_the_same_prompt(family, graph, tokens, shown):
    prompt = graph["metadata"]["prompt"]
    parsed = family.ask("parse-chat-prompt", prompt=prompt)
    assert parsed["messages"] == family.asked.get("messages")
    assert parsed["is_chat"] == ("messages" in family.asked)
    assert parsed["unsteerable_positions"] == list(range(family.n_unsteerable))
    again = prompt if shown == "metadata" else parsed["prompt"]
    assert family.ask("forward-pass", prompt=again)["input_tokens"] == tokens
    assert family.ask("parse-chat-prompt", prompt=again) == parsed
