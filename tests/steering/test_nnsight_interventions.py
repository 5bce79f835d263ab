"""Experiments on the nnsight engine have the other engine's numbers, whatever is held."""

from typing import Any

import pytest
import torch

from steering.interventions import Frozen, Outcomes, intervene
from tests.support.hugging_face_models import BOTH_KINDS, new_model, shared_model
from tests.support.steering_cases import PROMPT, active_features
from tests.support.tiny_models import N_LAYERS

ENGINES: list[Any] = ["transformerlens", "nnsight"]
FROZEN = {
    "free": Frozen(attention=False),
    "attention": Frozen(),
    "two layers": Frozen(range(1, 3)),
    "all layers": Frozen(range(N_LAYERS)),
}


def run(model: Any, active: dict[tuple[int, int, int], float], frozen: Frozen) -> Outcomes:
    first, *_, last = active
    others = [(layer, 5, index) for layer in range(N_LAYERS) for index in range(0, 60, 7)]
    experiments = [
        {first: 3 * active[first], last: 0.0},
        {first: -2 * active[first], (1, 4, 9): 2.0},
        {},
    ]
    features = list(dict.fromkeys([*active, (1, 4, 9), *others]))
    return intervene(model, PROMPT, features, experiments, frozen)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize(("family", "dictionary", "skip"), BOTH_KINDS)
def test_they_have_the_other_engine_s_numbers(
    family: str, dictionary: str, skip: bool, frozen: str
) -> None:
    models = [shared_model(engine, family, dictionary, skip) for engine in ENGINES]
    active = active_features(models[0])
    expected, found = (run(model, active, FROZEN[frozen]) for model in models)
    torch.testing.assert_close(found.logits, expected.logits, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(found.activations, expected.activations, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt-oss", "llama", "gemma3"])
def test_with_all_layers_held_what_is_set_moves_the_logits_in_proportion(family: str) -> None:
    model = shared_model("nnsight", family)
    first, *_ = active = active_features(model)
    values = [active[first] * scale for scale in (1.0, 2.0, 4.0)]
    frozen = FROZEN["all layers"]
    found = intervene(model, PROMPT, [first], [{first: value} for value in values], frozen)
    torch.testing.assert_close(found.logits[1], found.logits[0], atol=2e-5, rtol=1e-4)
    moved = found.logits[2:] - found.logits[0]
    assert moved[0].abs().max() > 1e-3
    if family != "gemma3":  # which caps its logits
        torch.testing.assert_close(moved[1], 3 * moved[0], atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("frozen", ["free", "attention"])  # the library holds no layers here
@pytest.mark.parametrize(
    ("family", "dictionary"),
    [("gpt-oss", "jump_relu"), ("gpt-oss", "cross_layer_relu"), ("qwen3", "top_k")],
)
def test_they_have_the_numbers_of_the_library_on_this_engine(
    family: str, dictionary: str, frozen: str
) -> None:
    model = shared_model("nnsight", family, dictionary)
    first, *_, last = active = active_features(model)
    experiments = [{first: 3 * active[first], last: 0.0}, {(1, 4, 9): 2.0}]
    features = [*active, (1, 4, 9)]
    held = FROZEN[frozen]
    found = intervene(model, PROMPT, features, experiments, held)
    for row, experiment in enumerate([{}, *experiments]):
        logits, activations = model.feature_intervention(
            " ".join(f"w{n}" for n in PROMPT[1:]),  # it takes no ids on this engine
            [(*feature, value) for feature, value in experiment.items()],
            freeze_attention=held.attention,
        )
        torch.testing.assert_close(found.logits[row], logits[0, -1], atol=5e-5, rtol=1e-4)
        for column, feature in enumerate(features):
            if feature not in experiment:
                expected = float(activations[feature])
                got = float(found.activations[row, column])
                assert got == pytest.approx(expected, rel=1e-4, abs=5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("family", "dictionary", "skip"),
    [*BOTH_KINDS, ("gpt-oss", "jump_relu", False), ("gpt-oss", "cross_layer_relu", True)],
)
def test_in_16_bits_they_are_near_the_exact_ones(
    family: str, dictionary: str, skip: bool, dtype: torch.dtype
) -> None:
    exact = shared_model("nnsight", family, dictionary, skip)
    rounded = new_model("nnsight", family, dictionary, skip=skip, dtype=dtype)
    active = active_features(exact)
    for frozen in FROZEN.values():
        truth, found = (
            run(model, active, frozen).logits.float().softmax(-1) for model in (exact, rounded)
        )
        assert (found - truth).abs().sum(1).max() < (0.3 if dtype == torch.bfloat16 else 0.05)
