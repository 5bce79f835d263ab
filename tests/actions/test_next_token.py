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


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def with_equal_tokens(request):
    """The demo model with tokens that it can't tell apart, as the process's model meanwhile."""
    usual = model_loader._loaded
    model_loader._loaded = model_loader.load(demo_settings(model_dtype=request.param))
    weights = model_loader._loaded.model.unembed.W_U
    weights.data[:, EQUAL] = weights.data[:, [EQUAL[1]]]
    yield model_loader._loaded
    model_loader._loaded = usual


def test_of_equally_likely_tokens_every_action_names_the_lowest_first(with_equal_tokens):
    body = {"prompt": PROMPT}
    for n in (1, 2, 3, 10):
        forward = ask({"action": "forward-pass", **body, "max_n_logits": n})["salient_logits"]
        assert [logit["token_id"] for logit in forward][:3] == list(EQUAL[:n])
        graph = ask({"action": "generate-graph", **body, "max_n_logits": n})
        named = [node["feature"] for node in graph["nodes"] if node["feature_type"] == "logit"]
        assert named == [logit["token_id"] for logit in forward]
    assert len({logit["probability"] for logit in forward[:3]}) == 1
    tokens = [logit["token"] for logit in forward[:3]]

    at = {"layer": 1, "index": 7, "token_active_position": 1, "steer_position": 1}
    for features in ([], [{**at, "delta": 0.0}]):
        steered = ask({"action": "steer", **body, "features": features, "n_tokens": 1})
        for side in ("DEFAULT", "STEERED"):
            entries = steered[f"{side}_LOGITS_BY_TOKEN"]
            assert [token for token, _ in entries[-2][1]][:3] == tokens
            assert entries[-1][0] == tokens[0]

    groups = {"a": [{"layer": 1, "index": 7, "position": 1}]}
    intervened = ask({"action": "intervene", **body, "groups": groups, "experiments": [[]]})
    for row in (intervened["baseline"], *intervened["experiments"]):
        assert [logit["token_id"] for logit in row["top"]][:3] == list(EQUAL)

    contrasted = ask({"action": "contrast", **body, "other_prompt": "Michael Jordan juega al"})
    assert contrasted["prediction"]["token_id"] == EQUAL[0]
    back = {"prompt": "Michael Jordan juega al", "other_prompt": PROMPT}
    assert ask({"action": "contrast", **back})["other_prediction"]["token_id"] == EQUAL[0]
