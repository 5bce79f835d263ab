"""The formulas of a complete graph's cost are what the emulated CUDA device counts."""

import gc
import tempfile
from pathlib import Path

import pytest
import torch

from attribution.complete import attribute, freeze, trace_attention
from benchmarks import complete_workload
from benchmarks.complete_costs import (
    QWEN,
    CompleteShape,
    memory,
    stages,
    table,
    table_of_stages,
    with_tokens,
)
from benchmarks.emulated_cuda import emulated_cuda
from benchmarks.kernels import complete_counts
from tests.support.complete_engine import complete_model


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def counted(request):
    """The shape of a small graph, what the device counts of it, and its peak of memory."""
    w, dtype = complete_workload.WORKLOADS["K6"], getattr(torch, request.param)
    with tempfile.TemporaryDirectory() as directory, emulated_cuda() as cuda:
        model = complete_model(complete_workload.write(Path(directory), w), dtype, "cuda")
        gc.collect()
        cuda.memory.peak = before = cuda.memory.allocated
        graph, traces, counts = complete_counts(cuda, model, w)
        return shape_of(w, graph, traces), counts, cuda.memory.peak - before


def shape_of(w, graph, traces):
    features = graph.active_features[graph.selected_features[list(traces)]].tolist()
    heads = {(layer, at, index // (w.d_sae // w.n_qk)) for layer, at, index in features}
    cfg = graph.cfg
    return CompleteShape(
        n_layers=cfg.n_layers,
        n_pos=graph.n_pos,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        n_values=cfg.n_key_value_heads,
        d_mlp=cfg.d_mlp,
        d_vocab=cfg.d_vocab,
        d_sae=w.d_sae,
        n_qk=w.n_qk,
        d_qk=w.d_qk,
        n_active=len(graph.active_features),
        itemsize=cfg.dtype.itemsize,
        n_features=len(graph.selected_features),
        n_heads_traced=len(heads),
        traced_at=sum(layer for layer, _, _ in heads) / len(heads) / graph.n_sublayers,
        n_logits=len(graph.logit_targets),
        batch_size=w.batch_size,
        qk_topk=w.qk_topk,
    )


def test_flop_are_those_that_are_counted(counted):
    shape, counts, _ = counted
    for name, cost in stages(shape).items():
        flop = counts[name].flop
        if shape.itemsize == 2:
            assert cost.flop == flop["bfloat16"], name
            computed = cost.flop_float32
        else:
            computed = cost.flop + cost.flop_float32
        # A batch whose targets are all early has fewer sources; heads are in the mean of layers.
        close = {"edges": 0.15, "tracing": 0.05}.get(name, 0.005)
        assert computed == pytest.approx(flop["float32"], rel=close), name


def test_bytes_and_launches_are_those_that_are_counted(counted):
    shape, counts, _ = counted
    for name, cost in stages(shape).items():
        moved = counts[name].n_bytes.total() - counts[name].n_bytes["to the host"]
        assert cost.n_bytes == pytest.approx(moved, rel=0.25), name
        assert cost.launches == pytest.approx(counts[name].n_kernels, rel=0.15), name


def test_the_peak_of_memory_is_what_is_counted(counted):
    shape, _, peak = counted
    assert memory(shape).peak == pytest.approx(peak, rel=0.1)


def test_sources_are_tokens_errors_and_the_features_of_every_module():
    shape = with_tokens(QWEN, 10, 64)
    assert shape.n_sources == 10 + 56 * 10 + 56 * 10 * 64 == 36_410
    assert memory(shape).sources == 4 * 36_410 * 2048


def test_tables_are_markdown_with_a_row_a_length_or_a_stage():
    lengths = table().splitlines()
    assert {line.count("|") for line in lengths} == {13}
    assert [line.split("|")[1].strip() for line in lengths[2:]] == ["10", "64", "256"]
    of_stages = table_of_stages(64).splitlines()
    assert {line.count("|") for line in of_stages} == {7}
    assert len(of_stages) == len(stages(with_tokens(QWEN, 64, 64))) + 2


def test_a_prompt_of_256_tokens_has_its_graph_and_traces(tmp_path):
    w = complete_workload.WORKLOADS["K256"]
    model = complete_model(complete_workload.write(tmp_path, w))
    local = freeze(model, complete_workload.tokens(w))
    graph = attribute(local, batch_size=w.batch_size, max_feature_nodes=300)
    traces = trace_attention(graph, local, top_fraction=w.traced, topk=w.qk_topk)
    assert graph.n_pos == 256
    assert len(graph.active_features) > 100_000
    assert len(graph.selected_features) == 300
    # From the last position to the first: attention brings what early tokens wrote.
    assert graph.adjacency_matrix[:, -256 - len(graph.logit_targets)].abs().max() > 0
    assert traces
