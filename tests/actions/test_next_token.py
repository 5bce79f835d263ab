"""Next-token predictions: one selection, of a float32 softmax, in every action and dtype."""

import pytest
import torch
from circuit_tracer.replacement_model.replacement_model_nnsight import NNSightReplacementModel

import model_loader
from tests.support.demo_worker import PROMPT, ask, demo_settings

VAGUE = "The"  # many tokens may follow
SELECTION = {"max_n_logits": 20, "desired_logit_prob": 0.9}


@pytest.fixture(
    scope="module",
    params=[
        ("bfloat16", "transformerlens"),
        ("float32", "nnsight"),
        ("bfloat16", "nnsight"),
        ("float16", "transformerlens"),
    ],
    ids=" on ".join,
)
def loaded(request):
    """The demo model in another dtype or on another engine, as the process's model meanwhile."""
    dtype, engine = request.param
    usual = model_loader._loaded
    model_loader._loaded = model_loader.load(demo_settings(model_dtype=dtype, model_engine=engine))
    yield model_loader._loaded
    model_loader._loaded = usual


def model_s_logits(loaded, ids):
    """From circuit-tracer's model itself, no code of ours between."""
    with torch.inference_mode():
        if isinstance(loaded.model, NNSightReplacementModel):
            return loaded.model._module(torch.tensor([ids])).logits[0, -1]
        return loaded.model(torch.tensor(ids))[0, -1]


@pytest.mark.parametrize("prompt", [VAGUE, PROMPT])
def test_forward_pass_names_the_tokens_that_a_float32_softmax_of_the_logits_names(loaded, prompt):
    output = ask({"action": "forward-pass", "prompt": prompt, **SELECTION})
    ids = [loaded.tokenizer.convert_tokens_to_ids("<|bos|>")]
    ids += loaded.tokenizer.encode(prompt, add_special_tokens=False)
    probabilities = model_s_logits(loaded, ids).float().softmax(-1)
    named = output["salient_logits"]
    for logit in named:
        assert logit["probability"] == probabilities[logit["token_id"]].item()
    likeliest = probabilities.sort(descending=True).values
    n = min(20, int((likeliest.double().cumsum(0) < 0.9).sum()) + 1)
    assert [logit["probability"] for logit in named] == likeliest[:n].tolist()


@pytest.mark.parametrize("prompt", [VAGUE, PROMPT])
def test_a_graph_s_logit_nodes_are_what_forward_pass_names(loaded, prompt):
    named = ask({"action": "forward-pass", "prompt": prompt, **SELECTION})["salient_logits"]
    body = {"action": "generate-graph", "prompt": prompt, "max_feature_nodes": 20}
    graph = ask({**body, **SELECTION})
    nodes = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    assert [(node["feature"], node["token_prob"]) for node in nodes] == [
        (logit["token_id"], pytest.approx(logit["probability"], rel=1e-7)) for logit in named
    ]


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("prompt", [VAGUE, PROMPT])
def test_steer_s_first_default_prediction_is_what_forward_pass_names(loaded, prompt, frozen):
    named = ask({"action": "forward-pass", "prompt": prompt, **SELECTION})["salient_logits"]
    at = {"layer": 1, "index": 7, "token_active_position": 1}
    steer = {
        "action": "steer", "prompt": prompt, "n_tokens": 1, "top_k": len(named),
        "logits_format": "objects", "freeze_attention": frozen,
    }  # fmt: skip
    for where in ({"steer_position": 1}, {"steer_generated_tokens": True}):
        output = ask({**steer, "features": [{**at, **where, "delta": 5.0}]})
        for side in ("DEFAULT", "STEERED"):
            first = next(e for e in output[f"{side}_LOGITS_BY_TOKEN"] if e["top_logits"])
            same = [t["prob"] for t in first["top_logits"]] == [t["probability"] for t in named]
            assert same is (side == "DEFAULT" or "steer_position" not in where)


EQUAL = (300, 484, 900)  # 484 is " basket", the answer; the others get its output weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_of_equally_likely_tokens_a_contrast_names_the_one_that_a_generation_takes(dtype):
    usual = model_loader._loaded
    model_loader._loaded = model_loader.load(demo_settings(model_dtype=dtype))
    try:
        weights = model_loader._loaded.model.unembed.W_U
        weights.data[:, EQUAL] = weights.data[:, [EQUAL[1]]]
        contrasted = ask({"action": "contrast", "prompt": PROMPT, "other_prompt": VAGUE})
        steered = ask({"action": "steer", "prompt": PROMPT, "features": [], "n_tokens": 1})
    finally:
        model_loader._loaded = usual
    assert contrasted["prediction"]["token_id"] in EQUAL
    assert contrasted["prediction"]["token"] == steered["DEFAULT_LOGITS_BY_TOKEN"][-1][0]
