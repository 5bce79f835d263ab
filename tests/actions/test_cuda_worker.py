"""The worker with DEVICE=cuda: weights read onto the device, and every action answered there.

Without a GPU the device is emulated; what is loaded, asked and answered is the worker's own.
"""

import asyncio
import copy
import gc
import logging
import math
import threading
from dataclasses import replace

import pytest
import torch

import attribution
import handler
import model_loader
from errors import Cancelled, OutOfMemory
from graphs.cache import GraphCache
from serving import fitness
from serving.http_docs import EXAMPLES
from settings import Settings
from tests.support.chat_messages import user
from tests.support.cuda_devices import DEVICES, cuda_device, emulated_only
from tests.support.demo_worker import FORWARD, GRAPH, PARSE, PROMPT, ask, demo_settings
from tests.support.tiny_families import FAMILIES, write_family

STEER = {
    "action": "steer",
    "prompt": PROMPT,
    "features": [
        {"layer": 2, "index": 15, "token_active_position": 3, "steer_position": 3, "delta": 4.0},
        {"layer": 1, "index": 40, "token_active_position": 4, "steer_generated_tokens": True}
        | {"delta": 2.0},
    ],
    "n_tokens": 4,
    "freeze_attention": True,
    "seed": 5,
    "temperature": 0.7,
}
INTERVENE = {"action": "intervene", **EXAMPLES["intervene"]}
CONTRAST = {"action": "contrast", **EXAMPLES["contrast"]}
GROUPED = {
    **GRAPH,
    "supernodes": "auto",
    "attribution_targets": [
        {"plus": [" basket"], "minus": [" tennis"]},
        {"layer": 2, "index": 157, "position": 4},
        " basket",
    ],
}
ACTIONS = {
    "generate-graph": GRAPH,
    "graph of targets, in groups": GROUPED,
    "steer": STEER,
    "forward-pass": FORWARD,
    "parse": PARSE,
    "intervene": INTERVENE,
    "contrast": CONTRAST,
}
# Of numbers, between the device and a CPU: float32's rounding, and that of 16 bits.
CLOSE = {"float32": 1e-4, "bfloat16": 0.06, "float16": 0.02}


@pytest.fixture(params=DEVICES)
def cuda(request):
    with cuda_device(request.param) as device:
        yield device


def served(settings, monkeypatch):
    """Load the model of the settings as the process's one."""
    loaded = model_loader.load(settings)
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    return loaded


