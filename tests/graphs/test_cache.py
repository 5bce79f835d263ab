"""Graphs are kept up to so many bytes, and the one that was not used longest goes first."""

import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphs.cache import GraphCache, TracedGraph, graph_bytes, kept_bytes, traces_bytes
from tests.support.synthetic_complete_graph import make_complete_graph, make_traces
from tests.support.synthetic_graph import make_graph


def graph_of(n_bytes):
    """A graph whose tensors take this many bytes in all."""
    rest = graph_bytes(SMALL)
    graph = make_graph(n_features=1, adjacency=torch.zeros(n_bytes - rest, dtype=torch.uint8))
    assert graph_bytes(graph) == n_bytes
    return graph


SMALL = make_graph(n_features=1, adjacency=torch.zeros(0))


def test_what_was_put_is_got_and_nothing_else_is():
    cache = GraphCache(10_000)
    graph = graph_of(4_000)
    assert cache.get("a") is None
    assert cache.put("a", graph) is True
    assert cache.get("a") is graph
    assert cache.get("b") is None
    assert cache.kept.currsize == 4_000


def test_the_least_recently_used_is_dropped_when_bytes_run_out():
    cache = GraphCache(10_000)
    for key in "abc":
        cache.put(key, graph_of(3_000))
    cache.get("a")
    cache.put("d", graph_of(4_000))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert cache.kept.currsize == 10_000


def test_a_large_graph_drops_as_many_as_it_takes():
    cache = GraphCache(10_000)
    for key in "abc":
        cache.put(key, graph_of(3_000))
    cache.put("d", graph_of(5_000))
    assert [key for key in "abcd" if cache.get(key)] == ["c", "d"]


def test_a_graph_larger_than_the_bound_is_not_kept_and_drops_none():
    cache = GraphCache(10_000)
    cache.put("a", graph_of(3_000))
    assert cache.put("b", graph_of(10_001)) is False
    assert cache.get("b") is None
    assert cache.get("a") is not None


def test_a_bound_of_zero_keeps_nothing():
    cache = GraphCache(0)
    assert cache.put("a", SMALL) is False
    assert len(cache.kept) == cache.kept.currsize == 0


def test_a_graph_put_again_takes_the_first_s_place():
    cache = GraphCache(10_000)
    cache.put("a", graph_of(6_000))
    again = graph_of(7_000)
    assert cache.put("a", again) is True
    assert cache.get("a") is again
    assert cache.kept.currsize == 7_000


def test_an_old_graph_is_not_got_when_its_successor_is_too_large():
    cache = GraphCache(10_000)
    cache.put("a", graph_of(6_000))
    cache.put("a", graph_of(20_000))
    assert cache.get("a") is None
    assert cache.kept.currsize == 0


def test_a_view_counts_as_all_that_it_keeps_alive_and_shared_memory_once():
    large = torch.zeros(1000, 1000)
    graph = make_graph(n_features=1, adjacency=large[:10, :10])
    assert graph_bytes(graph) == graph_bytes(SMALL) + 4_000_000
    graph.activation_values = large[0]
    assert graph_bytes(graph) < graph_bytes(SMALL) + 4_000_000


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(2_000, 9_000)), max_size=30))
def test_the_bound_holds_whatever_is_put(puts):
    cache = GraphCache(10_000)
    for key, size in puts:
        assert cache.put(key, graph_of(size)) is True
        assert cache.get(key) is not None
        kept = [found for other in "abcdef" if (found := cache.get(other))]
        assert cache.kept.currsize == sum(map(graph_bytes, kept)) <= 10_000


@pytest.mark.parametrize("n_threads", [8])
def test_threads_do_not_lose_count(n_threads):
    cache = GraphCache(10_000)
    graphs = [graph_of(2_000 + 500 * size) for size in range(6)]

    def work(seed):
        for step in range(500):
            key = (seed * 7 + step * 3) % 11
            cache.put(key, graphs[(seed + step) % 6])
            cache.get((key + step) % 11)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, range(n_threads)))
    kept = [found for key in range(11) if (found := cache.get(key))]
    assert cache.kept.currsize == sum(map(graph_bytes, kept)) <= 10_000
    assert len(cache.kept) == len(kept) > 0


# Graphs of complete replacement models


def test_a_complete_graph_counts_with_all_its_tensors():
    graph = make_complete_graph(n_features=10)
    tensors = [value for value in vars(graph).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    expected = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert kept_bytes(graph) == graph_bytes(graph) == expected


def test_a_traced_graph_counts_with_its_traces_and_takes_the_place_of_the_graph():
    cache = GraphCache(10_000_000)
    graph = make_complete_graph(n_features=10)
    traced = TracedGraph(graph, (0.6, 10), make_traces(graph))
    cache.put("a", graph)
    assert cache.put("a", traced) is True
    assert cache.get("a") is traced
    assert cache.kept.currsize == graph_bytes(graph) + traces_bytes(traced.traces)


def test_traces_count_with_what_they_take_and_those_that_are_shared_once():
    graph = make_complete_graph(n_features=400)
    gc.collect()
    tracemalloc.start()
    traces = make_traces(graph)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= traces_bytes(traces) <= 2.5 * taken
    rows = list(traces)
    shared = dict.fromkeys(rows, traces[rows[0]])
    assert len(rows) > 100
    assert traces_bytes(shared) == traces_bytes({0: traces[rows[0]]})
