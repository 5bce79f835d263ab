"""What a graph would take on GPUs that aren't at hand, from its FLOP, bytes and launches.

    python -m benchmarks.roofline
    python -m benchmarks.roofline G64 --dtype float32

`benchmarks.workload_costs` has the formulas of each stage, which a test holds to what the emulated
CUDA device counts. A stage's products and its traffic are added up, as if none overlapped, each at
the share of the card's peak that is attainable. Its launches run ahead of the card: a stage takes
the longer of both. Copies to the host come on top.
"""

import argparse
from dataclasses import astuple
from math import ceil
from typing import NamedTuple

from benchmarks.reference_workload import WORKLOADS, Workload
from benchmarks.workload_costs import INTERVAL, Cost, Shapes, shapes_of, stages


class Gpu(NamedTuple):
    """Peaks as the data sheet has them, without sparsity."""

    bfloat16: float  # FLOP/s of its matrix units
    float32: float  # FLOP/s, not TF32, which torch leaves off
    bandwidth: float  # bytes/s
    memory: float  # bytes
    to_host: float  # bytes/s, PCIe x16 one way


GPUS = {
    # NVIDIA A40 data sheet: PCIe Gen4, 64 GB/s both ways.
    "A40": Gpu(149.7e12, 37.4e12, 696e9, 48e9, 32e9),
    # NVIDIA L40S data sheet: PCIe Gen4.
    "L40S": Gpu(362e12, 91.6e12, 864e9, 48e9, 32e9),
    # NVIDIA A100 data sheet, 80 GB SXM: PCIe Gen4.
    "A100": Gpu(312e12, 19.5e12, 2039e9, 80e9, 32e9),
    # NVIDIA H100 data sheet, SXM: PCIe Gen5, 128 GB/s both ways.
    "H100": Gpu(989e12, 67e12, 3350e9, 80e9, 64e9),
}
SECONDS_OF_LAUNCH = 4e-6
# Assumed, not measured: of matrix units, of float32, of memory, and of PCIe from pageable memory.
ATTAINABLE_BFLOAT16, ATTAINABLE_FLOAT32 = 0.6, 0.8
ATTAINABLE_BANDWIDTH, ATTAINABLE_TO_HOST = 0.8, 0.3
_SHARE_OF_ROWS = 0.6  # of free memory that rows may take, as in `attribution.expansion`
_ITEMSIZE = {"bfloat16": 2, "float32": 4}
# circuit-tracer's backward pass, at least: passes over the stream and launches a layer.
_LIBRARY_PASSES, _LIBRARY_LAUNCHES = 10, 50


def seconds_on(gpu: Gpu, cost: Cost) -> float:
    """How long a stage takes."""
    device = (
        cost.flop / (gpu.bfloat16 * ATTAINABLE_BFLOAT16)
        + cost.flop_float32 / (gpu.float32 * ATTAINABLE_FLOAT32)
        + cost.n_bytes / (gpu.bandwidth * ATTAINABLE_BANDWIDTH)
    )
    copied = cost.to_host / (gpu.to_host * ATTAINABLE_TO_HOST)
    return max(device, cost.launches * SECONDS_OF_LAUNCH) + copied


def library_stages(s: Shapes, batch_size: int) -> dict[str, Cost]:
    """circuit-tracer's cost for the same rows, where it has to differ: a floor of what it takes.

    For each batch it gathers the gradients of every active feature, (batch, features, d_model),
    and takes their products with the decoder vectors; a backward pass goes through all layers. Rows
    are kept on the host, and all of them are copied to the device for each ranking.
    """
    b = s.itemsize
    n_batches = ceil(s.n_logits / batch_size) + ceil(s.n_features / batch_size)
    gathered = batch_size * s.n_active * s.d_model
    edges = 3 * b * batch_size * s.n_active
    contraction = Cost(
        2 * gathered, 0, b * (2 * gathered + s.n_active * s.d_model) + edges, 3 * s.n_layers
    )
    vectors = batch_size * s.n_pos
    weights = s.d_model * (s.results + s.values)
    passed = vectors * (weights + s.n_pos * s.results)
    streams = vectors * (_LIBRARY_PASSES * s.d_model + 4 * s.results)
    backward = Cost(
        2 * s.n_layers * passed,
        0,
        b * s.n_layers * (weights + streams),
        _LIBRARY_LAUNCHES * s.n_layers,
        b * batch_size * s.n_sources,
    )
    ranking = Cost()
    for i in range(ceil(s.n_features / (INTERVAL * batch_size))):
        rows = 4 * (s.n_logits + i * INTERVAL * batch_size) * s.n_sources
        ranking += Cost(
            0, rows / 2 * (s.n_layers + 1), rows * (6 + s.n_layers), 4 * s.n_layers, rows
        )
    once = stages(s)
    return {
        "forward pass": once["forward pass"],
        "encoding and freezing": once["encoding and freezing"],
        "ranking": ranking,
        "gathering and contracting": _times(contraction, n_batches),
        "backward passes": _times(backward, n_batches),
    }


