"""The roofline's formulas are what the emulated CUDA device counts."""

import pytest
import torch

from attribution.patterns import BLOCK_LENGTH
from benchmarks.counted_graph import counted_graph
from benchmarks.emulated_cuda import emulated_cuda
from benchmarks.reference_workload import WORKLOADS, build
from benchmarks.roofline import GPUS, library_stages, seconds_on, table_of_gpus, table_of_stages
from benchmarks.workload_costs import Cost, shapes_of, stages

# Of what is counted. The sweep and ranking are exact but for a few small vectors.
CLOSE = {"forward pass": 0.06, "encoding and freezing": 0.12, "the rest": 0.15}


@pytest.fixture(
    scope="module",
    params=[("float32", 128), ("bfloat16", 128), ("bfloat16", 10)],
    ids=["float32", "bfloat16", "patterns in blocks"],
)
def counted(request):
    dtype, length = request.param
    with pytest.MonkeyPatch.context() as patch, emulated_cuda() as cuda:
        patch.setitem(BLOCK_LENGTH, "cuda", length)
        model, tokens, settings = build("K24", device="cuda", dtype=getattr(torch, dtype))
        shapes, counts = counted_graph(cuda, model, tokens, **settings)
        return dtype, stages(shapes), counts


def test_flop_are_exactly_those_that_are_counted(counted):
    dtype, costs, counts = counted
    for name, cost in costs.items():
        if dtype == "float32":
            assert cost.flop + cost.flop_float32 == counts[name].flop["float32"]
        else:
            assert cost.flop == counts[name].flop["bfloat16"]
            assert cost.flop_float32 == counts[name].flop["float32"]
    assert sum(costs.values(), Cost()).flop_float32 > 0


def test_bytes_and_launches_are_those_that_are_counted(counted):
    _, costs, counts = counted
    for name, cost in costs.items():
        to_host = counts[name].n_bytes["to the host"]
        moved = counts[name].n_bytes.total() - to_host
        assert cost.n_bytes == pytest.approx(moved, rel=CLOSE.get(name, 0.01)), name
        assert cost.to_host == pytest.approx(to_host, rel=0.01), name
        assert cost.launches == pytest.approx(counts[name].n_kernels, rel=0.15), name


def test_every_target_is_expanded_once_in_the_schedule_of_a_workload():
    for name in ("R1", "G64", "G512"):
        for free_bytes in (5e9, 80e9):
            w = WORKLOADS[name]
            shapes = shapes_of(w, 2, free_bytes)
            assert shapes.n_features == w.max_feature_nodes
            assert shapes.n_logits == 10
            for batches in shapes.intervals[1:]:
                assert sum(batch.n for batch in batches) <= 4 * w.batch_size
                assert all(batch.n_pos <= w.n_tokens for batch in batches)
                assert batches[0].joined[0] == batches[0].n


def test_a_stage_takes_the_longer_of_launching_and_computing():
    gpu = GPUS["H100"]
    assert seconds_on(gpu, Cost(launches=1000)) == pytest.approx(0.004)
    assert seconds_on(gpu, Cost(n_bytes=gpu.bandwidth)) == pytest.approx(1.25)
    both = seconds_on(gpu, Cost(flop=gpu.bfloat16, flop_float32=gpu.float32, launches=10))
    assert both == pytest.approx(1 / 0.6 + 1 / 0.8)


def test_circuit_tracer_moves_more_than_the_sweep_on_every_workload():
    # With 512 tokens memory bounds the targets at once: more launches for the same rows.
    for name, times_the_launches in {"R1": 4, "R2": 4, "G64": 4, "G512": 2}.items():
        w = WORKLOADS[name]
        shapes = shapes_of(w, 2, 80e9)
        ours, theirs = sum(stages(shapes).values(), Cost()), Cost()
        for cost in library_stages(shapes, w.batch_size).values():
            theirs += cost
        assert theirs.n_bytes > 3 * ours.n_bytes
        assert theirs.launches > times_the_launches * ours.launches


def test_tables_are_markdown_with_a_row_a_stage_or_a_card():
    shapes = shapes_of(WORKLOADS["G64"], 2, 80e9)
    lines = table_of_stages(stages(shapes)).splitlines()
    assert {line.count("|") for line in lines} == {7}
    assert len(lines) == len(stages(shapes)) + 3
    cards = table_of_gpus(WORKLOADS["G64"], 2).splitlines()
    assert [line.split("|")[1].strip() for line in cards[2:]] == list(GPUS)
