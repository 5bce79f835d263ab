"""Steering gives the numbers of circuit-tracer's own interventions, run in the same test."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steering
from steering import Generation, Intervention
from tests.support.steering_cases import (
    INTERVENTIONS,
    KINDS,
    ON_GENERATED_TOKENS,
    PROMPT,
    ablate_and_amplify,
    active_features,
    assert_equal,
    assert_same_predictions,
    generate,
    library_form,
    library_logits,
    new_model,
    options,
    probabilities,
    shared_model,
)
from tests.support.tiny_models import D_TRANSCODER, N_LAYERS

GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("where", INTERVENTIONS)
def test_it_generates_what_the_library_generates(model: Any, where: str, frozen: bool) -> None:
    interventions = INTERVENTIONS[where](model)
    words = " ".join(f"w{i}" for i in PROMPT[1:])
    text, logits, _ = model.feature_intervention_generate(
        words, library_form(interventions), freeze_attention=frozen, max_new_tokens=6, **GREEDY
    )
    ours = generate(model, interventions, freeze_attention=frozen)
    # The library's text leaves special tokens out.
    assert text.split() == [f"w{i}" for i in ours.token_ids if i > 2]
    assert_same_predictions(ours, logits)


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_the_prompt_pass_is_that_of_feature_intervention(model: Any, frozen: bool) -> None:
    interventions = ablate_and_amplify(model)
    logits, _ = model.feature_intervention(
        torch.tensor(PROMPT), library_form(interventions), freeze_attention=frozen
    )
    steered = generate(model, interventions, n_tokens=1, freeze_attention=frozen)
    assert_same_predictions(steered, logits[0, -1:])
    default = generate(model, n_tokens=1)
    assert (probabilities(steered)[0] - probabilities(default)[0]).abs().max() > 1e-4


def test_frozen_attention_makes_a_difference(model: Any) -> None:
    interventions = ablate_and_amplify(model)
    free = generate(model, interventions)
    frozen = generate(model, interventions, freeze_attention=True)
    assert (probabilities(free)[0] - probabilities(frozen)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("where", INTERVENTIONS)
def test_the_cache_gives_what_one_pass_over_the_steered_text_gives(model: Any, where: str) -> None:
    interventions = INTERVENTIONS[where](model)
    assert_equals_one_pass(model, interventions, generate(model, interventions))


def assert_equals_one_pass(
    model: Any, interventions: list[Intervention], generation: Generation
) -> None:
    logits = library_logits(model, interventions, generation.token_ids, len(PROMPT))
    assert_same_predictions(generation, logits)
    assert len(generation.top_ids) == len(generation.token_ids) - len(PROMPT) + 1


ANY_INTERVENTIONS = st.lists(
    st.builds(
        Intervention,
        layer=st.integers(0, N_LAYERS - 1),
        index=st.integers(0, D_TRANSCODER - 1),
        position=st.none() | st.integers(1, len(PROMPT) - 1),
        value=st.floats(-10, 10, width=32),
    ),
    max_size=8,
    unique_by=lambda i: (i.layer, i.index, i.position),
)


@settings(max_examples=40)
@given(kind=st.sampled_from(list(KINDS)), interventions=ANY_INTERVENTIONS)
def test_any_interventions_give_what_one_pass_gives(
    kind: str, interventions: list[Intervention]
) -> None:
    model = shared_model(kind)
    default, steered = steering.generate_both(model, PROMPT, interventions, options(n_tokens=3))
    assert_equals_one_pass(model, interventions, steered)
    assert_equals_one_pass(model, [], default)


def test_the_last_intervention_on_a_feature_counts() -> None:
    model = shared_model("gemma2, JumpReLU")
    first, last = Intervention(1, 9, 3, 8.0), Intervention(1, 9, 3, -2.0)
    assert_equal(generate(model, [first, last]), generate(model, [last]))


def test_setting_features_to_their_own_activations_changes_nothing(model: Any) -> None:
    features = list(active_features(model))
    values = steering.feature_activations(model, PROMPT, features)
    unchanged = [
        Intervention(layer, index, position, value)
        for (layer, position, index), value in zip(features, values, strict=True)
    ]
    assert_equal(generate(model, unchanged), generate(model), atol=1e-6)


def test_without_interventions_it_is_the_models_own_generation(model: Any) -> None:
    ours = generate(model)
    theirs = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, **GREEDY)
    assert ours.token_ids == theirs[0].tolist()
    assert_same_predictions(ours, model(theirs)[0, len(PROMPT) - 1 :].detach())


def test_without_interventions_frozen_attention_changes_no_bit(model: Any) -> None:
    assert_equal(generate(model, freeze_attention=True), generate(model))


def test_without_interventions_both_sides_are_the_default_to_the_bit(model: Any) -> None:
    default, steered = steering.generate_both(model, PROMPT, [], options())
    assert_equal(default, generate(model))
    assert_equal(steered, default)


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("where", INTERVENTIONS)
def test_both_sides_are_what_each_is_alone(
    model: Any, where: str, temperature: float, frozen: bool
) -> None:
    interventions = INTERVENTIONS[where](model)
    how: dict[str, Any] = {"temperature": temperature, "seed": 4, "freeze_attention": frozen}
    default, steered = steering.generate_both(model, PROMPT, interventions, options(**how))
    assert_equal(default, generate(model, **how), atol=1e-5)
    assert_equal(steered, generate(model, interventions, **how), atol=1e-5)


def test_pad_and_bos_tokens_in_the_text_are_attended_to() -> None:
    model = new_model("gpt2, ReLU")
    model.tokenizer.pad_token = model.tokenizer.bos_token
    prompt = [1, 7, 1, 11, 1, 1]
    ours = steering.generate(model, prompt, [], options())
    logits = model(torch.tensor([ours.token_ids])).detach()
    assert_same_predictions(ours, logits[0, len(prompt) - 1 :])


def test_a_bfloat16_model_is_steered_in_its_own_precision() -> None:
    model = new_model("gemma2, JumpReLU")
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    exact = generate(model, interventions, freeze_attention=True)
    model.to(torch.bfloat16)
    assert model.transcoders[0].W_enc.dtype == torch.bfloat16
    rounded = generate(model, interventions, freeze_attention=True)
    torch.testing.assert_close(
        probabilities(rounded)[0], probabilities(exact)[0], atol=0.05, rtol=0
    )
