"""Attribution beside circuit-tracer's, on the reference workloads, with the floor.

    OMP_NUM_THREADS=1 python -m benchmarks.attribution R1 R2
    python -m benchmarks.attribution G64 G512 --device cuda --dtype bfloat16

The floor is the least arithmetic that these rows take, at the speed of a plain matrix product:
for each target the contraction with the vectors of the sources that can reach it (lower layers,
no later positions), and the way through attention's value and output weights and its patterns.
"""

import argparse
import warnings
from typing import Any

import circuit_tracer
import torch
from circuit_tracer.graph import Graph

import attribution
from benchmarks.measure import Cost, machine, matmul_flops, measure, medians
from benchmarks.reference_workload import WORKLOADS, build


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", choices=[*WORKLOADS, []], default=["R1", "R2"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3, help="of each side, alternating")
    parser.add_argument("--ours-only", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(machine(args.device))
    for name in args.workloads:
        compare(name, args.device, getattr(torch, args.dtype), args.repeats, args.ours_only)


def compare(name: str, device: str, dtype: torch.dtype, repeats: int, ours_only: bool) -> None:
    model, tokens, settings = build(name, device=device, dtype=dtype)
    assert attribution.method_for(model) == "explicit sweep"
    graphs: dict[str, Graph] = {}

    def ours() -> None:
        graphs["ours"] = attribution.attribute(tokens, model, **settings)

    def theirs() -> None:
        graphs["library"] = circuit_tracer.attribute(tokens, model, **settings)

    measure(ours, device)  # warm up
    own, library = [], []
    for _ in range(repeats):
        own.append(measure(ours, device))
        if not ours_only:
            library.append(measure(theirs, device))
    graph = graphs["ours"]
    print(
        f"\n{name}: {len(graph.input_tokens)} tokens, {len(graph.active_features)} active "
        f"features, {len(graph.selected_features)} feature nodes"
    )
    report("explicit sweep", medians(own))
    if library:
        report("circuit-tracer", medians(library))
        ratios = ratio(library, own)
        print(f"  {ratios[0]:.1f} times as fast, {ratios[1]:.1f} times in CPU time")
        print(f"  {difference(graph, graphs['library'])}")
    flop = arithmetic(model, graph)
    w = WORKLOADS[name]
    speed = matmul_flops(w.batch_size * w.n_tokens, w.d_model, w.d_model, device, dtype)
    seconds = {part: value / speed for part, value in flop.items()}
    floor = sum(seconds.values())
    parts = ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
    print(f"  floor {floor:.2f} s ({parts}) at {speed / 1e9:.0f} GFLOP/s of plain matrix product")
    spent = medians(own)
    taken = spent.seconds if device.startswith("cuda") else spent.cpu_seconds
    print(f"  {taken / floor:.1f} times the floor")


def ratio(library: list[Cost], own: list[Cost]) -> tuple[float, float]:
    """How many times the medians of wall and of CPU seconds are ours."""
    theirs, ours = medians(library), medians(own)
    return theirs.seconds / ours.seconds, theirs.cpu_seconds / ours.cpu_seconds


def report(side: str, cost: Cost) -> None:
    print(
        f"  {side:15s}{cost.seconds:8.2f} s ({cost.cpu_seconds:.2f} s of CPU), "
        f"peak memory {cost.peak_bytes / 1e9:5.2f} GB"
    )


def difference(ours: Graph, library: Graph) -> str:
    if not torch.equal(ours.selected_features, library.selected_features):
        both = set(ours.selected_features.tolist()) & set(library.selected_features.tolist())
        return f"{len(both)} of {len(ours.selected_features)} selected features are the same"
    largest = library.adjacency_matrix.abs().max()
    off = (ours.adjacency_matrix - library.adjacency_matrix).abs().max() / largest
    return f"same features selected, adjacency within {off:.1e} of its largest entry"


def arithmetic(model: Any, graph: Graph) -> dict[str, float]:
    """FLOP of the two terms that every row takes, counting only what causality leaves."""
    cfg, n_logits = model.cfg, len(graph.logit_targets)
    targets = graph.active_features[graph.selected_features, :2].double().cpu()
    layers = torch.cat([targets[:, 0], torch.full((n_logits,), float(cfg.n_layers))])
    positions = torch.cat([targets[:, 1], torch.full((n_logits,), graph.n_pos - 1.0)])

    counts = torch.zeros(cfg.n_layers + 1, graph.n_pos)
    where = graph.active_features[:, :2].cpu().T
    counts.index_put_((where[0] + 1, where[1]), torch.ones(where.shape[1]), accumulate=True)
    counts[1:] += 1  # an error each
    reachable = counts.cumsum(0).cumsum(1)[layers.long(), positions.long()]

    results, values = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    n_pos, below = positions + 1, layers.clamp(max=cfg.n_layers - 1)
    # At its own layer a target sits at one position; in those below at all before it.
    written = (1 + below * n_pos) * cfg.d_model * results
    mixed = (n_pos + below * n_pos * (n_pos + 1) / 2) * results
    read = below * n_pos * values * cfg.d_model  # below the first attention are only tokens
    return {
        "contraction": 2 * cfg.d_model * float(reachable.sum()),
        "attention": 2 * float((written + mixed + read).sum()),
    }


if __name__ == "__main__":
    main()
