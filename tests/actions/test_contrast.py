"""contrast on the demo model: the effects are a graph's edges, and the proposed steer works."""

import threading
from typing import Any

import pytest
import torch
from circuit_tracer.attribution.targets import CustomTarget

import attribution
import model_loader
from attribution.contrast import contrast
from demo.language_steer import twins
from errors import Cancelled, InvalidInput, PromptTooLong
from tests.support.demo_worker import PROMPT, TOO_LONG, ask, demo_settings
from tests.support.tiny_models import prompt_tokens, tiny_model

OTHER = "Michael Jordan juega al"
BODY = {"action": "contrast", "prompt": PROMPT, "other_prompt": OTHER}


def test_every_right_french_answer_is_turned_into_the_spanish_one() -> None:
    n_right = 0
    for french, spanish in twins():
        output = ask({**BODY, "prompt": french.prompt, "other_prompt": spanish.prompt})
        if output["prediction"]["token"] != french.answer:
            continue
        n_right += 1
        steer = {"action": "steer", "prompt": french.prompt, "features": output["steer"]}
        steered = ask({**steer, "n_tokens": 1, "steered_output_only": True})
        assert steered["STEERED_GENERATION"] == french.prompt + spanish.answer
        assert steered["ignored_features"] == []
    assert n_right == 31


def test_the_features_are_ranked_and_the_steer_is_made_of_the_first_that_help() -> None:
    output = ask({**BODY, "top_k": 10_000, "n_steer": 2, "strength": 3})
    effects = [feature["effect"] for feature in output["features"]]
    assert [abs(effect) for effect in effects] == sorted(map(abs, effects), reverse=True)
    assert len(effects) > 20
    helping = [feature for feature in output["features"] if feature["effect"] > 0]
    raised = [f for f in helping if f["other_activation"] > f["activation"]][:2]
    lowered = [f for f in helping if f["other_activation"] < f["activation"]][:2]
    chosen = [(f["layer"], f["index"]) for f in output["steer"]]
    assert chosen == [(f["layer"], f["index"]) for f in [*raised, *lowered]]
    for steer, feature in zip(output["steer"], [*raised, *lowered], strict=True):
        assert steer["token_active_position"] == steer["steer_position"] == output["position"] == 4
        assert steer["ablate"] is (feature in lowered)
        if feature in raised:
            value = 3 * feature["other_activation"] - feature["activation"]
            assert steer["delta"] == pytest.approx(value)
    assert ask({**BODY, "n_steer": 2, "strength": 3}) == {
        **output, "features": output["features"][:20],
    }  # fmt: skip


def test_activations_are_those_of_the_library() -> None:
    output = ask({**BODY, "position": 3, "other_position": 2, "top_k": 10_000})
    loaded = model_loader.get_model(demo_settings())
    here, there = (
        loaded.model.get_activations(loaded.tokenizer(text, return_tensors="pt").input_ids[0])[1]
        for text in (PROMPT, OTHER)
    )
    active = ((here[:, 3] != 0) | (there[:, 2] != 0)).nonzero().tolist()
    assert sorted([f["layer"], f["index"]] for f in output["features"]) == active
    for f in output["features"]:
        assert f["kind"] == "transcoder"
        assert f["activation"] == pytest.approx(float(here[f["layer"], 3, f["index"]]), abs=1e-5)
        other = float(there[f["layer"], 2, f["index"]])
        assert f["other_activation"] == pytest.approx(other, abs=1e-5)


KINDS = [
    ("gemma2", "jump_relu", "gemma scope", False),
    ("gpt2", "relu", "mlp", True),
    ("llama", "top_k", "residual", False),
    ("gemma3", "cross_layer_relu", "mlp", True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("position", [7, 4, 1])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_slopes_are_the_edges_of_a_graph_to_the_difference(
    kind: Any, position: int, dtype: torch.dtype
) -> None:
    architecture, dictionary, hooks, skip = kind
    model = tiny_model(architecture, dictionary, hooks, skip=skip).to(dtype)
    one = prompt_tokens(8, seed=1)
    others = (prompt_tokens(8, seed).tolist() for seed in range(2, 20))
    contrasts = (contrast(model, one.tolist(), other, position, position) for other in others)
    contrasted = next(made for made in contrasts if made.features)  # of another prediction
    predicted = int(contrasted.logits.argmax())
    wanted = int(contrasted.other_logits.argmax())
    unembedding = model.unembed.W_U.float()
    direction = unembedding[:, wanted] - unembedding[:, predicted]
    target = CustomTarget("difference", 1.0, direction)
    graph = attribution.attribute(one, model, attribution_targets=[target])
    row = graph.adjacency_matrix[-1]
    edges = {
        (layer, index): float(row[n])
        for n, (layer, at, index) in enumerate(graph.active_features.tolist())
        if at == position
    }
    found = {
        (f.layer, f.index): f.slope * f.activation for f in contrasted.features if f.activation
    }
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    assert found == pytest.approx(edges, rel=tolerance, abs=tolerance)
    assert edges
    inactive = [f for f in contrasted.features if not f.activation]
    assert inactive
    assert any(abs(f.effect) > 1e-4 for f in inactive)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"other_prompt": PROMPT}, "the same likeliest next token, ' basket'"),
        ({"other_prompt": None}, "exactly one of other_prompt and other_messages, got neither"),
        ({"position": 5}, "position is 5, the prompt has 5 tokens"),
        ({"other_position": 9}, "other_position is 9, the prompt has 5 tokens"),
        ({"position": 0}, "position is 0, which has no features; the first that has is 1"),
        ({"n_steer": 0}, "n_steer"),
        ({"strength": 0}, "strength"),
        ({"strength": 1.7e308}, r"strength is 1.7e\+308, which sets feature 146 of layer 2 beyond"),
        ({"other_promt": "x"}, "did you mean other_prompt"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        ask({**BODY, **fields})


def test_an_other_prompt_that_is_too_long_is_named() -> None:
    with pytest.raises(PromptTooLong, match="other_prompt: the prompt has"):
        ask({**BODY, "other_prompt": TOO_LONG})


def test_it_stops_when_it_is_cancelled() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        ask(BODY, cancelled=cancelled)