def _times(cost: Cost, n: float) -> Cost:
    return Cost(*(n * value for value in astuple(cost)))


def table_of_stages(costs: dict[str, Cost]) -> str:
    """A markdown table with a row a stage and one for all."""
    lines = [
        "| stage | launches | TFLOP, bfloat16 | TFLOP, float32 | GB moved | GB to the host |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, c in {**costs, "**all**": sum(costs.values(), Cost())}.items():
        numbers = (c.flop / 1e12, c.flop_float32 / 1e12, c.n_bytes / 1e9, c.to_host / 1e9)
        cells = " | ".join(f"{n:,.{2 if n < 10 else 1 if n < 100 else 0}f}" for n in numbers)
        lines.append(f"| {name} | {c.launches:,.0f} | {cells} |")
    return "\n".join(lines)


def table_of_gpus(w: Workload, itemsize: int) -> str:
    """A markdown table with a row a card: seconds by stage, and of circuit-tracer beside them."""
    names = list(stages(shapes_of(w, itemsize, GPUS["H100"].memory)))
    header = [*names, "**seconds**", "of these launches alone", "circuit-tracer, at least"]
    lines = ["| card | " + " | ".join(header) + " |", "| ---" + " | ---:" * len(header) + " |"]
    for name, gpu in GPUS.items():
        shapes = shapes_of(w, itemsize, free_bytes(gpu, w, itemsize))
        costs = stages(shapes)
        by_stage = [seconds_on(gpu, cost) for cost in costs.values()]
        launching = sum(cost.launches for cost in costs.values()) * SECONDS_OF_LAUNCH
        library = sum(
            seconds_on(gpu, cost) for cost in library_stages(shapes, w.batch_size).values()
        )
        cells = " | ".join(f"{s:.3f}" for s in by_stage)
        lines.append(
            f"| {name} | {cells} | **{sum(by_stage):.2f}** | {launching:.3f} | {library:.1f} |"
        )
    return "\n".join(lines)


def free_bytes(gpu: Gpu, w: Workload, itemsize: int) -> float:
    """What is left of a card's memory beside the weights, the decoder vectors and the rows."""
    s = shapes_of(w, itemsize, gpu.memory)
    model = s.n_layers * s.d_model * (2 * s.results + 2 * s.values + 3 * s.d_mlp)
    model += 2 * s.d_vocab * s.d_model + 2 * s.n_layers * s.d_model * s.d_transcoder
    vectors = s.n_layers * s.most[0] * s.n_pos * s.d_model
    left = gpu.memory - itemsize * (model + vectors)
    rows = 4 * (s.n_features + s.n_logits) * (s.n_sources + s.n_features)
    return left - rows if rows <= _SHARE_OF_ROWS * left else left


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=["R1", "R2", "G64", "G512"])
    parser.add_argument("--dtype", choices=list(_ITEMSIZE), default="bfloat16")
    args = parser.parse_args()
    for name in args.workloads:
        w, itemsize = WORKLOADS[name], _ITEMSIZE[args.dtype]
        s = shapes_of(w, itemsize, free_bytes(GPUS["H100"], w, itemsize))
        print(
            f"\n{name}, {args.dtype}: {s.n_pos} tokens, {s.n_layers} layers, d_model {s.d_model}, "
            f"{s.n_active:,} active features, {s.n_features:,} feature nodes\n"
        )
        print(table_of_stages(stages(s)))
        library = sum(library_stages(s, w.batch_size).values(), Cost())
        print(
            f"\ncircuit-tracer: at least {library.launches:,.0f} launches, "
            f"{(library.flop + library.flop_float32) / 1e12:,.1f} TFLOP, "
            f"{library.n_bytes / 1e9:,.0f} GB moved, {library.to_host / 1e9:,.1f} GB to the host "
            "and back\n"
        )
        print(table_of_gpus(w, itemsize), flush=True)


if __name__ == "__main__":
    main()
