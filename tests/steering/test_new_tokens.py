"""The tokens that a generation hands on while it goes."""

from typing import Any

import pytest
import torch

import steering
from steering import Generation, NewToken
from tests.support.steering_cases import (
    ON_GENERATED_TOKENS,
    PROMPT,
    ablate_and_amplify,
    assert_equal,
    options,
    shared_model,
)


@pytest.fixture
def model() -> Any:
    return shared_model("gemma2, JumpReLU")


def assert_handed_on(tokens: list[NewToken], side: int, generation: Generation) -> None:
    mine = [token for token in tokens if token.side == side]
    assert [token.token_id for token in mine] == generation.token_ids[len(PROMPT) :]
    assert [token.position for token in mine] == list(range(len(PROMPT), len(generation.token_ids)))
    assert torch.equal(torch.stack([token.top_ids for token in mine]), generation.top_ids[1:])
    assert torch.equal(torch.stack([token.top_probs for token in mine]), generation.top_probs[1:])


@pytest.mark.parametrize("steered_only", [False, True])
def test_each_side_s_tokens_are_handed_on_in_order_also_when_one_stops_first(
    model: Any, steered_only: bool
) -> None:
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    how: dict[str, Any] = {"n_tokens": 12, "temperature": 2.0, "seed": 0}
    generate = steering.generate if steered_only else steering.generate_both

    def run(**more: Any) -> list[Generation]:
        made = generate(model, PROMPT, interventions, options(**how, **more))
        return [made] if isinstance(made, Generation) else list(made)

    whole = run()
    first = [set(side.token_ids[len(PROMPT) :]) for side in whole]
    stop = next(i for i in whole[0].token_ids[len(PROMPT) :] if i not in first[-1] or steered_only)
    tokens: list[NewToken] = []
    handed_on = run(stop_ids={stop}, on_new_tokens=tokens.extend)
    for side, (with_it, without) in enumerate(zip(handed_on, run(stop_ids={stop}), strict=True)):
        assert_handed_on(tokens, side, with_it)
        assert_equal(with_it, without)
    passes = [token.position for token in tokens]
    assert passes == sorted(passes)
