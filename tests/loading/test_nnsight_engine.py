"""The worker on the nnsight engine: its start, the actions, refusals, and stopping."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import model_loader
from actions.answer import answer
from errors import Cancelled
from loading import UnsupportedArchitectureError
from loading.loaded_model import LoadedModel
from loading.nnsight_engine import replacement_model
from model_loader import ModelLoadError
from serving.http_docs import EXAMPLES
from tests.support.chat_messages import assistant, user
from tests.support.demo_worker import (
    FORWARD,
    GRAPH,
    PARSE,
    PROMPT,
    ask,
    demo_settings,
    without_times,
)
from tests.support.hugging_face_models import hugging_face_model
from tests.support.programs import output_of
from tests.support.tiny_models import tiny_transcoders
from tests.support.tiny_tokenizers import gemma3

NNSIGHT = demo_settings(model_engine="nnsight")
STEER = {
    "action": "steer",
    "prompt": PROMPT,
    "features": [
        {"layer": 1, "index": 120, "token_active_position": 4, "steer_position": 4, "delta": 5.0},
        {"layer": 2, "index": 157, "token_active_position": 4, "ablate": True,
         "steer_generated_tokens": True},
    ],
    "n_tokens": 4,
    "temperature": 0.7,
    "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return model_loader.load(NNSIGHT)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[LoadedModel], None]:
    return lambda loaded: monkeypatch.setattr(model_loader, "_loaded", loaded)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


def without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_numbers(item) for item in value]
    return 0.0 if isinstance(value, float) else value


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_the_demo_s_answers_are_those_of_the_other_engine(demo, serve, frozen) -> None:
    messages = {"action": "generate-graph", "messages": [user(PROMPT), assistant("Il joue")]}
    bodies = [GRAPH, FORWARD, PARSE, messages | {"slug_identifier": "chat"}]
    bodies.append(STEER | {"freeze_attention": frozen})
    expected = [ask(body) for body in bodies]
    serve(demo)
    ours = [ask(body, NNSIGHT) for body in bodies]
    for index, method in ((0, "circuit-tracer"), (3, "circuit-tracer")):
        settings = ours[index]["metadata"]["generation_settings"]
        assert settings.pop("attribution_method") == method
        expected[index]["metadata"]["generation_settings"].pop("attribution_method")
        ours[index], expected[index] = without_times(ours[index]), without_times(expected[index])
        for graph in (ours[index], expected[index]):
            # Close ones may change places.
            graph["nodes"].sort(key=lambda node: node["node_id"])
            graph["links"].sort(key=lambda link: (link["source"], link["target"]))
    assert without_numbers(ours) == without_numbers(expected)
    torch.testing.assert_close(
        torch.tensor(list(numbers(ours))), torch.tensor(list(numbers(expected))),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_a_chat_model_with_a_vision_part_answers_every_action_by_its_name(tmp_path, serve) -> None:
    tokenizer = gemma3()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "sliding_window": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 1, "image_size": 28, "patch_size": 14}  # fmt: skip
    directory = tmp_path / "gemma-3-tiny-it"
    config = Gemma3Config(text_config=shape, vision_config=vision, mm_tokens_per_image=4)
    hugging_face_model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings = demo_settings(
        model_engine="nnsight",
        model_id=str(directory),
        transcoder_set=str(save_transcoders(tmp_path / "set", "hook_resid_mid")),
    )
    loaded = model_loader.load(settings)
    serve(loaded)
    assert (loaded.model.cfg.n_layers, loaded.n_context, loaded.d_vocab) == (3, 64, len(tokenizer))
    messages = [user("Hi"), assistant("It is")]
    whole = {"node_threshold": 1.0, "edge_threshold": 1.0}
    graph = ask({"action": "generate-graph", "messages": messages, **whole}, settings)
    tokens = graph["metadata"]["prompt_tokens"]
    assert tokens[:4] == ["<bos>", "<start_of_turn>", "user", "\n"]
    features = [n for n in graph["nodes"] if n["feature_type"] == "cross layer transcoder"]
    assert min(node["ctx_idx"] for node in features) == 4
    forward = ask({"action": "forward-pass", "messages": messages}, settings)
    assert forward["input_tokens"] == tokens
    in_prefix = {
        "layer": 1, "index": 7, "token_active_position": 5, "steer_position": 3, "delta": 3.0
    }  # fmt: skip
    feature = {**in_prefix, "steer_position": len(tokens) - 1}
    steered = ask(
        {"action": "steer", "messages": messages, "features": [in_prefix, feature], "n_tokens": 3},
        settings,
    )
    assert [f["steer_position"] for f in steered["ignored_features"]] == [3]
    assert steered["STEERED_LOGITS_BY_TOKEN"] != steered["DEFAULT_LOGITS_BY_TOKEN"]
    parsed = ask({"action": "parse-chat-prompt", "prompt": graph["metadata"]["prompt"]}, settings)
    assert parsed["messages"] == messages
    assert parsed["unsteerable_positions"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"freeze_attention": False},
        {"constrained_layers": [1, 2]},
        {"constrained_layers": "all"},
    ],
    ids=str,
)
def test_interventions_have_the_numbers_of_the_other_engine(demo, serve, fields) -> None:
    serve(demo)
    body = {"action": "intervene", **EXAMPLES["intervene"], **fields}
    ours = ask(body, NNSIGHT)
    serve(model_loader.load(demo_settings()))
    expected = ask(body)
    assert without_numbers(ours) == without_numbers(expected)
    assert list(numbers(ours)) == pytest.approx(list(numbers(expected)), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("fields", [{}, {"position": 2, "other_position": 3}], ids=str)
def test_a_contrast_has_the_numbers_of_the_other_engine(demo, serve, fields) -> None:
    body = {"action": "contrast", **EXAMPLES["contrast"], "top_k": 10_000, **fields}
    serve(demo)
    ours = ask(body, NNSIGHT)
    serve(model_loader.load(demo_settings()))
    expected = ask(body)
    for output in (ours, expected):  # close ones may change places
        output["features"].sort(key=lambda feature: (feature["layer"], feature["index"]))
    assert without_numbers(ours) == without_numbers(expected)
    assert list(numbers(ours)) == pytest.approx(list(numbers(expected)), rel=1e-4, abs=1e-4)


def save_transcoders(directory: Path, input_hook: str, n_layers: int = 3) -> Path:
    directory.mkdir()
    for transcoder in tiny_transcoders("relu", "residual"):
        transcoder.to_safetensors(str(directory / f"layer_{transcoder.layer_idx}.safetensors"))
    (directory / "config.yaml").write_text(
        f"model_kind: transcoder_set\nfeature_input_hook: {input_hook}\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    return directory


@pytest.mark.parametrize("action", [GRAPH, STEER], ids=["graph", "steer"])
def test_a_job_stops_at_its_next_batch_or_token_when_cancelled(demo, serve, action) -> None:
    serve(demo)
    cancelled, reports = threading.Event(), []

    def on_progress(stage: str, done: float, message: str) -> None:
        reports.append(message)
        if message.startswith(("16 of", "2 of")):
            cancelled.set()

    body = {**action, "batch_size": 16} if action is GRAPH else action
    before = ask(STEER, NNSIGHT)
    with pytest.raises(Cancelled):
        answer(body, model_loader.get_model(NNSIGHT), NNSIGHT, cancelled, on_progress=on_progress)
    assert reports[-1].startswith(("16 of", "2 of"))
    assert ask(STEER, NNSIGHT) == before


class TestRefusals:
    def refused(self, hf_model: Any, hooks: str, match: str) -> None:
        with pytest.raises(UnsupportedArchitectureError, match=match):
            replacement_model(
                hf_model,
                tiny_transcoders("relu", hooks),
                "someone/tiny",
                torch.device("cpu"),
                torch.float32,
            )

    def test_an_architecture_without_a_mapping_is_refused_naming_the_other_engine(self) -> None:
        model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=50))
        self.refused(
            model, "mlp", r"someone/tiny is a GPT2LMHeadModel.*Gemma3.*MODEL_ENGINE=transformerlens"
        )

    def test_transcoders_that_read_at_a_hook_that_is_not_mapped_are_refused_too(self) -> None:
        config = Qwen3Config(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, intermediate_size=48, vocab_size=50,
        )  # fmt: skip
        self.refused(
            Qwen3ForCausalLM(config), "residual", "hook_resid_mid.*mlp.hook_in.*transformerlens"
        )

    def test_the_start_fails_with_that_sentence(self, tmp_path) -> None:
        config = GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=50, n_positions=64)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        gemma3().save_pretrained(tmp_path / "gpt2")
        assert AutoConfig.from_pretrained(tmp_path / "gpt2").model_type == "gpt2"
        settings = demo_settings(
            model_engine="nnsight",
            model_id=str(tmp_path / "gpt2"),
            transcoder_set=str(save_transcoders(tmp_path / "set", "hook_resid_mid")),
        )
        with pytest.raises(ModelLoadError, match="set MODEL_ENGINE=transformerlens"):
            model_loader.load(settings)


def test_a_first_job_needs_neither_a_home_directory_nor_a_network(tmp_path) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from tests.support.demo_worker import FORWARD, ask, demo_settings\n"
        "print(ask(FORWARD, demo_settings(model_engine='nnsight'))['salient_logits'][0]['token'])\n"
    )
    home = tmp_path / "none"
    assert output_of(program, env={**os.environ, "HOME": str(home)}) == " basket\n"
    assert not home.exists()
