"""What a graph takes of memory: the formula beside what is measured, and for Gemma-2-2B.

    OMP_NUM_THREADS=1 python -m benchmarks.memory

Measured are the peak of the emulated CUDA device (`benchmarks.emulated_cuda`) and that of a process
on the CPU (`benchmarks.measure`), each in a process of its own, both without the model's weights.
The formula is `benchmarks.graph_memory`'s.
"""

import argparse
import gc
import json
import warnings
from dataclasses import replace
from typing import Any

import torch
from circuit_tracer.graph import Graph

import attribution
from attribution.memory import rows_bytes, targets_at_once
from benchmarks import graph_memory
from benchmarks.emulated_cuda import emulated_cuda
from benchmarks.graph_memory import GraphShape, Peak
from benchmarks.measure import from_own_process, measure
from benchmarks.reference_workload import build

WORKLOADS, DTYPES, DEVICES = ("R2", "R2-512"), ("float32", "bfloat16"), ("cuda", "cpu")
GB = 1e9
# Decoder vectors kept on a CUDA device for each active feature's. At R2 they are 1.3 to 1.5.
PADDING = 1.5
GEMMA = GraphShape(
    n_layers=26,
    n_pos=0,
    d_model=2304,
    n_heads=8,
    d_results=8 * 256,
    d_values=4 * 256,
    n_active=0,
    number=2,
    on_cuda=True,
    gradient=2,
    padding=PADDING,
    d_mlp=9216,
    d_vocab=256_000,
    d_transcoder=16_384,
    capped_logits=True,
)
SETS = {
    "GemmaScope": (GEMMA, (60, 100)),
    "cross-layer": (replace(GEMMA, cross_layer=True, d_transcoder=98_304), (20, 60)),
}


def shape_of(model: Any, graph: Graph, *, on_cuda: bool) -> GraphShape:
    """The shape of a graph's model and prompt, per-layer transcoders that read behind a norm."""
    cfg, counts = model.cfg, feature_counts(graph)
    kept = counts.shape[1] * counts.max(1).values.sum() if on_cuda else counts.sum()
    return GraphShape(
        n_layers=cfg.n_layers,
        n_pos=graph.n_pos,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        d_results=cfg.n_heads * cfg.d_head,
        d_values=(cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head,
        n_active=len(graph.active_features),
        number=cfg.dtype.itemsize,
        on_cuda=on_cuda,
        gradient=2 if on_cuda and cfg.dtype == torch.bfloat16 else 4,
        padding=float(kept / counts.sum()),
        d_mlp=cfg.d_mlp,
        d_vocab=cfg.d_vocab,
        d_transcoder=model.transcoders.d_transcoder,
    )


def feature_counts(graph: Graph) -> torch.Tensor:
    """How many features are active, (n_layers, n_pos)."""
    counts = torch.zeros(graph.cfg.n_layers, graph.n_pos)
    layers, positions, _ = graph.active_features.cpu().T
    return counts.index_put((layers, positions), torch.ones(len(layers)), accumulate=True)


def reached(graph: Graph) -> float:
    """The share of a row that is in layers below its target's, in the mean of the graph's rows.

    Of these, positions are written up to a batch's last, which is nearly the prompt's.
    """
    sources = torch.zeros(graph.cfg.n_layers + 1)
    sources[1:] = (feature_counts(graph) + 1).sum(1)  # an error each
    layers = graph.active_features[graph.selected_features.to(graph.active_features.device), 0]
    return float(sources.cumsum(0)[layers.cpu()].mean() / sources.sum())


def predicted(model: Any, graph: Graph, *, on_cuda: bool, **settings: Any) -> Peak:
    """The formula's answer for a graph that is there."""
    shape = shape_of(model, graph, on_cuda=on_cuda)
    return graph_memory.peak(
        shape,
        len(graph.selected_features),
        len(graph.logit_targets),
        targets_at_once(shape, settings["batch_size"], settings["update_interval"]),
        reached=1 if on_cuda else reached(graph),
    )


def on_emulated_device(name: str, dtype: torch.dtype) -> tuple[float, Peak]:
    """The peak of the emulated device beside the weights, and the formula's."""
    with emulated_cuda() as cuda:
        model, tokens, settings = build(name, device="cuda", dtype=dtype)
        gc.collect()
        before = cuda.memory.allocated
        cuda.memory.peak = before
        graph = attribution.attribute(tokens, model, **settings)
        measured = cuda.memory.peak - before
        return measured, predicted(model, graph, on_cuda=True, **settings)


def on_cpu(name: str, dtype: torch.dtype) -> tuple[float, Peak]:
    """The peak of this process beside what it held before, and the formula's."""
    model, tokens, settings = build(name, dtype=dtype)
    attribution.attribute(tokens[:8], model, **settings)  # libraries load what they need
    graphs: list[Graph] = []
    cost = measure(lambda: graphs.append(attribution.attribute(tokens, model, **settings)))
    return cost.peak_bytes, predicted(model, graphs[0], on_cuda=False, **settings)


def compare() -> None:
    print("| workload | dtype | device | formula | measured | formula / measured |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for name in WORKLOADS:
        for dtype in DTYPES:
            for device in DEVICES:
                measured, formula = in_own_process(name, dtype, device)
                where = "emulated CUDA" if device == "cuda" else "CPU"
                print(
                    f"| {name} | {dtype} | {where} | {formula / GB:.3f} GB | "
                    f"{measured / GB:.3f} GB | {formula / measured:.2f} |",
                    flush=True,
                )


def in_own_process(name: str, dtype: str, device: str) -> tuple[float, float]:
    measured, formula = from_own_process("benchmarks.memory", "--one", name, dtype, device)
    return measured, formula


def one(name: str, dtype: str, device: str) -> None:
    call = on_emulated_device if device == "cuda" else on_cpu
    measured, formula = call(name, getattr(torch, dtype))
    print(json.dumps([measured, formula.device if device == "cuda" else formula.host]))


def evaluate() -> None:
    """Print what Gemma-2-2B takes in bfloat16 with 5,000 feature nodes."""
    print(
        "| transcoders | tokens | active a token and layer | frozen | rows and ranking | a batch | "
        "graph | rows on the device | rows on the host: device + host |"
    )
    print("| --- " * 2 + "| ---: " * 7 + "|")
    for name, (base, densities) in SETS.items():
        for n_pos in (64, 512, 2000):
            for density in densities:
                n_active = density * base.n_layers * n_pos
                shape = replace(base, n_pos=n_pos, n_active=n_active)
                print(f"| {name} | {n_pos:,} | {density} | {_evaluated(shape)} |")


def _evaluated(shape: GraphShape) -> str:
    n_features, n_logits = 5000, 10
    at_once = targets_at_once(shape, 48, 4)
    n_rows = n_features + n_logits
    device = graph_memory.peak(shape, n_features, n_logits, at_once)
    host = graph_memory.peak(shape, n_features, n_logits, at_once, rows_on_host=True, reached=0.5)
    numbers = [
        graph_memory.frozen_bytes(shape),
        rows_bytes(n_rows, shape.n_sources),
        graph_memory.sweep_bytes(shape, at_once),
        device.host,
        device.total,
    ]
    told = " | ".join(f"{n / GB:.1f} GB" for n in numbers)
    return f"{told} | {host.device / GB:.1f} + {host.host / GB:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--one", nargs=3, metavar=("WORKLOAD", "DTYPE", "DEVICE"))
    parser.add_argument("--evaluate-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.one:
        one(*args.one)
        return
    if not args.evaluate_only:
        compare()
        print()
    evaluate()


if __name__ == "__main__":
    main()
