"""Finished attributions, kept so that a request like an earlier one needs no second.

An attribution doesn't depend on thresholds, slug, user or URL: a request that differs only there
is pruned anew from what was kept, and one whose upload failed is uploaded at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


class GraphCache:
    """Graphs by whatever determines them, the least recently used of them dropped first.

    Safe to use from several threads. A graph that is kept must not be changed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes  # 0 keeps nothing
        self._graphs: OrderedDict[Hashable, tuple[Graph, int]] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """What the tensors of the kept graphs take."""
        return self._held_bytes

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: Hashable) -> "Graph | None":
        """Return the graph that was put under the key, or None when it was never or is no more."""
        with self._lock:
            if key not in self._graphs:
                return None
            self._graphs.move_to_end(key)
            return self._graphs[key][0]

    def put(self, key: Hashable, graph: "Graph") -> bool:
        """Keep a graph, drop others until all fit, and return whether it is kept.

        A graph larger than `max_bytes` is not, and drops none.
        """
        size = graph_bytes(graph)
        with self._lock:
            _, replaced = self._graphs.pop(key, (None, 0))
            self._held_bytes -= replaced
            if size > self.max_bytes:
                return False
            while self._held_bytes + size > self.max_bytes:
                _, (_, dropped) = self._graphs.popitem(last=False)
                self._held_bytes -= dropped
            self._graphs[key] = graph, size
            self._held_bytes += size
            return True


def graph_bytes(graph: "Graph") -> int:
    """Return the memory that a graph keeps from being freed, in bytes.

    Each tensor's whole storage counts, also where the tensor is a view of a part, and once.
    """
    storages = [
        value.untyped_storage()
        for value in vars(graph).values()
        if hasattr(value, "untyped_storage")
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
