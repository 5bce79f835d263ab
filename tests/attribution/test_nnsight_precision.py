"""Steering in 16 bits on the nnsight engine."""

from typing import Any

import pytest
import torch

import attribution
import steering
from serving import self_test
from steering import Intervention
from tests.support.hugging_face_models import FAMILIES, new_model
from tests.support.steering_cases import PROMPT, generate, library_form, probabilities

INTERVENTIONS = [
    Intervention(0, 3, 2, 4.0), Intervention(1, 9, 3, 2.0), Intervention(1, 30, 3, 5.0)
]  # fmt: skip
CASES = [
    (family, dictionary, skip)
    for i, family in enumerate(FAMILIES)
    for dictionary, skip in (
        ("jump_relu", i % 2 == 0),
        ("top_k", False),
        ("cross_layer_relu", True),
    )
]


def library_probabilities(model: Any) -> torch.Tensor | None:
    words = " ".join(f"w{i}" for i in PROMPT[1:])
    try:
        logits, _ = model.feature_intervention(
            words, library_form(INTERVENTIONS), freeze_attention=False
        )
    except Exception as error:  # nnsight wraps what is raised in a trace
        assert "dtype" in str(error)
        return None
    return logits[0, -1].softmax(-1, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_is_as_near_to_the_float32_truth_as_the_library(dtype: torch.dtype) -> None:
    ours, theirs, compared = 0.0, 0.0, 0
    for family, dictionary, skip in CASES:
        model = new_model("nnsight", family, dictionary, skip=skip, dtype=dtype)
        steered = probabilities(generate(model, INTERVENTIONS, n_tokens=1))[0]
        activations = steering.feature_activations(model, PROMPT, [(1, 3, 9), (2, 4, 5)])
        library = library_probabilities(model)
        model._module.to(torch.float32)
        model.transcoders._module.to(torch.float32)
        truth = probabilities(generate(model, INTERVENTIONS, n_tokens=1))[0]
        error = float((steered - truth).abs().sum())
        assert error < (0.25 if dtype == torch.bfloat16 else 0.03), (family, dictionary)
        eps = torch.finfo(dtype).eps
        exact = steering.feature_activations(model, PROMPT, [(1, 3, 9), (2, 4, 5)])
        assert activations == pytest.approx(exact, rel=16 * eps, abs=16 * eps)
        if library is not None:
            compared += 1
            ours += error
            theirs += float((library - truth).abs().sum())
    assert compared >= 12
    assert ours <= 1.2 * theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_that_a_graph_shows_and_the_start_proves_it(
    family: str, dtype: torch.dtype
) -> None:
    for dictionary in ("jump_relu", "top_k"):
        model = new_model("nnsight", family, dictionary, dtype=dtype)
        graph = attribution.attribute(torch.tensor(PROMPT), model, max_feature_nodes=3)
        features = [tuple(feature) for feature in graph.active_features.tolist()]
        read = steering.feature_activations(model, PROMPT, features)
        assert read == pytest.approx(graph.activation_values.tolist(), rel=1e-5, abs=1e-6)
        self_test.run(model, PROMPT)
