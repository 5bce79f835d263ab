"""What a graph of a known model would take on Runpod's GPUs, by the roofline.

    python -m benchmarks.preset_costs

Nothing here is measured. A graph has 64 tokens, 10,000 feature nodes, the active features of
`loading.footprint` and the request's default batch. Parts that stay on the disk are read at
`DISK`, one after another with the rest. Pruning and writing the graph aren't counted.
"""

from dataclasses import replace
from math import log
from typing import NamedTuple

from benchmarks import complete_costs
from benchmarks.complete_costs import CompleteShape
from benchmarks.reference_workload import Workload
from benchmarks.roofline import GPUS, Gpu, seconds_on
from benchmarks.workload_costs import Cost, Shapes, encoding, even_intervals, stages, sweep
from loading.entry import ModelEntry
from loading.footprint import device_bytes
from loading.registry import REGISTRY

N_TOKENS, FEATURE_NODES, BATCH_SIZE = 64, 10_000, 48
DISK = 2e9  # bytes/s, assumed: an NVMe disk

# The cards by which Runpod's pools are priced here, where `roofline.GPUS` doesn't have them.
CARDS = {
    **GPUS,
    # NVIDIA L4 data sheet: PCIe Gen4 x16, 64 GB/s both ways.
    "L4": Gpu(121e12, 30.3e12, 300e9, 24e9, 32e9),
    # NVIDIA Ada GPU architecture white paper, RTX 4090, float32 accumulation.
    "RTX 4090": Gpu(165.2e12, 82.6e12, 1008e9, 24e9, 32e9),
    # NVIDIA H200 data sheet, SXM.
    "H200": Gpu(989e12, 67e12, 4800e9, 141e9, 64e9),
}


class Layers(NamedTuple):
    """A layer of a model, as its published configuration has it."""

    n_heads: int
    n_values: int  # heads of keys and values
    d_head: int
    d_mlp: int  # of a mixture of experts: those that a token goes through


LAYERS = {
    "google/gemma-2-2b": Layers(8, 4, 256, 9216),
    "Qwen/Qwen3-0.6B": Layers(16, 8, 128, 3072),
    "Qwen/Qwen3-1.7B": Layers(16, 8, 128, 6144),
    "Qwen/Qwen3-4B": Layers(32, 8, 128, 9728),
    "Qwen/Qwen3-8B": Layers(32, 8, 128, 12_288),
    "Qwen/Qwen3-14B": Layers(40, 8, 128, 17_408),
    "meta-llama/Llama-3.2-1B": Layers(32, 8, 64, 8192),
    "meta-llama/Llama-3.1-8B-Instruct": Layers(32, 8, 128, 14_336),
    "google/gemma-3-270m": Layers(4, 1, 256, 2048),
    "google/gemma-3-1b": Layers(4, 1, 256, 6912),
    "google/gemma-3-4b": Layers(8, 4, 256, 10_240),
    "google/gemma-3-12b": Layers(16, 8, 256, 15_360),
    "google/gemma-3-27b": Layers(32, 16, 128, 21_504),
    "openai/gpt-oss-20b": Layers(64, 8, 64, 4 * 2880),
}


def layers_of(model: str) -> Layers:
    """A known model's layer; that of a base model is the tuned model's too."""
    return LAYERS[model.removesuffix("-it").removesuffix("-pt")]


def shapes_of_entry(entry: ModelEntry, card: Gpu) -> Shapes:
    """A graph's shapes, in bfloat16, with feature nodes spread evenly over layers and positions."""
    s = entry.shapes
    assert s is not None
    layer = layers_of(entry.model)
    most = s.n_active + (s.n_active * 2 * log(N_TOKENS)) ** 0.5
    plain = Shapes(
        n_layers=s.n_layers,
        n_pos=N_TOKENS,
        d_model=s.d_model,
        d_vocab=s.d_vocab,
        d_transcoder=s.n_features,
        itemsize=2,
        active=[s.n_active * N_TOKENS] * s.n_layers,
        most=[round(most)] * s.n_layers,
        intervals=[],
        **layer._asdict(),
    )
    w = Workload(
        *(s.n_layers, s.d_model, s.n_features, 0.0, N_TOKENS, FEATURE_NODES),
        batch_size=BATCH_SIZE,
    )
    lazy = {"lazy_encoder": entry.lazy_encoder, "lazy_decoder": entry.lazy_decoder}
    free = card.memory - device_bytes(s, **lazy)
    return replace(plain, intervals=even_intervals(w, plain, free))


def complete_shape_of(entry: ModelEntry) -> CompleteShape:
    """A traced graph's shapes on a complete replacement model of Qwen3-1.7B."""
    s = entry.shapes
    assert s is not None
    shape = replace(
        complete_costs.QWEN, d_sae=s.n_features, n_features=FEATURE_NODES, batch_size=BATCH_SIZE
    )
    assert (s.n_layers, s.d_model, s.n_qk_heads) == (shape.n_layers, shape.d_model, shape.n_qk)
    return complete_costs.with_tokens(shape, N_TOKENS, s.n_active)


def costs_of(entry: ModelEntry, card: Gpu) -> dict[str, Cost]:
    """The cost of each stage; a cross-layer feature counts in every layer that it writes to."""
    if entry.shapes is not None and entry.shapes.n_qk_heads:
        return complete_costs.stages(complete_shape_of(entry))
    shapes = shapes_of_entry(entry, card)
    costs = stages(shapes)
    if entry.shapes is not None and entry.shapes.cross_layer:
        written = replace(
            shapes,
            active=[n * (layer + 1) for layer, n in enumerate(shapes.active)],
            most=[n * (layer + 1) for layer, n in enumerate(shapes.most)],
        )
        costs["encoding and freezing"] = encoding(written)
        costs["sweep: features"] = sweep(written)["features"]
    return costs


def bytes_read(entry: ModelEntry) -> float:
    """What a graph reads from the disk: encoders that stay there, and active features' decoders."""
    s = entry.shapes
    assert s is not None
    active = N_TOKENS * s.n_layers * s.modules * s.n_active * s.d_model * (s.decoder / s.encoder)
    numbers = s.encoder * entry.lazy_encoder + active * entry.lazy_decoder
    return numbers * s.transcoder_bytes


def seconds_a_graph(entry: ModelEntry, card: str) -> float:
    """How long an attribution takes on a card of `CARDS`."""
    gpu = CARDS[card]
    computed = sum(seconds_on(gpu, cost) for cost in costs_of(entry, gpu).values())
    return computed + bytes_read(entry) / DISK


def main() -> None:
    for entry in REGISTRY:
        times = {
            card: seconds_a_graph(entry, card)
            for card, gpu in CARDS.items()
            if entry.shapes is not None
            and device_bytes(
                entry.shapes, lazy_encoder=entry.lazy_encoder, lazy_decoder=entry.lazy_decoder
            )
            < gpu.memory
        }
        shown = ", ".join(f"{card} {seconds:.1f} s" for card, seconds in times.items())
        print(f"{entry.model} {entry.transcoder_set}: {shown}")


if __name__ == "__main__":
    main()
