"""Numbers that overflow, in any action and on either door: `not_finite`, and what to try."""

import asyncio
import json
from contextlib import contextmanager

import pytest
import torch

import handler
import model_loader
from errors import NotFinite
from settings import get_settings
from tests.support.demo_worker import ask, settings_at
from tests.support.http_server import post, serving
from tests.support.tiny_families import FAMILIES, write_family

GEMMA = FAMILIES["Gemma 2, per layer"]
PROMPT = "The capital of France is"
AT = {"layer": 1, "index": 7, "token_active_position": 3}
BODIES = {
    "forward-pass": {"action": "forward-pass", "prompt": PROMPT},
    "steer": {
        "action": "steer", "prompt": PROMPT, "n_tokens": 2,
        "features": [{**AT, "steer_position": 3, "delta": 2.0}],
    },
    "ablation": {
        "action": "steer", "prompt": PROMPT, "n_tokens": 2,
        "features": [{**AT, "steer_position": 3, "ablate": True}],
    },
    "steered only, on tokens": {
        "action": "steer", "prompt": PROMPT, "n_tokens": 2, "steered_output_only": True,
        "features": [{**AT, "steer_generated_tokens": True, "delta": 2.0}],
    },
    "graph": {"action": "generate-graph", "prompt": PROMPT, "max_feature_nodes": 20},
    "graph of every feature": {"action": "generate-graph", "prompt": PROMPT},
    "graph of targets": {
        "action": "generate-graph", "prompt": PROMPT, "attribution_targets": [" the"],
        "max_feature_nodes": 20,
    },
    "intervene": {
        "action": "intervene", "prompt": PROMPT, "targets": [" the"],
        "groups": {"a": [{"layer": 1, "index": 7, "position": 3}]},
        "experiments": [[], [{"group": "a", "scale": 0}]],
    },
    "contrast": {"action": "contrast", "prompt": PROMPT, "other_prompt": "The", "position": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_family(home / "hub", GEMMA)
    return home


@pytest.fixture
def load(home, monkeypatch):
    """Loads the tiny Gemma as the process's model; returns it and its settings."""

    def load(dtype, engine="transformerlens"):
        settings = settings_at(
            home,
            model_id=GEMMA.model,
            transcoder_set=GEMMA.transcoder_set,
            model_dtype=dtype,
            model_engine=engine,
        )
        loaded = model_loader.load(settings)
        monkeypatch.setattr(model_loader, "_loaded", loaded)
        return loaded, settings

    return load


def overflow(loaded):
    """Weights that are finite in float16, of an MLP whose output is not."""
    weight = next(p for n, p in loaded.model.named_parameters() if weight_of_mlp(n))
    with torch.no_grad():
        weight.copy_(weight.sign() * 6e4)


def weight_of_mlp(name):
    return name.endswith(("blocks.1.mlp.old_mlp.W_out", "layers.1.mlp.down_proj.weight"))


def spoil(loaded):
    """A NaN among the unembedding's weights: one logit of many, on either engine."""
    names = ("unembed.old_unembed.W_U", "lm_head.weight", "embed_tokens.weight")
    parameters = dict(loaded.model.named_parameters())
    name = next(n for end in names for n in parameters if n.endswith(end))
    with torch.no_grad():
        parameters[name][3, 5] = torch.nan


CASES = {
    "float16 that overflows": ("float16", "transformerlens", overflow),
    "float16 that overflows, nnsight": ("float16", "nnsight", overflow),
    "NaN in bfloat16": ("bfloat16", "transformerlens", spoil),
    "NaN in float32": ("float32", "transformerlens", spoil),
}
REMEDY = {
    "float16": "MODEL_DTYPE=bfloat16",
    "bfloat16": "MODEL_DTYPE=float32",
    "float32": "damaged",
}


@pytest.fixture(params=CASES)
def broken(request, load):
    dtype, engine, harm = CASES[request.param]
    loaded, settings = load(dtype, engine)
    harm(loaded)
    return dtype, settings


def assert_says_what_to_do(sentence, dtype):
    assert sentence.startswith("not_finite: ")
    assert dtype in sentence
    assert REMEDY[dtype] in sentence
    assert "delta" not in sentence


def test_every_action_says_so_and_what_to_try(broken):
    dtype, settings = broken
    for body in BODIES.values():
        with pytest.raises(NotFinite) as raised:
            ask(body, settings)
        assert_says_what_to_do(str(raised.value), dtype)


@contextmanager
def runpod_settings(monkeypatch, settings):
    monkeypatch.setattr(handler, "get_settings", lambda: settings)
    yield
    get_settings.cache_clear()


def test_both_doors_say_so(broken, monkeypatch):
    dtype, settings = broken
    with runpod_settings(monkeypatch, settings):
        for body in BODIES.values():
            output = asyncio.run(handler.handler({"id": "job", "input": body}))
            assert list(output) == ["error"]
            assert_says_what_to_do(output["error"], dtype)
    changed = settings.model_dump(exclude_unset=True, exclude={"device"})
    with serving(**changed) as server:
        for body in BODIES.values():
            answer = post(server, body["action"], body)
            assert answer.status_code == 422
            assert list(answer.json()) == ["error"]
            assert_says_what_to_do(answer.json()["error"], dtype)


def test_an_activation_that_overflows_is_named_and_no_null(load):
    loaded, settings = load("float16")
    transcoder = loaded.model.transcoders[AT["layer"]]
    with torch.no_grad():
        transcoder.W_enc[AT["index"]] = 0
        transcoder.b_enc[AT["index"]] = torch.inf
    for name in ("steer", "ablation", "steered only, on tokens", "intervene", "contrast"):
        with pytest.raises(NotFinite, match=r"activations on (this|a) prompt are not") as raised:
            ask(BODIES[name], settings)
        assert_says_what_to_do(str(raised.value), "float16")
    for name in ("graph", "graph of every feature", "graph of targets"):
        with pytest.raises(NotFinite) as raised:
            ask(BODIES[name], settings)
        assert_says_what_to_do(str(raised.value), "float16")
    assert ask(BODIES["forward-pass"], settings)["salient_logits"]


def large_decoder(loaded, weight=torch.inf):
    """The feature is active and writes too much: what changes it is not finite, nothing else."""
    transcoders = loaded.model.transcoders
    transcoder = getattr(transcoders, "_module", transcoders)[AT["layer"]]  # nnsight wraps them
    with torch.no_grad():
        transcoder.b_enc[AT["index"]] = 50
        transcoder.W_dec[AT["index"]] = weight


@pytest.mark.parametrize("changes", [{}, {"steered_output_only": True}, {"freeze_attention": True}])
def test_an_ablation_is_never_told_to_use_smaller_deltas(load, changes):
    loaded, settings = load("float16")
    large_decoder(loaded)
    with pytest.raises(NotFinite, match="with these features ablated") as raised:
        ask({**BODIES["ablation"], **changes}, settings)
    assert_says_what_to_do(str(raised.value), "float16")


def test_an_experiment_that_ablates_is_never_told_to_use_smaller_scales(load):
    loaded, settings = load("float16")
    large_decoder(loaded, 6e4)
    with pytest.raises(NotFinite, match=r"numbers under experiments\[1\]") as raised:
        ask({**BODIES["intervene"], "constrained_layers": "all"}, settings)
    assert_says_what_to_do(str(raised.value), "float16")
    assert "scales" not in str(raised.value)


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_an_effect_that_is_not_finite_is_refused_and_no_null(load, engine):
    loaded, settings = load("float16", engine)
    large_decoder(loaded)
    with pytest.raises(NotFinite, match="the features' effects") as raised:
        ask(BODIES["contrast"], settings)
    assert_says_what_to_do(str(raised.value), "float16")


@pytest.mark.parametrize("where", [{"steer_position": 3}, {"steer_generated_tokens": True}])
@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_deltas_are_blamed_where_the_model_alone_is_finite(load, dtype, only, where):
    _, settings = load(dtype)
    feature = {**AT, **where, "delta": 1e300}
    body = {**BODIES["steer"], "features": [feature], "steered_output_only": only}
    with pytest.raises(NotFinite, match=f"range of {dtype}; use smaller deltas") as raised:
        ask(body, settings)
    assert raised.value.code == "not_finite"


def test_a_default_that_overflows_at_a_later_token_is_not_the_delta_s_fault(load):
    loaded, settings = load("float16")
    passes = []

    def overflow_later(_module, _inputs, output):
        passes.append(output.shape)
        return output * torch.inf if output.shape[1] == 1 else output

    loaded.model.blocks[1].mlp.register_forward_hook(overflow_later)
    body = {**BODIES["steer"], "n_tokens": 3}
    with pytest.raises(NotFinite) as raised:
        ask(body, settings)
    assert_says_what_to_do(str(raised.value), "float16")
    assert len(passes) > 2


def test_documents_never_hold_nan_or_infinity(load):
    _, settings = load("float16")
    for body in BODIES.values():
        json.loads(json.dumps(ask(body, settings), allow_nan=False))
