"""Finished attributions, kept so that a second request for one is answered without the model.

An attribution doesn't depend on thresholds, slug, user or URL: a request that differs only in
these is pruned anew from what was kept, and one whose upload failed is uploaded at once.
"""

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

    from attribution.complete.graph import CompleteGraph, QKTraces

# A contributor takes some 130 bytes with its numbers, and an entry of a list as much again.
_BYTES_PER_PAIR, _BYTES_PER_MARGINAL, _BYTES_PER_TRACE = 400, 250, 500


@dataclass(frozen=True)
class TracedGraph:
    """A graph with the traces of its attention, and what they were made with."""

    graph: "CompleteGraph"
    tracing: tuple[float, int]  # qk_top_fraction and qk_topk
    traces: "QKTraces"


class GraphCache:
    """Graphs, traced or not, by what determines them. The least recently used is dropped first.

    Safe to use from several threads. A graph that is kept must not be changed.
    """

    def __init__(self, max_bytes: int) -> None:  # 0 keeps nothing
        self.kept: LRUCache[Hashable, Any] = LRUCache(max_bytes, getsizeof=kept_bytes)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """Return the graph that is kept under the key, traced or not, or None."""
        with self._lock:
            return self.kept.get(key)

    def put(self, key: Hashable, graph: "Graph | CompleteGraph | TracedGraph") -> bool:
        """Keep a graph, drop others until all fit, and return whether it is kept.

        A graph larger than `max_bytes` is not kept, and no other is dropped for it.
        """
        with self._lock:
            self.kept.pop(key, None)
            try:
                self.kept[key] = graph
            except ValueError:  # it is larger than the cache
                return False
            return True


def kept_bytes(kept: "Graph | CompleteGraph | TracedGraph") -> int:
    """Return the memory that a graph and its traces keep from being freed, in bytes."""
    if not isinstance(kept, TracedGraph):
        return graph_bytes(kept)
    return graph_bytes(kept.graph) + traces_bytes(kept.traces)


def traces_bytes(traces: "QKTraces") -> int:
    """Return about how many bytes traces take. One that several features share counts once."""
    distinct = {id(trace): trace for trace in traces.values()}.values()
    return sum(
        _BYTES_PER_TRACE
        + _BYTES_PER_PAIR * len(trace.pairs)
        + _BYTES_PER_MARGINAL * (len(trace.q_marginal) + len(trace.k_marginal))
        for trace in distinct
    )


def graph_bytes(graph: "Graph | CompleteGraph") -> int:
    """Return the memory that a graph keeps from being freed, in bytes.

    A tensor counts with its whole storage, also where it is a view of a part. A storage that
    several tensors share counts once.
    """
    tensors = [value for value in vars(graph).values() if hasattr(value, "untyped_storage")]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
