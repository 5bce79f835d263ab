"""Targets besides tokens in 16 bits: as near the float32 truth as circuit-tracer's rows.

The library has differences as custom targets. A feature's row it has in the graph of all features.
"""

from collections.abc import Callable
from typing import Any

import circuit_tracer
import pytest
import torch
from circuit_tracer.attribution.targets import CustomTarget
from circuit_tracer.graph import Graph

import attribution
from attribution import FeatureTarget, LogitDifference
from attribution.circuit_tracer_names import unembedding
from benchmarks.precision import Build, in_float32
from tests.support.cuda_devices import DEVICES, cuda_device, on_cuda
from tests.support.hugging_face_models import new_model
from tests.support.tiny_models import D_VOCAB, prompt_tokens, tiny_model

TOKENS = prompt_tokens(9)
DTYPES = [torch.bfloat16, torch.float16]
DIFFERENCES = [
    LogitDifference((7,), (30,), "w7 - w30"),
    LogitDifference((5, 8, 41), (11, 12), "mean[w5, w8, w41] - mean[w11, w12]"),
]
SWEPT = [
    ("gemma2", "jump_relu", "gemma scope", False), ("llama", "relu", "residual", True),
    ("gpt2", "top_k", "mlp", True), ("qwen3", "cross_layer_relu", "residual", True),
    ("gemma3", "cross_layer_jump_relu", "mlp", False), ("gemma2", "top_k", "mlp", True),
]  # fmt: skip
TRACED = [
    ("llama", "jump_relu", True), ("qwen3", "top_k", False), ("gemma2", "relu", False),
    ("gemma3", "jump_relu", False), ("gpt-oss", "cross_layer_relu", False),
]  # fmt: skip
LARGEST_ERROR = {torch.bfloat16: 0.04, torch.float16: 0.02}
LUCK = 1.1  # rounding is luck to a part

Rows = list[dict[tuple[Any, ...], float]]


def swept(case: Any) -> Build:
    architecture, dictionary, hooks, skip = case
    return lambda dtype: tiny_model(architecture, dictionary, hooks, skip=skip, dtype=dtype)


def traced(case: Any) -> Build:
    family, dictionary, skip = case
    return lambda dtype: new_model("nnsight", family, dictionary, skip=skip, dtype=dtype)


def widened(model: Any) -> Any:
    """A model of nnsight with the same weights in float32, in place."""
    for part in (model, model.transcoders):
        part._module.to(torch.float32)
    return model


def strongest(model: Any) -> list[FeatureTarget]:
    """The most active feature of each layer, at positions of their own: none at a threshold."""
    _, activations = model.get_activations(TOKENS)
    targets = []
    for layer, of_layer in enumerate(activations.to_dense().float()):
        index = int(of_layer[4 + layer].argmax())
        targets.append(FeatureTarget(layer, index, 4 + layer))
    return targets


def rows(graph: Graph, which: list[int]) -> Rows:
    """What rows of a graph have, by what the columns are."""
    features = [tuple(f) for f in graph.active_features[graph.selected_features].tolist()]
    n_errors = graph.cfg.n_layers * len(TOKENS)
    names: list[tuple[Any, ...]] = [*features, *(("error", n) for n in range(n_errors))]
    names += [("token", n) for n in range(len(TOKENS))]
    return [
        dict(zip(names, graph.adjacency_matrix[n, : len(names)].tolist(), strict=True))
        for n in which
    ]


def ours(model: Any, targets: list[FeatureTarget]) -> Rows:
    wanted = [*DIFFERENCES, *targets]
    graph = attribution.attribute(TOKENS, model, attribution_targets=wanted, batch_size=64)
    n = len(graph.adjacency_matrix)
    return rows(graph, list(range(n - len(wanted), n)))


def library(model: Any, targets: list[FeatureTarget], *, with_tokens: bool = True) -> Rows:
    matrix = unembedding(model).detach()
    columns = matrix.T if matrix.shape[0] == D_VOCAB else matrix
    customs = [
        CustomTarget(
            each.label,
            0.5,
            columns[:, list(each.plus)].mean(1) - columns[:, list(each.minus)].mean(1),
        )
        for each in DIFFERENCES
    ]
    graph = circuit_tracer.attribute(TOKENS, model, attribution_targets=customs, batch_size=64)
    n, places = len(graph.adjacency_matrix), graph.active_features.tolist()
    assert torch.equal(graph.selected_features.cpu(), torch.arange(len(places)))
    features = [places.index([t.layer, t.position, t.index]) for t in targets]
    found = rows(graph, [n - 2, n - 1, *features])
    if not with_tokens:
        found = [{name: row[name] for name in row if name[0] != "token"} for row in found]
    return found


def error(found: Rows, truth: Rows) -> float:
    """Of all rows together, in what is active in both graphs."""
    pairs = [
        (one[name], other[name])
        for one, other in zip(found, truth, strict=True)
        for name in one.keys() & other.keys()
    ]
    numbers = torch.tensor(pairs, dtype=torch.float64)
    return float((numbers[:, 0] - numbers[:, 1]).norm() / numbers[:, 1].norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_as_near_the_truth_as_the_librarys(dtype: torch.dtype) -> None:
    found, theirs = 0.0, 0.0
    for case in SWEPT:
        build = swept(case)
        model = build(dtype)
        assert attribution.method_for(model) == "explicit sweep"
        exact = in_float32(model, build)
        targets = strongest(exact)
        truth = ours(exact, targets)
        off = error(ours(model, targets), truth)
        assert off <= LARGEST_ERROR[dtype], case
        found, theirs = found + off, theirs + error(library(model, targets), truth)
    assert found <= LUCK * theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_nnsight_rows_are_as_near_the_truth_as_the_librarys(dtype: torch.dtype) -> None:
    found, theirs = 0.0, 0.0
    for case in TRACED:
        model = traced(case)(dtype)
        targets = strongest(model)
        rounded = ours(model, targets)
        librarys = library(model, targets, with_tokens=case[0] != "gemma3")
        truth = ours(widened(model), targets)
        off = error(rounded, truth)
        assert off <= LARGEST_ERROR[dtype], case
        found, theirs = found + off, theirs + error(librarys, truth)
    assert found <= LUCK * theirs


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_on_nnsight_in_float32_rows_are_the_librarys(case: Any) -> None:
    model = traced(case)(torch.float32)
    targets = strongest(model)
    # The library leaves Gemma 3's scale of the embedding out of edges from tokens.
    expected = library(model, targets, with_tokens=case[0] != "gemma3")
    found = ours(model, targets)
    assert error(found, expected) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES], ids=str)
@pytest.mark.parametrize("case", SWEPT[:5], ids=str)
def test_on_a_cuda_device_rows_are_as_near_the_truth(
    case: Any, dtype: torch.dtype, device: str
) -> None:
    build: Callable[[torch.dtype], Any] = swept(case)
    model = build(dtype)
    exact = in_float32(model, build)
    targets = strongest(exact)
    truth = ours(exact, targets)
    with cuda_device(device):
        found = error(ours(on_cuda(model), targets), truth)
    assert found <= (1e-5 if dtype == torch.float32 else LARGEST_ERROR[dtype])
