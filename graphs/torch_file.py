"""A graph before pruning -> circuit-tracer's own file, which `Graph.from_pt` reads.

The file is a pickle in torch's form: it is written here, and never read.
"""

import copy
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

_ROWS_AT_ONCE = 256


def save(graph: "Graph", file: IO[bytes]) -> None:
    """Write what the library's `to_pt` writes, with every tensor on the CPU.

    The adjacency matrix, nearly all of the file, goes out as it lies in memory.
    """
    graph = copy.copy(graph)  # which shares its tensors with the one that may be kept
    for name, value in vars(graph).items():
        if isinstance(value, torch.Tensor):
            setattr(graph, name, value.cpu())
    graph.to_pt(cast(Any, file))  # it takes a path, and hands it to torch.save


def count_links(graph: "Graph", check: Callable[[], None] = lambda: None) -> int:
    """How many edges have a weight that isn't zero.

    Args:
        check: called now and then; counting ends with what it raises.
    """
    count = 0
    for rows in graph.adjacency_matrix.split(_ROWS_AT_ONCE):
        check()
        count += int(rows.count_nonzero())
    return count
