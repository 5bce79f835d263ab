"""What an action that fails leaves behind."""

import pytest

from errors import Internal
from model_loader import get_model
from tests.support.demo_worker import PROMPT, ask, demo_settings, forget_graphs

FORWARD = {"action": "forward-pass", "prompt": PROMPT}


def raise_from_itself():
    error = RuntimeError("of a library")
    raise error from error


def raise_in_a_circle():
    first, second = RuntimeError("first"), RuntimeError("second")
    second.__cause__ = first
    raise first from second


@pytest.mark.parametrize("fail", [raise_from_itself, raise_in_a_circle])
def test_an_error_that_is_its_own_cause_ends_its_job_alone(fail):
    forget_graphs()
    block = get_model(demo_settings()).model.blocks[1]
    handle = block.register_forward_pre_hook(lambda *_: fail())
    with pytest.raises(Internal):
        ask(FORWARD)
    handle.remove()
    assert ask(FORWARD)["input_tokens"]
