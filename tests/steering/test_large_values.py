"""Values so large that a norm can't square what they write: refused, not answered with zeros."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import steering
from errors import NotFinite
from steering import Frozen, Intervention, Options
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_engine import complete_model
from tests.support.cuda_devices import DEVICES, cuda_device, on_cuda
from tests.support.hugging_face_models import new_model
from tests.support.steering_cases import KINDS, PROMPT
from tests.support.tiny_models import N_LAYERS, tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FEATURE = (1, 3, 9)
# A norm's float32 squares of what 1e25 writes are infinite: it divides by that, and gives zeros.
TOO_LARGE, LARGE = 1e25, 1e3


def swept(kind: str, dtype: torch.dtype, _: Path) -> Any:
    architecture, dictionary, hooks, _skip = KINDS[kind]
    return tiny_model(architecture, dictionary, hooks, dtype=dtype)


def traced(family: str, dtype: torch.dtype, _: Path) -> Any:
    return new_model("nnsight", family, dtype=dtype)


def complete(case: str, dtype: torch.dtype, directory: Path) -> Any:
    return complete_model(write_case(directory, CASES[case]), dtype)


MODELS: dict[str, Callable[[torch.dtype, Path], Any]] = {
    **{kind: partial(swept, kind) for kind in KINDS},
    **{f"nnsight, {name}": partial(traced, name) for name in ("llama", "gemma3", "gpt-oss")},
    **{f"complete, {name}": partial(complete, name) for name in ("relu-6", "topk-9")},
}


def assert_refuses(model: Any) -> None:
    """An experiment and a steer whose value is too large; those that are large are answered."""
    for frozen in (Frozen(attention=False), Frozen(), Frozen(range(2))):
        with pytest.raises(NotFinite, match=r"experiments\[1\].*use smaller scales or values"):
            run(model, [LARGE, TOO_LARGE, LARGE], frozen)
        assert run(model, [LARGE, -LARGE], frozen).logits.isfinite().all()
    layer, position, index = FEATURE
    for freeze in (False, True):
        options = Options(n_tokens=1, top_k=1, freeze_attention=freeze)
        for where in (position, None):
            too_large, large = (
                [Intervention(layer, index, where, value)] for value in (TOO_LARGE, LARGE)
            )
            with pytest.raises(NotFinite, match="use smaller deltas"):
                steering.generate(model, PROMPT, too_large, options)
            assert steering.generate(model, PROMPT, large, options).top_probs.isfinite().all()


def run(model: Any, values: list[float], frozen: Frozen) -> steering.Outcomes:
    experiments = [{FEATURE: value} for value in values]
    return steering.intervene(model, PROMPT, [FEATURE], experiments, frozen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_what_a_norm_cannot_square_is_refused(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    assert_refuses(MODELS[name](dtype, tmp_path))


@pytest.mark.parametrize("device", DEVICES)
def test_a_cuda_device_refuses_it_too(device: str) -> None:
    model = tiny_model("gemma2", "cross_layer_jump_relu", dtype=torch.bfloat16)
    with cuda_device(device):
        assert_refuses(on_cuda(model))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("gemma2")])
def test_with_norms_frozen_a_large_value_is_exact(kind: str) -> None:
    model = swept(kind, torch.float32, Path())
    small, large = (
        run(model, [1e6 * n, 1e20 * n], Frozen(range(N_LAYERS))).logits[1:] for n in (1, 2)
    )
    torch.testing.assert_close(small[1] / 1e14, small[0], rtol=1e-3, atol=1e3)
    torch.testing.assert_close(large, 2 * small, rtol=1e-3, atol=1e3)


def test_a_value_that_nothing_reads_is_no_reason_to_refuse() -> None:
    """The feature's layer isn't among those that are held, so that it writes nothing."""
    model = swept("gpt2, ReLU", torch.float32, Path())
    found = run(model, [TOO_LARGE], Frozen(range(2, 3)))
    torch.testing.assert_close(found.logits[1], found.logits[0], atol=1e-5, rtol=1e-4)
