"""Pruning a graph beside circuit-tracer's, each in a process of its own, with its peak memory.

    OMP_NUM_THREADS=1 python -m benchmarks.prune

The graph is that of workload R1 with 10,000 feature nodes. Ours gives the graph's two scores in
the same pass, so the library's time is that of `prune_graph` and `compute_graph_scores`.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph

import attribution
from benchmarks.measure import Cost, from_own_process, machine, measure, medians
from benchmarks.reference_workload import build


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.side:
        run_side(args.side, args.graph, args.repeats)
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.pt"
        model, tokens, settings = build("R1")
        settings["max_feature_nodes"] = args.features
        graph = attribution.attribute(tokens, model, **settings)
        graph.to_pt(str(path))
        size = graph.adjacency_matrix.nbytes / 1e9
        print(f"{machine('cpu')}: {len(graph.adjacency_matrix)} nodes, matrix of {size:.2f} GB")
        del graph, model
        found = {side: result_of(side, path, args.repeats) for side in SIDES}
    own, library = (Cost(*found[side]["cost"]) for side in ("ours", "library"))
    for side, cost in (("ours", own), ("library", library)):
        print(
            f"  {side:8s}{cost.seconds:8.2f} s ({cost.cpu_seconds:.2f} s of CPU), "
            f"peak memory beside the graph {cost.peak_bytes / 1e9:5.2f} GB"
        )
    print(
        f"  {library.seconds / own.seconds:.1f} times as fast, "
        f"{library.cpu_seconds / own.cpu_seconds:.1f} times in CPU time, "
        f"{own.peak_bytes / library.peak_bytes:.2f} of the memory"
    )
    print(f"  nodes kept {found['ours']['nodes']}, of the library {found['library']['nodes']}")
    print(f"  edges kept {found['ours']['edges']}, of the library {found['library']['edges']}")


def prune_ours(graph: Graph) -> tuple[int, int]:
    pruned = attribution.prune(graph)
    return int(pruned.node_mask.sum()), len(pruned.edge_targets)


def prune_library(graph: Graph) -> tuple[int, int]:
    pruned = prune_graph(graph)
    compute_graph_scores(graph)
    return int(pruned.node_mask.sum()), int(pruned.edge_mask.sum())


SIDES: dict[str, Callable[[Graph], tuple[int, int]]] = {
    "ours": prune_ours,
    "library": prune_library,
}


def result_of(side: str, path: Path, repeats: int) -> dict[str, Any]:
    options = ("--side", side, "--graph", str(path), "--repeats", str(repeats))
    result: dict[str, Any] = from_own_process("benchmarks.prune", *options)
    return result


def run_side(side: str, path: Path, repeats: int) -> None:
    graph = Graph.from_pt(str(path))
    kept: list[tuple[int, int]] = []
    costs: list[Cost] = [measure(lambda: kept.append(SIDES[side](graph))) for _ in range(repeats)]
    nodes, edges = kept[-1]
    print(json.dumps({"cost": medians(costs), "nodes": nodes, "edges": edges}))


if __name__ == "__main__":
    main()
