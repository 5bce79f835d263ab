"""Finished attributions, kept so that a second request for one is answered without the model.

An attribution doesn't depend on thresholds, slug, user or URL: a request that differs only in
these is pruned anew from what was kept, and one whose upload failed is uploaded at once.
"""

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


class GraphCache:
    """Graphs by what determines them. The least recently used is dropped first.

    Safe to use from several threads. A graph that is kept must not be changed.
    """

    def __init__(self, max_bytes: int) -> None:  # 0 keeps nothing
        self.kept: LRUCache[Hashable, Graph] = LRUCache(max_bytes, getsizeof=graph_bytes)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> "Graph | None":
        """Return the graph that is kept under the key, or None."""
        with self._lock:
            return self.kept.get(key)

    def put(self, key: Hashable, graph: "Graph") -> bool:
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


def graph_bytes(graph: "Graph") -> int:
    """Return the memory that a graph keeps from being freed, in bytes.

    A tensor counts with its whole storage, also where it is a view of a part. A storage that
    several tensors share counts once.
    """
    tensors = [value for value in vars(graph).values() if hasattr(value, "untyped_storage")]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
