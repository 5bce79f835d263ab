"""The likeliest tokens: of equal ones always the same, however many are asked for."""

import pytest
import torch

from attribution.salient_logits import likeliest
from tests.support.cuda_devices import DEVICES, cuda_device

D_VOCAB = 1_000


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_logits_are_in_the_order_of_their_ids_whatever_number_is_asked_for(dtype, device):
    random = torch.Generator().manual_seed(0)
    logits = torch.randint(-4, 4, (D_VOCAB,), generator=random).to(dtype)
    logits[logits == 0] *= torch.tensor([1.0, -1.0]).repeat(D_VOCAB)[: int((logits == 0).sum())]
    expected = sorted(range(D_VOCAB), key=lambda n: (-float(logits[n]), n))
    if device == "cpu":
        _assert_likeliest(logits, expected)
        return
    with cuda_device(device):
        _assert_likeliest(logits.to("cuda"), expected)


def _assert_likeliest(logits, expected):
    of_all = logits.float().softmax(-1)
    for n in (0, 1, 2, 3, 150, 400, D_VOCAB):
        probabilities, token_ids = likeliest(logits, n)
        assert token_ids.tolist() == expected[:n]
        assert probabilities.tolist() == of_all[token_ids].tolist()
    assert int(logits.argmax()) == expected[0]
