"""The worker on the nnsight engine: its start, the four actions, stopping, and recovery."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_tracer.attribution.context_nnsight import AttributionContext
from transformers import (
    AutoConfig,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import attribution
import model_loader
import steering
from actions import answer
from errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, OutOfMemory
from loading import UnsupportedArchitectureError
from loading.engines import replacement_model
from model_loader import LoadedModel, ModelLoadError
from steering import Intervention
from tests.chat_messages import assistant, user
from tests.demo_worker import FORWARD, GRAPH, PARSE, PROMPT, ROOT, ask, demo_settings, without_times
from tests.hugging_face_models import FAMILIES, hugging_face_model, shared_model
from tests.steering_cases import (
    ON_GENERATED_TOKENS,
    ablate_and_amplify,
    assert_equal,
    generate,
    options,
)
from tests.steering_cases import PROMPT as IDS
from tests.tiny_models import prompt_tokens, tiny_transcoders
from tests.tiny_tokenizers import gemma3

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
    assert (loaded.n_layers, loaded.n_context, loaded.d_vocab) == (3, 64, len(tokenizer))
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
        answer(body, NNSIGHT, cancelled, on_progress=on_progress)
    assert reports[-1].startswith(("16 of", "2 of"))
    assert ask(STEER, NNSIGHT) == before


class TestRefusals:
    def refused(self, hf_model: Any, hooks: str, match: str) -> None:
        with pytest.raises(UnsupportedArchitectureError, match=match):
            replacement_model(
                "nnsight",
                hf_model,
                tiny_transcoders("relu", hooks),
                "someone/tiny",
                torch.device("cpu"),
                torch.float32,
            )

    def test_an_architecture_without_a_mapping_is_told_the_other_engine(self) -> None:
        model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=50))
        self.refused(
            model, "mlp", r"someone/tiny is a GPT2LMHeadModel.*Gemma3.*MODEL_ENGINE=transformerlens"
        )

    def test_transcoders_that_read_where_the_mapping_has_no_place_are_told_too(self) -> None:
        config = Qwen3Config(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, intermediate_size=48, vocab_size=50,
        )  # fmt: skip
        self.refused(
            Qwen3ForCausalLM(config), "residual", "hook_resid_mid.*mlp.hook_in.*transformerlens"
        )

    def test_quantised_weights_are_refused_rather_than_cast(self) -> None:
        model = hugging_face_model(FAMILIES["llama"][0])
        model.is_quantized = True  # as transformers marks them
        self.refused(model, "residual", "someone/tiny are quantised.*bfloat16")

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
        "from tests.demo_worker import FORWARD, ask, demo_settings\n"
        "print(ask(FORWARD, demo_settings(model_engine='nnsight'))['salient_logits'][0]['token'])\n"
    )
    home = tmp_path / "none"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == " basket\n", done.stderr
    assert not home.exists()


class Broken(Exception):
    pass


def broken(*_: Any) -> None:
    raise Broken


def fail_in(path: str, from_pass: int = 0) -> Callable[[Any], Any]:
    """Make a module of the Hugging Face model fail; returns what takes that back."""
    passes = iter(range(1000))

    def fail(*_: Any) -> None:
        if next(passes) >= from_pass:
            raise Broken

    return lambda model: model._module.get_submodule(path).register_forward_hook(fail).remove


def attribute(model: Any, **changes: Any) -> Any:
    how = {"max_feature_nodes": 40, "batch_size": 16, **changes}
    return attribution.attribute(prompt_tokens(), model, **how)


def steer(model: Any, **changes: Any) -> Any:
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    return steering.generate_both(model, IDS, interventions, **options(**changes))


def late() -> bool:
    raise DeadlineExceeded("too late")


def third_time() -> Callable[[], bool]:
    answers = iter([False, False, True])
    return lambda: next(answers)


FAILURES: dict[str, tuple[Callable[[Any], Any], str | None, type[Exception]]] = {
    "attribution, in the first pass": (attribute, "model.layers.1.mlp", Broken),
    "attribution, in its gradient pass": (attribute, "model.layers.2.self_attn 1", Broken),
    "attribution, stopped": (lambda m: attribute(m, should_stop=third_time()), None, Cancelled),
    "attribution, too late": (lambda m: attribute(m, should_stop=late), None, DeadlineExceeded),
    "attribution, in a callback": (lambda m: attribute(m, on_progress=broken), None, Broken),
    "steering, in a pass": (steer, "model.layers.1.mlp 3", Broken),
    "steering, in the frozen pass": (
        lambda m: steer(m, freeze_attention=True), "model.layers.1.self_attn", Broken
    ),
    "steering, reading": (
        lambda m: steering.feature_activations(m, IDS, [(1, 4, 3)]), "model.layers.2", Broken
    ),
    "steering, stopped": (lambda m: steer(m, should_stop=third_time()), None, Cancelled),
    "steering, in a callback": (lambda m: steer(m, on_token=broken), None, Broken),
    "steering, in its numbers": (
        lambda m: generate(m, [Intervention(0, 1, None, 1e39)]), None, InvalidInput
    ),
}  # fmt: skip


def state(model: Any) -> dict[str, Any]:
    """What a job must leave as it found it."""
    for thread in threading.enumerate():
        if thread.name.startswith("Mediator"):
            thread.join(timeout=5)
    return {
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model._module.named_modules()
        },
        "operations": [
            operation.hooked
            for module in model._module.modules()
            for operation in getattr(
                getattr(module, "__source_accessor__", None), "operations", {}
            ).values()
        ],
        "parameters": {
            name: (parameter._version, parameter.requires_grad, parameter.is_inference())
            for name, parameter in model._module.named_parameters()
        },
        "cfg": dict(vars(model.cfg)),
        "config": model._module.config.to_dict(),
        "interleaving": model.interleaver.interleaving,
        "threads": [t for t in threading.enumerate() if t.name.startswith("Mediator")],
    }


@cache
def fresh() -> tuple[Any, Any]:
    model = shared_model("nnsight", "llama")
    return attribute(model), steer(model, freeze_attention=True)


@pytest.mark.parametrize("failure", FAILURES)
def test_after_a_failure_the_next_jobs_are_those_of_a_fresh_model(failure: str) -> None:
    run, place, error = FAILURES[failure]
    model = shared_model("nnsight", "llama")
    graph, both = fresh()
    before = state(model)
    undo = None
    if place is not None:
        path, _, from_pass = place.partition(" ")
        undo = fail_in(path, int(from_pass or 0))(model)
    try:
        with pytest.raises(error):
            run(model)
    finally:
        if undo is not None:
            undo()
    assert state(model) == before
    assert torch.equal(attribute(model).adjacency_matrix, graph.adjacency_matrix)
    for ours, expected in zip(steer(model, freeze_attention=True), both, strict=True):
        assert_equal(ours, expected)


class TestMemory:
    def test_batches_are_halved_when_memory_runs_out(self) -> None:
        model = shared_model("nnsight", "gemma2")
        whole, seen = attribute(model, update_interval=1), []

        def count(_module: Any, args: tuple[Any, ...]) -> None:
            seen.append(len(args[0]))
            if len(args[0]) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")

        handle = model._module.model.layers[1].register_forward_pre_hook(count)
        try:
            halved = attribute(model, update_interval=1)
        finally:
            handle.remove()
        assert seen == [1, 16, 8, 4]
        # The ranking goes by the batch size that was asked for.
        assert torch.equal(halved.selected_features, whole.selected_features)
        torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)

    def test_a_batch_whose_gradients_do_not_fit_is_split_too(self, monkeypatch) -> None:
        model, sizes = shared_model("nnsight", "gemma2"), []
        whole = attribute(model)
        compute_batch = AttributionContext.compute_batch

        def little_memory(context: Any, layers: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(layers))
            rows = compute_batch(context, layers, *args, **kwargs)
            if len(layers) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return rows

        monkeypatch.setattr(AttributionContext, "compute_batch", little_memory)
        halved = attribute(model)
        assert sizes.count(16) == 1
        assert torch.equal(halved.selected_features, whole.selected_features)
        torch.testing.assert_close(halved.adjacency_matrix, whole.adjacency_matrix)

    def test_a_single_target_that_does_not_fit_is_an_error_to_act_on(self, monkeypatch) -> None:
        def no_memory(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(AttributionContext, "compute_batch", no_memory)
        with pytest.raises(OutOfMemory, match="shorter prompt"):
            attribute(shared_model("nnsight", "gemma2"), batch_size=2)


def test_numbers_that_overflow_are_an_error(monkeypatch) -> None:
    model = shared_model("nnsight", "llama")
    weight = model._module.model.layers[1].self_attn.o_proj.weight
    kept = weight.data.clone()
    weight.data[0] = float("inf")
    try:
        with pytest.raises(Internal, match="not finite"):
            attribute(model)
    finally:
        weight.data = kept
