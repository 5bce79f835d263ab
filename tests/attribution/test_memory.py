"""What a graph takes of memory: the formula, beside the emulated device's peak."""

import gc
from dataclasses import fields, replace

import pytest
import torch

import attribution
from attribution import expansion, freezing
from attribution.memory import Shape, rows_bytes, targets_at_once
from benchmarks import graph_memory
from benchmarks.emulated_cuda import emulated_cuda
from benchmarks.measure import resident_bytes
from benchmarks.memory import GEMMA, predicted, reached, shape_of
from benchmarks.reference_workload import build
from loading.footprint import device_bytes
from loading.registry import REGISTRY
from tests.support.cuda_devices import on_cuda
from tests.support.tiny_models import prompt_tokens, tiny_model

GB = 1e9


def peaks(model, tokens, settings, cuda):
    """The device's peak beside the weights, and the graph."""
    gc.collect()
    before = cuda.memory.allocated
    cuda.memory.peak = before
    graph = attribution.attribute(tokens, model, **settings)
    return cuda.memory.peak - before, graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "changed",
    [{}, {"max_feature_nodes": 100}, {"max_feature_nodes": 20, "batch_size": 2}],
    ids=["rows are most", "a batch is most", "encoding is most"],
)
def test_the_formula_is_within_15_percent_of_the_devices_peak(dtype, changed):
    with emulated_cuda() as cuda:
        model, tokens, settings = build("R0", device="cuda", dtype=dtype)
        settings |= changed
        measured, graph = peaks(model, tokens, settings, cuda)
        formula = predicted(model, graph, on_cuda=True, **settings)
    assert formula.device == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_so_it_is_for_a_cross_layer_set(dtype):
    settings = {"max_feature_nodes": 400, "batch_size": 48, "update_interval": 4}
    with emulated_cuda() as cuda:
        model = on_cuda(tiny_model("gemma2", "cross_layer_relu", dtype=dtype))
        measured, graph = peaks(model, prompt_tokens(40), settings, cuda)
        shape = replace(shape_of(model, graph, on_cuda=True), cross_layer=True)
        n_logits, at_once = len(graph.logit_targets), targets_at_once(shape, 48, 4)
        formula = graph_memory.peak(shape, 400, n_logits, at_once)
    assert formula.device == pytest.approx(measured, rel=0.15)


def test_with_rows_on_the_host_the_device_has_the_rest(monkeypatch):
    monkeypatch.setattr(expansion, "_SHARE_OF_DEVICE", 0.0)
    with emulated_cuda() as cuda:
        model, tokens, settings = build("R0", device="cuda", dtype=torch.bfloat16)
        measured, graph = peaks(model, tokens, settings, cuda)
        shape = shape_of(model, graph, on_cuda=True)
        n = len(graph.selected_features), len(graph.logit_targets)
        formula = graph_memory.peak(shape, *n, targets_at_once(shape, 48, 4), rows_on_host=True)
    assert formula.device == pytest.approx(measured, rel=0.15)
    assert formula.host >= rows_bytes(sum(n), shape.n_sources)


def test_rows_on_the_host_take_memory_where_they_are_written():
    before = resident_bytes()
    rows = expansion._host_zeros(2000, 50_000)  # 400 MB
    rows[:, :2500] = 1
    assert not rows[:, 2500:].any()  # to read takes none
    assert resident_bytes() - before < 60e6
    assert expansion._host_zeros(0, 5).shape == (0, 5)


def test_what_a_device_has_computed_is_copied_to_the_host_as_far_as_it_reaches(monkeypatch):
    kept = []

    def host_zeros(*shape):
        kept.append(torch.full(shape, -0.0))  # a copied zero is a positive one
        return kept[-1]

    monkeypatch.setattr(expansion, "_SHARE_OF_DEVICE", 0.0)
    monkeypatch.setattr(expansion, "_host_zeros", host_zeros)
    with emulated_cuda() as cuda:
        model, tokens, settings = build("R0", device="cuda")
        _, graph = peaks(model, tokens, settings, cuda)
        written = 1 - kept[0].signbit().logical_and(kept[0] == 0).float().mean()
        assert written == pytest.approx(reached(graph), abs=0.1)
        monkeypatch.undo()
        _, expected = peaks(model, tokens, settings, cuda)
        assert torch.equal(graph.adjacency_matrix, expected.adjacency_matrix)


def test_of_the_logits_only_the_last_positions_are_kept():
    local = freezing.build_local_replacement_model(tiny_model("gemma2"), prompt_tokens())
    assert local.logits.untyped_storage().nbytes() == local.logits.nbytes


def test_the_shape_that_a_sweep_goes_by_is_the_graphs():
    with emulated_cuda():
        model, tokens, settings = build("R0", device="cuda", dtype=torch.bfloat16)
        local = freezing.build_local_replacement_model(model, tokens.to("cuda"))
        graph = attribution.attribute(tokens, model, **settings)
        expected = shape_of(model, graph, on_cuda=True)
        for field in fields(Shape):
            assert getattr(local.shape, field.name) == pytest.approx(getattr(expected, field.name))


@pytest.mark.parametrize("density", [60, 100])
def test_gemma_2_2b_takes_at_most_40_gb_beside_its_weights_at_512_tokens(density):
    shape = replace(GEMMA, n_pos=512, n_active=density * 26 * 512)
    formula = graph_memory.peak(shape, 5000, 10, targets_at_once(shape, 48, 4))
    assert formula.total < 40 * GB


def test_the_readmes_figures_for_a_gpu_are_the_formulas_to_a_tenth():
    entry = next(e for e in REGISTRY if e.transcoder_set == "mwhanna/gemma-scope-transcoders")
    lazy = {"lazy_encoder": entry.lazy_encoder, "lazy_decoder": entry.lazy_decoder}
    told = device_bytes(entry.shapes, **lazy)
    weights = device_bytes(replace(entry.shapes, n_active=0), **lazy, n_tokens=0)
    shape = replace(GEMMA, n_pos=64, n_active=100 * 26 * 64)
    formula = graph_memory.peak(shape, 10_000, 10, targets_at_once(shape, 48, 4))
    assert weights + formula.device == pytest.approx(told, rel=0.1)
