"""What is asked of a generation and what comes: stops, predictions, sampling, refusals."""

import re
from typing import Any

import pytest
import torch

import steering
from errors import InvalidInput
from steering import Intervention
from tests.support.steering_cases import (
    ON_GENERATED_TOKENS,
    PROMPT,
    ablate_and_amplify,
    assert_equal,
    generate,
    options,
    probabilities,
    shared_model,
)
from tests.support.tiny_models import D_VOCAB


@pytest.fixture
def model() -> Any:
    return shared_model("gemma2, JumpReLU")


@pytest.mark.parametrize("steered", [False, True])
def test_a_stop_token_ends_the_generation_and_has_predictions_too(
    model: Any, steered: bool
) -> None:
    interventions = ablate_and_amplify(model) if steered else []
    whole = generate(model, interventions)
    generated = whole.token_ids[len(PROMPT) :]
    n_generated = generated.index(generated[2]) + 1
    stopped = generate(model, interventions, stop_ids={generated[2]})
    assert stopped.token_ids == whole.token_ids[: len(PROMPT) + n_generated]
    assert torch.equal(stopped.top_probs, whole.top_probs[: n_generated + 1])


@pytest.mark.parametrize("first_to_stop", ["default", "steered"])
def test_when_one_side_stops_the_other_goes_on_as_if_alone(model: Any, first_to_stop: str) -> None:
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    how: dict[str, Any] = {"n_tokens": 12, "temperature": 2.0, "seed": 0}
    alone = {"default": generate(model, **how), "steered": generate(model, interventions, **how)}
    generated = {name: side.token_ids[len(PROMPT) :] for name, side in alone.items()}
    other = "steered" if first_to_stop == "default" else "default"
    stop = next(i for i in generated[first_to_stop] if i not in generated[other])
    n_generated = generated[first_to_stop].index(stop) + 1
    assert n_generated < 12

    both = steering.generate_both(model, PROMPT, interventions, options(stop_ids=[stop], **how))
    sides = dict(zip(["default", "steered"], both, strict=True))
    stopped = sides[first_to_stop]
    assert stopped.token_ids == alone[first_to_stop].token_ids[: len(PROMPT) + n_generated]
    assert len(stopped.top_ids) == n_generated + 1
    assert_equal(sides[other], alone[other], atol=1e-5)


@pytest.mark.parametrize("top_k", [0, 1, 5, D_VOCAB])
def test_each_step_has_top_k_predictions_likeliest_first(model: Any, top_k: int) -> None:
    generation = generate(model, top_k=top_k)
    assert generation.top_ids.shape == generation.top_probs.shape == (7, top_k)
    assert (generation.top_probs.diff(dim=1) <= 0).all()
    if top_k:
        assert generation.top_ids[:-1, 0].tolist() == generation.token_ids[len(PROMPT) :]
    if top_k == D_VOCAB:
        torch.testing.assert_close(probabilities(generation).sum(dim=1), torch.ones(7))


def test_the_model_runs_once_for_the_prompt_of_each_kind_and_once_for_each_token(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    shapes = []
    forward = model.forward

    def counting(tokens: torch.Tensor, **kwargs: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return forward(tokens, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    prompt = (1, len(PROMPT))
    generate(model, interventions, n_tokens=3)
    assert shapes == [prompt, (1, 1), (1, 1), (1, 1)]
    shapes.clear()
    # The default's first prediction is that of a pass of its own, as in a graph.
    generate(model, n_tokens=1)
    assert shapes == [prompt, prompt, (1, 1)]
    shapes.clear()
    generate(model, interventions, n_tokens=2, freeze_attention=True)
    assert shapes == [(2, len(PROMPT)), (1, 1), (1, 1)]
    shapes.clear()
    for frozen in (False, True):
        steering.generate_both(
            model, PROMPT, interventions, options(n_tokens=1, freeze_attention=frozen)
        )
    assert shapes == [(2, len(PROMPT)), prompt, (2, 1)] * 2


def test_progress_is_reported_after_each_token(model: Any) -> None:
    seen: list[tuple[int, int]] = []
    generate(model, n_tokens=3, on_token=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_check_is_called_before_each_pass(model: Any) -> None:
    calls: list[None] = []
    generate(model, n_tokens=3, check=lambda: calls.append(None))
    assert len(calls) == 4


def test_the_context_can_be_filled_to_its_last_token(model: Any) -> None:
    generation = generate(model, n_tokens=model.cfg.n_ctx - len(PROMPT))
    assert len(generation.token_ids) == model.cfg.n_ctx


@pytest.mark.parametrize(
    ("intervention", "changes", "sentence"),
    [
        (None, {"n_tokens": 59}, "n_tokens is 59, after 6 prompt tokens the model has room for 58"),
        (None, {"top_k": 51}, "top_k is 51, the model's vocabulary has 50 tokens"),
        (None, {"top_k": -1}, "top_k is -1, the model's vocabulary has 50 tokens"),
        (
            Intervention(3, 0, 1, 0.0),
            {},
            "features[0].layer is 3, the model has 3 layers (0 to 2)",
        ),
        (
            Intervention(0, 64, 1, 0.0),
            {},
            "features[0].index is 64, the model has 64",
        ),
        (Intervention(0, 0, 6, 0.0), {}, "features[0].position is 6, the prompt has 6 tokens"),
        (Intervention(0, 0, -1, 0.0), {}, "features[0].position is -1, the prompt has 6"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    model: Any, intervention: Intervention | None, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        generate(model, [intervention] if intervention else [], **changes)


@pytest.mark.parametrize("steered", [False, True])
def test_a_seed_repeats_a_sampled_generation_exactly(model: Any, steered: bool) -> None:
    interventions = ablate_and_amplify(model) if steered else []

    def sampled(seed: int | None) -> list[int]:
        torch.rand(3)  # the global state moves on between two jobs
        return generate(
            model, interventions, n_tokens=12, temperature=1.5, freq_penalty=0.3, seed=seed
        ).token_ids

    assert sampled(17) == sampled(17)
    assert sampled(-5) == sampled(-5)
    assert len({tuple(sampled(seed)) for seed in range(5)}) > 1
    assert len({tuple(sampled(None)) for _ in range(5)}) > 1


def test_sampling_leaves_the_global_random_state_alone(model: Any) -> None:
    before = torch.get_rng_state()
    generate(model, temperature=1.0, seed=3)
    generate(model, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "freq_penalty"), [(1.0, 0.0), (0.7, 2.0), (2.0, -1.0)])
def test_a_seed_draws_what_the_library_draws(
    model: Any, temperature: float, freq_penalty: float
) -> None:
    how: dict[str, Any] = {"temperature": temperature, "freq_penalty": freq_penalty}
    torch.manual_seed(11)
    theirs = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, stop_at_eos=False, verbose=False, **how
    )
    assert generate(model, n_tokens=12, seed=11, **how).token_ids == theirs[0].tolist()


def test_a_penalty_keeps_tokens_from_coming_again(model: Any) -> None:
    ids = generate(model, n_tokens=40, temperature=0.5, freq_penalty=1e4, seed=0).token_ids
    generated = ids[len(PROMPT) :]
    assert len(set(generated) - set(PROMPT)) == len(generated) == 40


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-320])
def test_a_temperature_close_to_zero_is_greedy(model: Any, temperature: float) -> None:
    assert_equal(generate(model, temperature=temperature, seed=1), generate(model))
