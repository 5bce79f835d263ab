"""Graphs of complete replacement models beside llamascopium's, on the same model and modules.

    OMP_NUM_THREADS=1 python -m benchmarks.complete --ours-only
    OMP_NUM_THREADS=1 PYTHONPATH=out/crm python -m benchmarks.complete

`make crm-check` puts llamascopium into out/crm. A random model and its modules are written to the
disk in llamascopium's layout; each side reads them in a process of its own, on one thread, and
makes a small graph first. Peak memory is beyond the loaded model. llamascopium's side runs once,
as it takes minutes, ours several times, half of them before it and half after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.complete_workload import WORKLOADS, CompleteWorkload, prompt, tokens, write
from benchmarks.measure import Cost, from_own_process, machine, measure, medians
from tests.support.complete_cases import Case, Folders
from tests.support.complete_graphs import Node, PlainGraph

NAMES = ("C32", "C32-traced", "C10-traced")
THRESHOLDS = (0.7, 0.8)  # of nodes and edges, as Neuronpedia's webapp sends them
Stages = dict[str, Cost]


def ours(folders: Folders, w: CompleteWorkload, graph_file: Path | None) -> Stages:
    """What each stage of a graph takes here, and the graph for a comparison."""
    from attribution.complete import attribute, freeze, prune, trace_attention
    from tests.support.complete_engine import complete_model, plain_graph

    model, ids = complete_model(folders), tokens(w)
    made: dict[str, Any] = {}

    def attributed(n: int) -> None:
        made["local"] = local = freeze(model, ids)
        made["graph"] = attribute(local, batch_size=w.batch_size, max_feature_nodes=n)

    def traced() -> None:
        made["traces"] = (
            trace_attention(made["graph"], made["local"], top_fraction=w.traced, topk=w.qk_topk)
            if w.traced
            else {}
        )

    def with_traces() -> None:
        attributed(w.max_feature_nodes)
        traced()

    def pruned() -> None:
        made["pruned"] = prune(made["graph"], *THRESHOLDS)

    attributed(w.batch_size)
    made.clear()
    costs = _measured({"attribution": with_traces, "pruning": pruned})
    graph = made["graph"]
    print(
        f"{w.n_tokens} tokens, {len(graph.active_features):,} active features, "
        f"{len(graph.selected_features):,} feature nodes, {len(made['traces']):,} traced",
        file=sys.stderr,
    )
    if graph_file is not None:
        plain = plain_graph(graph, made["pruned"], made["traces"], np.zeros(0), [])
        graph_file.write_bytes(pickle.dumps(plain))
    return costs


def theirs(folders: Folders, w: CompleteWorkload, graph_file: Path | None) -> Stages:
    """The same of llamascopium, called as Neuronpedia's server calls it."""
    from tests.support import llamascopium_reference as reference

    model, modules = reference.load(folders)
    case = Case(
        "",
        prompt(w),
        w.batch_size,
        max_n_logits=10,
        desired_logit_prob=0.95,
        max_feature_nodes=w.max_feature_nodes,
        node_threshold=THRESHOLDS[0],
        edge_threshold=THRESHOLDS[1],
    )
    made: dict[str, Any] = {}

    def attributed(n: int, traced: float) -> None:
        made["result"] = model.attribute(
            inputs=case.prompt,
            replacement_modules=modules,
            max_n_logits=case.max_n_logits,
            desired_logit_prob=case.desired_logit_prob,
            batch_size=case.batch_size,
            max_features=n,
            enable_qk_tracing=traced > 0,
            qk_top_fraction=traced or 0.5,
            qk_topk=w.qk_topk,
        )

    def pruned() -> None:
        made["pruned"] = reference.pruned(made["result"], case)

    attributed(w.batch_size, 0)
    made.clear()
    costs = _measured(
        {"attribution": lambda: attributed(w.max_feature_nodes, w.traced), "pruning": pruned}
    )
    if graph_file is not None:
        plain = reference.plain_graph(made["result"], made["pruned"], {})
        graph_file.write_bytes(pickle.dumps(plain))
    return costs


def _measured(stages: dict[str, Callable[[], None]]) -> Stages:
    return {name: measure(call) for name, call in stages.items()}


SIDES: dict[str, Callable[[Folders, CompleteWorkload, Path | None], Stages]] = {
    "ours": ours,
    "llamascopium": theirs,
}