def assert_like(found, expected, close, at="output"):
    """The same document, numbers apart by no more than rounding."""
    assert type(found) is type(expected), at
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key in expected:
            if key not in ("create_time_ms", "timings_ms"):
                assert_like(found[key], expected[key], close, f"{at}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_like(*pair, close, f"{at}[{i}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=close, abs_tol=close), (at, found, expected)
    else:
        assert found == expected, at


def test_the_demo_answers_every_action_as_on_a_cpu(cuda, monkeypatch):
    served(demo_settings(), monkeypatch)
    expected = {name: ask(body) for name, body in ACTIONS.items()}
    settings = Settings(_env_file=None, device="cuda", model_dtype="float32")
    loaded = served(settings, monkeypatch)
    assert all(p.is_cuda for p in loaded.model.parameters())
    for name, body in ACTIONS.items():
        assert_like(ask(body, settings), expected[name], CLOSE["float32"], name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_demo_answers_every_action_in_16_bits(dtype, cuda, monkeypatch):
    settings = Settings(_env_file=None, device="cuda", model_dtype=dtype)
    loaded = served(settings, monkeypatch)
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    answers = {name: ask(body, settings) for name, body in ACTIONS.items()}
    served(demo_settings(), monkeypatch)
    expected = {name: ask(body) for name, body in ACTIONS.items()}
    forward, expected_forward = answers["forward-pass"], expected["forward-pass"]
    assert forward["input_tokens"] == expected_forward["input_tokens"]
    best, expected_best = (f["salient_logits"][0] for f in (forward, expected_forward))
    assert best["token"] == expected_best["token"]
    assert math.isclose(best["probability"], expected_best["probability"], abs_tol=CLOSE[dtype])
    for name in ("generate-graph", "graph of targets, in groups"):
        assert share_of_nodes(answers[name], expected[name]) >= 0.8
    assert answers["graph of targets, in groups"]["qParams"]["supernodes"]
    assert answers["steer"]["STEERED_GENERATION"].startswith(PROMPT)
    assert answers["parse"] == expected["parse"]
    for n in range(2):
        found, wanted = (a["intervene"]["experiments"][n] for a in (answers, expected))
        assert_like(found["targets"], wanted["targets"], 0.2)
    found, wanted = (a["contrast"] for a in (answers, expected))
    assert found["other_prediction"]["token"] == wanted["other_prediction"]["token"]
    assert found["features"][0]["index"] == wanted["features"][0]["index"]


def test_the_fitness_checks_pass(cuda, monkeypatch):
    settings = Settings(_env_file=None, device="cuda")
    fitness.check_device(settings)
    served(settings, monkeypatch)
    checks = fitness.checks(settings)
    assert len(checks) >= 3
    for check in checks:
        check()


@emulated_only
def test_a_job_is_answered_in_the_pools_thread(cuda, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    settings = Settings(_env_file=None, device="cuda")
    served(settings, monkeypatch)
    monkeypatch.setattr(handler, "get_settings", lambda: settings)
    monkeypatch.setattr(handler, "_answer", cuda.in_thread(handler._answer))
    output = asyncio.run(handler.handler({"id": "1", "input": copy.deepcopy(FORWARD)}))
    assert_like(output, ask(FORWARD, settings), 1e-6)
    done = next(record for record in caplog.records if record.message == "job done")
    assert done.event["peak_device_bytes"] == cuda.memory.peak > 0


@emulated_only
@pytest.mark.parametrize(
    "action", ["generate-graph", "steer", "forward-pass", "intervene", "contrast"]
)
def test_a_device_that_is_full_is_an_error_to_act_on_and_the_next_job_is_answered(
    action, cuda, monkeypatch
):
    settings = Settings(_env_file=None, device="cuda")
    loaded = served(settings, monkeypatch)
    expected = ask(ACTIONS[action], settings)
    monkeypatch.setattr(model_loader, "_loaded", replace(loaded, graphs=GraphCache(10**9)))
    with cuda.memory_limited_to(cuda.memory.allocated + 1000), pytest.raises(OutOfMemory):
        ask(ACTIONS[action], settings)
    assert_like(ask(ACTIONS[action], settings), expected, 1e-6)


class SetAtCheck(threading.Event):
    """Is set when it is asked for the nth time."""

    def __init__(self, number):
        super().__init__()
        self.number, self.asked = number, 0

    def is_set(self):
        self.asked += 1
        return self.asked >= self.number


@emulated_only
@pytest.mark.parametrize(
    "action", ["generate-graph", "steer", "forward-pass", "intervene", "contrast"]
)
def test_what_a_failed_job_had_on_the_device_is_free_without_garbage_collection(
    action, cuda, monkeypatch
):
    settings = Settings(_env_file=None, device="cuda")
    loaded = replace(served(settings, monkeypatch), graphs=GraphCache(0))
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    checks = SetAtCheck(10**9)
    torch.cuda.reset_peak_memory_stats()
    ask(ACTIONS[action], settings, checks)
    before = collected(cuda)
    took = cuda.memory.peak - before
    gc.disable()
    try:
        with pytest.raises(Cancelled):
            ask(ACTIONS[action], settings, SetAtCheck(checks.asked // 2))
        with cuda.memory_limited_to(before + 20_000), pytest.raises(OutOfMemory):
            ask(ACTIONS[action], settings)
        ask(FORWARD, settings)  # circuit-tracer keeps a layer's input until its next pass
        # torch's own calls of the layer that was stopped refer to each other, and to its input.
        assert cuda.memory.allocated - before < 0.05 * took
    finally:
        gc.enable()


def collected(cuda):
    """What is allocated on the device, less what only garbage refers to."""
    gc.collect()
    return cuda.memory.allocated


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family of models in a Hugging Face home, written before there is a device."""
    home = tmp_path_factory.mktemp("home")
    write_family(home / "hub", FAMILIES[request.param])
    return FAMILIES[request.param], home


@pytest.mark.parametrize(
    ("lazy", "dtype"), [(False, "float32"), (True, "float32"), (True, "bfloat16")]
)
def test_every_family_is_read_onto_the_device_and_answers(family, lazy, dtype, cuda, monkeypatch):
    kind, home = family
    chosen = {
        "model_id": kind.model,
        "transcoder_set": kind.transcoder_set,
        "hf_home": str(home),
        "image_weights": str(home / "none"),
        "runpod_model_cache": str(home / "none"),
        "model_dtype": dtype,
        "token_limit": 200,
        "lazy_encoder": lazy,
        "lazy_decoder": lazy,
    }
    on_cpu, settings = demo_settings(**chosen), Settings(_env_file=None, device="cuda", **chosen)
    loaded = served(on_cpu, monkeypatch)
    bodies = family_bodies(loaded, with_experiments=lazy and dtype == "float32")
    if cuda is not None and attribution.method_for(loaded.model) == "circuit-tracer":
        # By gradients, which the emulated device has none of.
        del bodies["generate-graph"]
        bodies.pop("contrast", None)
    expected = {name: ask(body, on_cpu) for name, body in bodies.items()}
    loaded = served(settings, monkeypatch)
    assert {(p.device.type, str(p.dtype)) for p in loaded.model.parameters()} == {
        ("cuda", f"torch.{dtype}")
    }
    for name, body in bodies.items():
        answer = ask(body, settings)
        if dtype == "float32":
            assert_like(answer, expected[name], CLOSE[dtype], name)
        elif name == "generate-graph":
            assert share_of_nodes(answer, expected[name]) >= 0.8
        elif name == "forward-pass":
            probabilities = [p["cumulative_probability"] for p in (answer, expected[name])]
            assert math.isclose(*probabilities, abs_tol=CLOSE[dtype])


def family_bodies(loaded, *, with_experiments):
    text = {"prompt": "The capital of France is"}
    if loaded.tokenizer.chat_template is not None:
        text = {"messages": [user("The capital of France is")]}
    graph = {key: value for key, value in GRAPH.items() if key != "prompt"}
    where = {"token_active_position": 2, "steer_position": 3}
    feature = {"layer": 1, "index": 5, **where, "delta": 3.0}
    bodies = {
        "forward-pass": {"action": "forward-pass", **text},
        "generate-graph": {**graph, **text, "max_feature_nodes": 40},
        "steer": {"action": "steer", **text, "features": [feature], "n_tokens": 2},
    }
    if not with_experiments:
        return bodies
    site = {"layer": 1, "index": 5, "position": 3}
    experiments = {
        "groups": {"a": [site]},
        "experiments": [[{"group": "a", "value": 3.0}], [{"group": "a", "value": -2.0}], []],
        "constrained_layers": [1, 2],
    }
    bodies["intervene"] = {"action": "intervene", **text, **experiments}
    other = other_prompt(loaded, text)
    if loaded.entry.model != "openai-community/gpt2":  # which predicts one token whatever it reads
        assert other
        bodies["contrast"] = {"action": "contrast", **text, **other, "top_k": 0}
    return bodies


def other_prompt(loaded, text):
    """A prompt of the same form, after which the model predicts something else."""
    start = {"action": "forward-pass", "max_n_logits": 1}
    entry = loaded.entry
    settings = demo_settings(model_id=entry.model, transcoder_set=entry.transcoder_set)

    def predicted(of):
        return ask({**start, **of}, settings)["salient_logits"][0]["token_id"]

    mine = predicted(text)
    for words in ("The", "a b c", "Paris", "1 2 3", "is of the", "capital", "France of"):
        other = {"messages": [user(words)]} if "messages" in text else {"prompt": words}
        if predicted(other) != mine:
            return {f"other_{name}": value for name, value in other.items()}
    return {}


def share_of_nodes(graph, expected):
    """The overlap (Jaccard) of two graphs' nodes."""
    nodes, others = ({node["node_id"] for node in g["nodes"]} for g in (graph, expected))
    return len(nodes & others) / len(nodes | others)
