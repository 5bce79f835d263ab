"""Weights in the order of their use: the same model, with nothing transposed on the way."""

from typing import Any

import pytest
import torch

from loading.transformerlens_engine import lay_out_weights
from tests.support.tiny_models import ARCHITECTURES, prompt_tokens, tiny_model


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param, hooks="mlp")


def test_parameters_keep_their_values_and_stand_for_themselves(model: Any) -> None:
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    lay_out_weights(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, values)
        assert not parameter.requires_grad


def test_logits_and_gradients_stay_the_same(model: Any) -> None:
    def logits_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        kept: list[torch.Tensor] = []
        embeddings = ("hook_embed", lambda acts, hook: kept.append(acts))
        with model.hooks([embeddings]):
            logits = model(prompt_tokens(8))
        (gradient,) = torch.autograd.grad(logits[0, -1].norm(), kept)
        return logits.detach(), gradient

    logits, gradient = logits_and_gradient()
    lay_out_weights(model)
    again, gradient_again = logits_and_gradient()
    assert torch.equal(again, logits)
    torch.testing.assert_close(gradient_again, gradient)


def test_nothing_is_left_to_transpose(model: Any) -> None:
    lay_out_weights(model)
    for name, weight in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "W_U" or (kind in {"W_gate", "W_in", "W_out"} and model.cfg.gated_mlp):
            assert weight.T.is_contiguous(), name
        elif kind == "W_O":
            assert weight.permute(2, 0, 1).is_contiguous(), name
        elif kind in {"W_Q", "W_K", "W_V", "_W_K", "_W_V"}:
            assert weight.transpose(1, 2).is_contiguous(), name
