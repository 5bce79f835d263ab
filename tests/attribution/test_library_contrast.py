"""A contrast where circuit-tracer computes the edges: on nnsight, and on unusual architectures."""

from typing import Any

import pytest
import torch
from circuit_tracer.attribution.targets import CustomTarget

import attribution
from attribution.circuit_tracer_names import unembedding
from attribution.contrast import contrast
from attribution.contrasted import Contrast
from attribution.support import unsupported
from errors import NotFinite
from tests.support.hugging_face_models import BOTH_KINDS, new_model, shared_model
from tests.support.tiny_models import prompt_tokens, tiny_model

PROMPT: list[int] = prompt_tokens(8, seed=1).tolist()
OTHERS = [prompt_tokens(8, seed).tolist() for seed in range(2, 30)]


def other_of(model: Any) -> list[int]:
    """A prompt after which the model predicts something else."""
    return next(other for other in OTHERS if contrast(model, PROMPT, other, 3, 4).features)


def numbers(found: Contrast, field: str) -> dict[tuple[int, int], float]:
    return {(f.layer, f.index): getattr(f, field) for f in found.features}


@pytest.mark.parametrize("position", [7, 4, 1])
@pytest.mark.parametrize(("family", "dictionary", "skip"), BOTH_KINDS)
def test_on_nnsight_it_has_the_numbers_of_the_other_engine(
    family: str, dictionary: str, skip: bool, position: int
) -> None:
    engines: list[Any] = ["transformerlens", "nnsight"]
    models = [shared_model(engine, family, dictionary, skip) for engine in engines]
    assert [unsupported(model) is None for model in models] == [True, False]
    other = other_of(models[0])
    swept, traced = (contrast(model, PROMPT, other, position, 3) for model in models)
    for field in ("activation", "other_activation", "slope"):
        expected = numbers(swept, field)
        assert numbers(traced, field) == pytest.approx(expected, rel=1e-4, abs=2e-5)
    for ours, theirs in (
        (traced.logits, swept.logits),
        (traced.other_logits, swept.other_logits),
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def unusual(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    if kind == "parallel":
        return tiny_model("parallel", "jump_relu", "mlp", dtype=dtype)
    return new_model("nnsight", kind, dtype=dtype)


@pytest.mark.parametrize("position", [7, 4, 1])
@pytest.mark.parametrize("kind", ["gpt-oss", "parallel"])
def test_slopes_are_the_library_s_edges_to_the_difference(kind: str, position: int) -> None:
    model = unusual(kind)
    assert unsupported(model) is not None
    found = contrast(model, PROMPT, other_of(model), position, 2)
    matrix = unembedding(model)
    rows = matrix if model.backend == "nnsight" else matrix.T
    direction = rows[found.other_logits.argmax()] - rows[found.logits.argmax()]
    target = CustomTarget("difference", 1.0, direction.detach())
    graph = attribution.attribute(PROMPT, model, attribution_targets=[target])
    row = graph.adjacency_matrix[-1]
    edges = {
        (layer, index): float(row[n])
        for n, (layer, at, index) in enumerate(graph.active_features.tolist())
        if at == position
    }
    assert edges
    ours = {(f.layer, f.index): f.slope * f.activation for f in found.features if f.activation}
    assert ours == pytest.approx(edges, rel=1e-4, abs=1e-5)
    assert any(f.effect for f in found.features if not f.activation)


@pytest.mark.parametrize("kind", ["gpt-oss", "llama"])
def test_a_bfloat16_model_is_near_the_exact_one(kind: str) -> None:
    exact, rounded = unusual(kind), unusual(kind, torch.bfloat16)
    other = other_of(exact)
    truth, found = (contrast(model, PROMPT, other, 7, 7) for model in (exact, rounded))
    expected, slopes = numbers(truth, "slope"), numbers(found, "slope")
    common = expected.keys() & slopes.keys()
    assert len(common) > 0.9 * len(expected)
    wanted, ours = (torch.tensor([side[key] for key in common]) for side in (expected, slopes))
    assert (ours - wanted).norm() < 0.15 * wanted.norm()


def test_numbers_that_overflow_are_refused() -> None:
    model = unusual("parallel")
    other = other_of(model)
    with torch.no_grad():
        model.W_E[other[0]] = torch.inf
    with pytest.raises(NotFinite, match="the model's logits after a prompt"):
        contrast(model, PROMPT, other, 3, 3)


@pytest.mark.parametrize("kind", ["llama", "parallel"])
def test_a_stopped_contrast_leaves_the_model_as_it_came(kind: str) -> None:
    model = unusual(kind)
    other = other_of(model)
    before = contrast(model, PROMPT, other, 3, 4)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        contrast(model, PROMPT, other, 3, 4, check=stop)
    assert contrast(model, PROMPT, other, 3, 4).features == before.features
