"""Contrasts in 16 bits: as near the float32 truth as circuit-tracer's edges are."""

from typing import Any

import pytest
import torch

import steering
from attribution.contrast import contrast
from attribution.contrasted import Contrast
from attribution.library_contrast import contrast_with_library
from attribution.support import unsupported
from benchmarks.precision import in_float32
from tests.support.hugging_face_models import new_model
from tests.support.steering_cases import KINDS
from tests.support.tiny_models import prompt_tokens, tiny_model

DTYPES = [torch.bfloat16, torch.float16]
PROMPTS: list[list[int]] = [prompt_tokens(8, seed).tolist() for seed in range(1, 40)]
SWEPT = [
    *(kind for name, kind in KINDS.items() if "parallel" not in name),
    ("folded layer norm", "cross_layer_jump_relu", "residual", False),
    ("folded rms norm", "top_k", "mlp", True),
]
TRACED = [
    ("llama", "jump_relu", True), ("qwen3", "top_k", False), ("gemma2", "relu", False),
    ("gemma3", "cross_layer_jump_relu", False), ("gemma3 with vision", "jump_relu", False),
    ("gpt-oss", "cross_layer_relu", True),
]  # fmt: skip
# Of slopes and activations, in parts of their length.
FAR = {torch.bfloat16: 0.08, torch.float16: 0.01}
LUCK = 1.1  # rounding is luck to a part

Numbers = dict[tuple[int, int], tuple[float, float, float]]


def numbers(found: Contrast) -> Numbers:
    return {(f.layer, f.index): (f.activation, f.other_activation, f.slope) for f in found.features}


def prompts_of(*models: Any) -> tuple[list[int], list[int]]:
    """Two prompts that are continued in different ways, by all of these models alike."""
    first: tuple[list[int], set[int]] | None = None
    for prompt in PROMPTS:
        predicted = {int(steering.next_token_logits(model, prompt).argmax()) for model in models}
        if len(predicted) > 1:
            continue
        if first is None:
            first = prompt, predicted
        elif predicted != first[1]:
            return first[0], prompt
    raise AssertionError("no two prompts have other predictions")


def errors(found: Numbers, truth: Numbers) -> torch.Tensor:
    """Of both activations and the slope, of the features that are active in both."""
    common = found.keys() & truth.keys()
    assert len(common) >= 0.9 * len(found.keys() | truth.keys())
    one, other = (torch.tensor([side[key] for key in common]) for side in (found, truth))
    return (one - other).norm(dim=0) / other.norm(dim=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_they_are_as_near_the_truth_as_the_librarys_edges(dtype: torch.dtype) -> None:
    ours, theirs, compared = 0.0, 0.0, 0
    for architecture, dictionary, hooks, skip in SWEPT:

        def build(
            dtype: torch.dtype, case: Any = (architecture, dictionary, hooks), skip: bool = skip
        ) -> Any:
            return tiny_model(*case, skip=skip, dtype=dtype)

        model = build(dtype)
        assert unsupported(model) is None
        exact = in_float32(model, build)
        prompts = prompts_of(exact, model)
        for position in (7, 2):
            truth = numbers(contrast(exact, *prompts, position, 3))
            found = errors(numbers(contrast(model, *prompts, position, 3)), truth)
            assert found.max() <= FAR[dtype], (architecture, dictionary)
            try:
                library = contrast_with_library(model, *prompts, position, 3, lambda: None)
            except RuntimeError as error:  # circuit-tracer mixes dtypes itself
                assert "dtype" in str(error)
                continue
            compared += 1
            ours += float(found.sum())
            theirs += float(errors(numbers(library), truth).sum())
    assert compared >= 10
    assert ours <= LUCK * theirs


@pytest.mark.parametrize("kind", SWEPT, ids=str)
def test_in_float32_they_are_the_librarys_edges(kind: Any) -> None:
    architecture, dictionary, hooks, skip = kind
    model = tiny_model(architecture, dictionary, hooks, skip=skip)
    prompts = prompts_of(model)
    for position in (7, 2):
        ours = contrast(model, *prompts, position, 3)
        library = contrast_with_library(model, *prompts, position, 3, lambda: None)
        expected = numbers(library)
        assert numbers(ours).keys() == expected.keys()
        assert errors(numbers(ours), expected).max() <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TRACED, ids=str)
def test_on_nnsight_they_are_near_the_truth(case: Any, dtype: torch.dtype) -> None:
    family, dictionary, skip = case
    model = new_model("nnsight", family, dictionary, skip=skip, dtype=dtype)
    exact = new_model("nnsight", family, dictionary, skip=skip)
    for rounded, widened in ((model, exact), (model.transcoders, exact.transcoders)):
        widened._module.load_state_dict(rounded._module.state_dict())
    prompts = prompts_of(exact, model)
    for position in (7, 2):
        found, truth = (numbers(contrast(each, *prompts, position, 3)) for each in (model, exact))
        assert errors(found, truth).max() <= FAR[dtype]
