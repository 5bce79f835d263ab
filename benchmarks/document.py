"""A pruned graph to gzip bytes: ours beside circuit-tracer's own way, and one ten times as large.

    python -m benchmarks.document           # both, each in a process of its own
    python -m benchmarks.document ours      # one of them

Reference: a synthetic graph of 10,000 features, 26 layers, 64 tokens and 1,000,000 links. The
library's way is `create_nodes`, `create_used_nodes_and_edges`, `build_model`, `model_dump`,
`json.dumps` and `gzip` level 3. Memory is the process's peak above what it held before encoding,
the arrays in. Times are the best of three.
"""

import argparse
import gzip
import hashlib
import json
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.measure import from_own_process, measure

N_FEATURES, N_LAYERS, N_POS, N_LOGITS = 10_000, 26, 64, 10
N_LINKS = 1_000_000
WAYS = ("library", "ours", "ours_10x")
REPEATS = 3


def make(n_links: int) -> Any:
    import torch

    from tests.support.synthetic_graph import make_graph, make_pruned

    sizes = {"n_features": N_FEATURES, "n_layers": N_LAYERS, "n_pos": N_POS, "n_logits": N_LOGITS}
    n_nodes = N_FEATURES + (N_LAYERS + 1) * N_POS + N_LOGITS
    graph = make_graph(**sizes, adjacency=torch.zeros(n_nodes, 0))  # nothing of it is read
    return make_pruned(graph, n_links)


def densify(pruned: Any) -> Any:
    """Give the library what it needs: matrices, in which a link that is there twice is one."""
    import torch

    n_nodes = len(pruned.node_mask)
    adjacency = torch.zeros(n_nodes, n_nodes)
    adjacency[pruned.edge_targets, pruned.edge_sources] = pruned.edge_weights
    pruned.graph.adjacency_matrix = adjacency
    return adjacency != 0


def encode_as_library(pruned: Any, edge_mask: Any, path: Path) -> None:
    from circuit_tracer.utils.create_graph_files import (
        build_model,
        create_nodes,
        create_used_nodes_and_edges,
    )

    tokenizer = SimpleNamespace(decode=str)
    nodes = create_nodes(pruned.graph, pruned.node_mask, tokenizer, pruned.cumulative_scores)
    for node in nodes.values():  # its ids for errors are not unique, and equal graphs are the point
        if node.feature_type == "mlp reconstruction error":
            node.node_id = f"{node.layer}_-1_{node.ctx_idx}"
    used, links = create_used_nodes_and_edges(pruned.graph, nodes, edge_mask)
    model = build_model(pruned.graph, used, links, "a-slug", "synthetic", 0.8, tokenizer)
    path.write_bytes(gzip.compress(json.dumps(model.model_dump()).encode(), compresslevel=3))


def encode(pruned: Any, path: Path) -> None:
    from delivery import spool
    from graphs import document as graph_document
    from tests.support.synthetic_graph import make_metadata

    document = graph_document.build(pruned, make_metadata(N_POS), {})
    with spool(document.encode(), compress=True) as spooled, path.open("wb") as file:
        file.writelines(spooled.chunks())


def digest(path: Path) -> str:
    """Hash the nodes and links of a document, numbers as float32."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    for node in document["nodes"]:
        for name in ("influence", "activation", "token_prob"):
            node[name] = None if node[name] is None else float(np.float32(node[name]))
    weights = np.array([link["weight"] for link in document["links"]], dtype=np.float32)
    ends = [(link["source"], link["target"]) for link in document["links"]]
    hashed = hashlib.sha256(json.dumps([document["nodes"], ends]).encode())
    hashed.update(weights.tobytes())
    return hashed.hexdigest()


def run(way: str) -> dict[str, Any]:
    """Measure one way in this process."""
    pruned = make(N_LINKS * (10 if way == "ours_10x" else 1))
    edge_mask = None
    if way != "ours_10x":
        edge_mask = densify(pruned)
        pruned = drop_repeated_links(pruned, edge_mask)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.json.gz"
        warm_up(directory)
        call = partial(encode, pruned, path)
        if way == "library":
            call = partial(encode_as_library, pruned, edge_mask, path)
        costs = [measure(call) for _ in range(REPEATS)]
        return {
            "way": way,
            "links": len(pruned.edge_weights),
            "seconds": min(cost.seconds for cost in costs),
            "cpu_seconds": min(cost.cpu_seconds for cost in costs),
            "peak_bytes": max(cost.peak_bytes for cost in costs),
            "bytes": path.stat().st_size,
            "digest": digest(path) if way != "ours_10x" else "",
        }


def drop_repeated_links(pruned: Any, edge_mask: Any) -> Any:
    import dataclasses

    targets, sources = edge_mask.nonzero(as_tuple=True)
    weights = pruned.graph.adjacency_matrix[targets, sources]
    return dataclasses.replace(
        pruned, edge_targets=targets, edge_sources=sources, edge_weights=weights
    )


def warm_up(directory: str) -> None:
    """Import what either way imports, so that neither is charged for it."""
    import circuit_tracer.utils.create_graph_files  # noqa: F401

    encode(make(1_000), Path(directory) / "small.json.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("way", nargs="?", choices=WAYS)
    chosen = parser.parse_args().way
    if chosen:
        print(json.dumps(run(chosen)))
        return
    results = {way: from_own_process("benchmarks.document", way) for way in WAYS}
    print("| way | links | seconds | of CPU | peak memory beyond the arrays | gzip bytes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, found in results.items():
        times = [f"{found['seconds']:.2f}", f"{found['cpu_seconds']:.2f}"]
        sizes = [f"{found['peak_bytes'] / 1e6:.0f} MB", f"{found['bytes'] / 1e6:.1f} MB"]
        print("|", " | ".join([way, f"{found['links']:,}", *times, *sizes]), "|")
    library, ours = results["library"], results["ours"]
    print(f"\n{library['seconds'] / ours['seconds']:.0f} times faster")
    print("equal graphs:", library["digest"] == ours["digest"])


if __name__ == "__main__":
    main()
