"""Activations of single features, and how little is read for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK

import steering
from steering import Intervention
from steering.transcoder_layer import TranscoderLayer
from tests.support.steering_cases import (
    KINDS,
    ON_GENERATED_TOKENS,
    PROMPT,
    ablate_and_amplify,
    active_features,
    assert_equal,
    generate,
    new_model,
    shared_model,
)
from tests.support.tiny_models import D_TRANSCODER


def test_activations_are_those_of_the_library(model: Any) -> None:
    _, activations = model.get_activations(torch.tensor(PROMPT))
    features = [(2, 5, 4), (0, 1, 3), (2, 5, 4), (1, 0, 7), (2, 1, 4), (1, 3, 47)]
    for layer, position, index in activations.nonzero()[::7].tolist():
        features.append((layer, position, index))
    read = steering.feature_activations(model, PROMPT, features)
    assert read == pytest.approx([activations[f].item() for f in features], abs=1e-5)
    assert sum(value > 0 for value in read) > 10
    assert 0.0 in read


def test_no_features_have_no_activations(model: Any) -> None:
    assert steering.feature_activations(model, PROMPT, []) == []


def test_one_threshold_for_all_features_is_a_jump_relu_too() -> None:
    model = new_model("gemma2, JumpReLU")
    features = list(active_features(model))
    own_thresholds = steering.feature_activations(model, PROMPT, features)
    for transcoder in model.transcoders:
        transcoder.activation_function = JumpReLU(0.6)
    assert steering.feature_activations(model, PROMPT, features) == own_thresholds


def test_only_the_needed_decoder_rows_are_read_and_once(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, list[int]]] = []
    rows = TranscoderLayer.rows

    def recording(layer: TranscoderLayer, name: Any, indices: Any) -> torch.Tensor:
        if name == "W_dec":
            read.append((layer.layer, sorted(indices.tolist())))
        return rows(layer, name, indices)

    monkeypatch.setattr(TranscoderLayer, "rows", recording)
    interventions = [
        Intervention(1, 9, 2, 1.0),
        Intervention(1, 9, 3, 1.0),
        Intervention(1, 30, 3, 0.0),
        Intervention(2, 4, None, 2.0),
    ]
    generate(model, interventions, n_tokens=5)
    assert read == [(1, [9, 30]), (2, [4])]


@pytest.mark.parametrize("kind", KINDS)
def test_of_transcoders_only_the_rows_at_hand_count_and_all_encoders_where_features_compete(
    kind: str,
) -> None:
    """Transcoders of which only these rows hold numbers give the same generation."""
    model = shared_model(kind)
    interventions = [*ablate_and_amplify(model), *ON_GENERATED_TOKENS]
    expected = generate(model, interventions)
    used = {(i.layer, i.index) for i in interventions}
    saved = {name: p.detach().clone() for name, p in model.transcoders.named_parameters()}
    with torch.no_grad():
        for layer in range(model.cfg.n_layers):
            unused = [i for i in range(D_TRANSCODER) if (layer, i) not in used]
            for name in ["W_dec"] if "TopK" in kind else ["W_enc", "W_dec"]:
                weight_of(model.transcoders, layer, name)[unused] = float("nan")
    try:
        assert_equal(generate(model, interventions), expected)
    finally:
        for name, parameter in model.transcoders.named_parameters():
            parameter.data = saved[name]


def weight_of(transcoders: Any, layer: int, name: str) -> torch.Tensor:
    if hasattr(transcoders, "__iter__"):
        return getattr(transcoders[layer], name)
    return getattr(transcoders, name)[layer]


@pytest.mark.parametrize(
    "kind", ["gpt2, ReLU", "gemma2, JumpReLU", "llama, ReLU, skip", "llama, cross-layer ReLU"]
)
def test_lazy_transcoders_give_the_same_generation(kind: str, tmp_path: Path) -> None:
    lazy = new_model(kind, lazy_in=tmp_path)
    first = lazy.transcoders[0] if hasattr(lazy.transcoders, "__iter__") else lazy.transcoders
    assert first.lazy_encoder
    assert first.lazy_decoder
    assert_same_steering(shared_model(kind), lazy)


def test_a_lazy_encoder_under_topk_gives_the_same_generation(tmp_path: Path) -> None:
    lazy = new_model("qwen3, TopK", lazy_in=tmp_path)
    for transcoder in lazy.transcoders:
        transcoder.activation_function = TopK(10)  # which circuit-tracer's files don't carry
    assert_same_steering(shared_model("qwen3, TopK"), lazy)


def assert_same_steering(eager: Any, lazy: Any) -> None:
    interventions = [*ablate_and_amplify(eager), *ON_GENERATED_TOKENS]
    features = list(active_features(eager))
    of_eager, of_lazy = (
        steering.feature_activations(model, PROMPT, features) for model in (eager, lazy)
    )
    assert of_eager == pytest.approx(of_lazy, abs=1e-6)
    assert_equal(generate(eager, interventions), generate(lazy, interventions), atol=1e-6)