def in_own_process(side: str, name: str, folders: Folders, graph_file: Path) -> Stages:
    """What a side takes, in a process that has nothing of the other."""
    places = str(folders.model.parent), str(graph_file)
    told = from_own_process("benchmarks.complete", "--one", side, name, *places)
    return {stage: Cost(*cost) for stage, cost in told.items()}


def one(side: str, name: str, directory: str, graph_file: str) -> None:
    """Run a side and print what it takes as the last line."""
    w = WORKLOADS[name]
    costs = SIDES[side](folders_in(Path(directory), w), w, Path(graph_file))
    print("\n" + json.dumps(costs))


def folders_in(directory: Path, w: CompleteWorkload) -> Folders:
    """Where `write` puts a workload's files."""
    return Folders(directory / "model", directory / "modules", f"{w.d_sae // w.d_model}x", "k")


def compare(name: str, repeats: int, *, ours_only: bool) -> None:
    """Print the costs of both sides, and how far their graphs agree."""
    w = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as directory:
        folders = write(Path(directory), w)
        own_file, library_file = Path(directory) / "ours", Path(directory) / "theirs"
        print(f"\n{name}", flush=True)
        first = max(1, repeats // 2)
        own = [in_own_process("ours", name, folders, own_file) for _ in range(first)]
        library = None if ours_only else in_own_process("llamascopium", name, folders, library_file)
        own += [in_own_process("ours", name, folders, own_file) for _ in range(repeats - first)]
        for stage in ("attribution", "pruning"):
            taken = medians([costs[stage] for costs in own])
            each = ", ".join(f"{costs[stage].cpu_seconds:.2f}" for costs in own)
            _report(f"{stage}, ours", taken)
            print(f"    CPU seconds of each run: {each}")
            if library is not None:
                _report(f"{stage}, llamascopium", library[stage])
                ratio = library[stage].cpu_seconds / taken.cpu_seconds
                print(f"    {ratio:.1f} times the CPU seconds", flush=True)
        if library is not None:
            print(
                "  " + agreement(*(pickle.loads(f.read_bytes()) for f in (own_file, library_file)))
            )


def _report(what: str, cost: Cost) -> None:
    print(
        f"  {what:27s}{cost.cpu_seconds:8.2f} s of CPU ({cost.seconds:.2f} s), "
        f"peak memory {cost.peak_bytes / 1e9:5.2f} GB"
    )


def agreement(own: PlainGraph, library: PlainGraph) -> str:
    """How far two graphs are the same."""
    shared = set(own.selected) & set(library.selected)
    told = [f"{len(shared)} of {len(library.selected)} selected features are the same"]
    own_rows, own_columns = set(own.rows), set(own.columns)
    rows = [node for node in library.rows if node in own_rows]
    columns = [node for node in library.columns if node in own_columns]
    ours, theirs = (_entries(graph, rows, columns) for graph in (own, library))
    off = np.abs(ours - theirs).max() / np.abs(theirs).max()
    told.append(f"adjacency within {off:.1e} of its largest entry")
    told.append(f"{len(own.links & library.links)} of {len(library.links)} pruned links")
    if library.traces:
        lists = [
            [entry[:-1] for entry in getattr(graph.traces.get(node), kind, [])]
            for graph in (own, library)
            for node in library.traces
            for kind in ("q_marginal", "k_marginal", "pairs")
        ]
        half = len(lists) // 2
        same = sum(a == b for a, b in zip(lists[:half], lists[half:], strict=True))
        told.append(f"{same} of {half} lists of contributors have the same order")
    return ", ".join(told)


def _entries(graph: PlainGraph, rows: list[Node], columns: list[Node]) -> Any:
    """The adjacency of a graph between these nodes, in their order."""
    row = {node: place for place, node in enumerate(graph.rows)}
    column = {node: place for place, node in enumerate(graph.columns)}
    return graph.adjacency[np.ix_([row[n] for n in rows], [column[n] for n in columns])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", choices=[*NAMES, []], default=[])
    parser.add_argument("--repeats", type=int, default=5, help="of ours")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.one:
        one(*args.one)
        return
    if not args.ours_only and importlib.util.find_spec("llamascopium") is None:
        parser.error("llamascopium is not there: run `make crm-check`, or give --ours-only")
    print(machine("cpu"))
    for name in args.workloads or NAMES:
        compare(name, args.repeats, ours_only=args.ours_only)


if __name__ == "__main__":
    main()
