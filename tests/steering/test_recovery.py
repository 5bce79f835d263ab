"""Whatever happens in a steer, the model leaves it as it came."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import steering
from errors import Cancelled, DeadlineExceeded, NotFinite
from steering import Intervention
from tests.support.steering_cases import (
    ON_GENERATED_TOKENS,
    PROMPT,
    ablate_and_amplify,
    assert_equal,
    generate,
    options,
    shared_model,
)


def state(model: Any) -> dict[str, Any]:
    """What a job must leave as it found it: hooks, configuration, parameters."""
    return {
        "hooks": {
            name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks))
            for name, point in model.hook_dict.items()
        },
        "level": model.context_level,
        "cfg": dict(vars(model.cfg)),
        "padding": model.tokenizer.padding_side,
        "parameters": {
            name: (parameter._version, parameter.requires_grad, parameter.is_inference())
            for name, parameter in model.named_parameters()
        },
    }


class Broken(Exception):
    pass


def fail_in_hook(model: Any, interventions: list[Intervention]) -> None:
    """The last layer fails in the pass of the third token, with deltas pending."""
    passes = iter(range(100))

    def fail(*_: Any) -> None:
        if next(passes) == 3:
            raise Broken

    handle = model.blocks[2].ln2.register_forward_hook(fail)
    try:
        steering.generate_both(model, PROMPT, interventions, options())
    finally:
        handle.remove()


def fail_in_frozen_pass(model: Any, interventions: list[Intervention]) -> None:
    def fail(*_: Any) -> None:
        raise Broken

    handle = model.blocks[1].attn.register_forward_hook(fail)
    try:
        generate(model, interventions, freeze_attention=True)
    finally:
        handle.remove()


def fail_in_activations(model: Any, interventions: list[Intervention]) -> None:
    handle = model.blocks[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        steering.feature_activations(model, PROMPT, [(0, 1, 3), (2, 4, 5)])
    finally:
        handle.remove()


def fail_in_sampling(model: Any, interventions: list[Intervention]) -> None:
    generate(model, interventions, temperature=1.0, freq_penalty=float("inf"))


def fail_in_a_later_check(model: Any, interventions: list[Intervention]) -> None:
    calls = itertools.count(1)

    def check() -> None:
        if next(calls) == 3:
            raise Cancelled("no longer wanted")

    generate(model, interventions, check=check)


def fail_in_the_first_check(model: Any, interventions: list[Intervention]) -> None:
    def late() -> None:
        raise DeadlineExceeded("too late")

    generate(model, interventions, check=late)


def fail_in_on_token(model: Any, interventions: list[Intervention]) -> None:
    def fail(done: int, total: int) -> None:
        raise Broken

    generate(model, interventions, on_token=fail)


def fail_in_numbers(model: Any, interventions: list[Intervention]) -> None:
    generate(model, [*interventions, Intervention(0, 1, None, 1e39)])


FAILURES: list[tuple[Callable[[Any, list[Intervention]], None], type[Exception]]] = [
    (fail_in_hook, Broken),
    (fail_in_frozen_pass, Broken),
    (fail_in_activations, ZeroDivisionError),
    (fail_in_sampling, RuntimeError),
    (fail_in_a_later_check, Cancelled),
    (fail_in_the_first_check, DeadlineExceeded),
    (fail_in_on_token, Broken),
    (fail_in_numbers, NotFinite),
]


@pytest.mark.parametrize(("fail", "error"), FAILURES)
@pytest.mark.parametrize("kind", ["gemma2, JumpReLU", "gemma2, cross-layer JumpReLU, skip"])
def test_after_a_failure_the_next_generation_is_that_of_a_fresh_model(
    kind: str, fail: Callable[[Any, list[Intervention]], None], error: type[Exception]
) -> None:
    model = shared_model(kind)
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    before = state(model)
    fresh_default, fresh_steered = generate(model), generate(model, interventions)
    with pytest.raises(error):
        fail(model, interventions)
    assert state(model) == before
    assert_equal(generate(model), fresh_default)
    assert_equal(generate(model, interventions), fresh_steered)


@pytest.fixture
def gemma() -> Any:
    return shared_model("gemma2, JumpReLU")


def test_hooks_of_others_stay(gemma: Any) -> None:
    calls: list[int] = []
    gemma.add_hook("blocks.0.hook_resid_pre", lambda acts, hook: calls.append(1))
    try:
        generate(gemma, ablate_and_amplify(gemma), n_tokens=1, freeze_attention=True)
        n_calls = len(calls)
        gemma(torch.tensor([PROMPT]))
        assert len(calls) == n_calls + 1
    finally:
        gemma.reset_hooks()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_autograd_mode_makes_no_difference(gemma: Any, mode: Any) -> None:
    interventions = ablate_and_amplify(gemma)
    before, plain = state(gemma), generate(gemma, interventions)
    with mode():
        inside = generate(gemma, interventions)
    assert torch.equal(inside.top_probs, plain.top_probs)
    assert not plain.top_probs.is_inference()
    assert state(gemma) == before
    # Attribution needs gradients through the same model afterwards.
    gemma(torch.tensor([PROMPT])).sum().backward()
