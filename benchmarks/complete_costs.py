"""What a complete replacement model's graph takes on a CUDA device, by formula, nothing measured.

    python -m benchmarks.complete_costs

Sources, bytes, FLOP and launches at Qwen3-1.7B's size for 10, 64 and 256 tokens, and the seconds
that follow from them as in `benchmarks.roofline`. The modules' configuration is what is believed of
the published set. `tests/benchmarks/test_complete_costs.py` holds the formulas to what the emulated
device counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from attribution.memory import ENTRIES_AT_ONCE, FLOAT, rows_bytes
from benchmarks import workload_costs
from benchmarks.roofline import GPUS, seconds_on
from benchmarks.workload_costs import Batch, Cost, ModelShapes, Shapes

_INDEX = 8  # bytes of an int64
# Launches, as the emulated device counts them: of a layer, of a batch.
_ENCODING_LAUNCHES, _TRACING_LAUNCHES = 101, 150
_RANKING_LAUNCHES, _EDGES_LAUNCHES, _READS_LAUNCHES = 26, 9, 21
# Of each position among a layer's traced heads, on either side.
_LAUNCHES_OF_POSITION = 8
_ROWS_AT_ONCE = 256  # of the matrix that goes to the host
# What the tables are of: lengths of prompts, active features of a module at each token, a card.
_TOKENS, _TOP_K, _CARD = (10, 64, 256), 64, "H100"


@dataclass(frozen=True)
class CompleteShape(ModelShapes):
    """A language model, its modules, a prompt and what is asked of its graph."""

    d_sae: int
    n_qk: int
    d_qk: int
    n_active: int  # features, of all modules and positions
    itemsize: int  # bytes of a number in the model's dtype
    n_features: int  # feature nodes
    n_heads_traced: int  # a Lorsa's head at a position, each once
    traced_at: float = 0.5  # of the way up, in the mean: the share of sources below a traced head
    n_logits: int = 10
    batch_size: int = 16
    qk_topk: int = 5

    @property
    def n_sublayers(self) -> int:
        return 2 * self.n_layers

    @property
    def n_sources(self) -> int:
        """Tokens, errors and active features."""
        return self.n_pos * (1 + self.n_sublayers) + self.n_active

    @property
    def n_rows(self) -> int:
        return self.n_features + self.n_logits

    @property
    def n_batches(self) -> int:
        return ceil(self.n_features / self.batch_size)

    @property
    def n_columns(self) -> int:
        """Of the graph's matrix, but for the logits', which nothing leaves."""
        return self.n_features + self.n_pos * (1 + self.n_sublayers)

    @property
    def model_parameters(self) -> int:
        """The language model's matrices, its tied embedding once."""
        return self.n_layers * self.layer_parameters + self.d_vocab * self.d_model

    @property
    def encoder_parameters(self) -> int:
        """The modules' matrices but for their decoders."""
        maps = 2 * self.n_qk * self.d_qk * self.d_model
        return self.n_layers * (2 * self.d_sae * self.d_model + maps)

    @property
    def decoder_parameters(self) -> int:
        return self.n_layers * 2 * self.d_sae * self.d_model


# 8x and k64 of the set; Qwen3-1.7B's own numbers.
QWEN = CompleteShape(
    n_layers=28,
    n_pos=0,
    d_model=2048,
    n_heads=16,
    d_head=128,
    n_values=8,
    d_mlp=6144,
    d_vocab=151_936,
    d_sae=16_384,
    n_qk=16,
    d_qk=128,
    n_active=0,
    itemsize=2,
    n_features=3000,
    n_heads_traced=750,  # half of the Lorsa features, at most: those of a head share a trace
)


def with_tokens(shape: CompleteShape, n_pos: int, top_k: int) -> CompleteShape:
    """The same for a prompt of `n_pos` tokens, with `top_k` features of a module at each."""
    return replace(shape, n_pos=n_pos, n_active=n_pos * shape.n_sublayers * top_k)


def stages(s: CompleteShape) -> dict[str, Cost]:
    """The cost of each stage of a graph with QK tracing."""
    return {
        "forward pass": forward_pass(s),
        "encoding and freezing": encoding(s),
        "ranking": ranking(s),
        "edges": edges(s),
        "tracing": tracing(s),
        "the rest": the_rest(s),
    }


def _as_layers(s: CompleteShape) -> Shapes:
    """The numbers that the formulas of `workload_costs` take; a sublayer stands for a layer."""
    n = s.n_sublayers
    batches = [
        [Batch(min(s.batch_size, s.n_features - start), s.n_pos, [0] * n, [s.batch_size] * n)]
        for start in range(0, s.n_features, s.batch_size)
    ]
    return Shapes(
        n_layers=s.n_layers,
        n_pos=s.n_pos,
        d_model=s.d_model,
        n_heads=s.n_heads,
        d_head=s.d_head,
        n_values=s.n_values,
        d_mlp=s.d_mlp,
        d_vocab=s.d_vocab,
        d_transcoder=s.d_sae,
        itemsize=s.itemsize,
        active=[s.n_active // n] * n,
        most=[],
        intervals=[[Batch(s.n_logits, s.n_pos, [s.n_logits] * n, [s.n_logits] * n)], *batches],
    )


def forward_pass(s: CompleteShape) -> Cost:
    """The language model's pass. Its weights lie as products read them, so none is transposed."""
    cost = workload_costs.forward_pass(_as_layers(s))
    spared = 2 * s.itemsize * s.model_parameters
    return replace(cost, n_bytes=cost.n_bytes - spared)


def ranking(s: CompleteShape) -> Cost:
    """Influence from the rows so far, before each batch."""
    cost = workload_costs.ranking(replace(_as_layers(s), n_layers=s.n_sublayers))
    launches = s.n_batches * (_RANKING_LAUNCHES + s.n_sublayers + 1)
    for n_rows in range(s.n_logits, s.n_rows, s.batch_size):
        launches += 2 * (ceil(n_rows * s.n_active / ENTRIES_AT_ONCE["cuda"]) - 1)
    return replace(cost, launches=launches)


def encoding(s: CompleteShape) -> Cost:
    """The modules' activations, their active features' vectors and the sources in their order."""
    p, d, b = s.n_pos, s.d_model, s.itemsize
    maps = 2 * s.n_qk * s.d_qk
    products = 2 * s.n_layers * p * d * (2 * s.d_sae + maps)
    patterns = 2 * s.n_layers * s.n_qk * p**2 * s.d_qk + 2 * s.n_layers * p**2 * s.d_sae
    weights = s.n_layers * d * b * (2 * s.d_sae + 3 * maps)  # queries' and keys' laid out first
    # Judged, the largest found, others set to zero, all finite: passes over all activations.
    activations = 2 * s.n_layers * p * s.d_sae * FLOAT * 20
    # Gathered, times the activation, summed, put among the sources.
    vectors = s.n_active * d * (2 * b + 5 * FLOAT)
    attention = s.n_layers * s.n_qk * p * FLOAT * (8 * p + 30 * s.d_qk)
    errors = s.n_sublayers * p * d * FLOAT * 12
    n_bytes = weights + activations + vectors + attention + errors
    launches = s.n_layers * _ENCODING_LAUNCHES
    if s.itemsize == FLOAT:
        return Cost(0, products + patterns, n_bytes, launches)
    return Cost(products, patterns, n_bytes, launches)


def edges(s: CompleteShape) -> Cost:
    """A product of all targets with all sources, of which the mask keeps what is below."""
    products = 2 * s.n_rows * s.n_sources * s.d_model
    each = s.n_rows * s.n_sources * FLOAT
    # Zeros, the product, weights gathered and multiplied, put in place, masked, in columns' order.
    passes = 13.5
    n_batches = s.n_batches + 1
    # Every batch reads all sources' vectors, sublayers and places.
    once = n_batches * s.n_sources * (s.d_model * FLOAT + 5 * _INDEX)
    return Cost(0, products, passes * each + once, n_batches * _EDGES_LAUNCHES)


def tracing(s: CompleteShape) -> Cost:
    """Both sides of each traced head: marginals, and the pairs of its picks."""
    below = s.traced_at * (s.n_sources / s.n_pos + s.n_sublayers)  # decoders' biases too
    maps = s.d_model * s.d_qk
    n = s.qk_topk
    side = 2 * ((1 + n) * (maps + below * s.d_model) + n * maps)
    # A head's map from the stream in float32, read for each product; sources by position.
    of_map = maps * (2 * s.itemsize + 3 * FLOAT)
    of_sources = FLOAT * below * (2 * s.d_model + 14 * (1 + n))
    vectors = 20 * FLOAT * n * s.d_model
    of_position = min(s.n_pos, s.n_heads_traced / s.n_layers)
    launches = s.n_layers * (_TRACING_LAUNCHES + 2 * _LAUNCHES_OF_POSITION * of_position)
    heads = 2 * s.n_heads_traced
    return Cost(0, heads * side, heads * (of_map + of_sources + vectors), launches)


def the_rest(s: CompleteShape) -> Cost:
    """Memory for the rows, what targets read, the order of features, and the matrix to the host."""
    rows = rows_bytes(s.n_rows, s.n_sources)
    reads = s.n_features * (s.d_model * (2 * s.itemsize + 10) + s.n_pos * 40)
    patterns = 3 * FLOAT * s.n_layers * s.n_qk * s.n_pos**2
    unembedding = 2 * s.itemsize * s.d_vocab * s.d_model
    ordered = 20 * s.n_active * s.n_batches
    matrix = FLOAT * s.n_rows * s.n_columns
    launches = s.n_batches * _READS_LAUNCHES + s.n_features / 3 + ceil(s.n_rows / _ROWS_AT_ONCE)
    to_host = matrix * 0.6 + _INDEX * s.n_active * (s.n_batches + 4)
    n_bytes = rows + reads + patterns + unembedding + ordered + 2 * matrix
    return Cost(0, 0, n_bytes, launches, to_host)


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, beside the weights."""

    sources: float  # the vectors of all sources
    rows: float  # of the matrix, and the block that ranking keeps
    peak: float


def memory(s: CompleteShape) -> Memory:
    """What a graph takes where its rows are kept on the device."""
    vectors = FLOAT * s.n_sources * s.d_model
    rows = rows_bytes(s.n_rows, s.n_sources)
    patterns = FLOAT * s.n_layers * s.n_qk * s.n_pos**2
    queries = s.n_layers * s.n_qk * s.n_pos * (2 * FLOAT * s.d_qk + _INDEX + 2 * FLOAT)
    places = s.n_sources * 3 * _INDEX + s.n_active * (3 * _INDEX + FLOAT)
    kept = vectors + patterns + queries + places
    # While freezing, vectors are there twice: by sublayer and in their order.
    freezing = kept + FLOAT * s.d_model * (s.n_active + 2 * s.n_sublayers * s.n_pos)
    # Edges, their product, the weights of each and the mask.
    batch = s.batch_size * s.n_sources * (3 * FLOAT + 1)
    step = max(1, ENTRIES_AT_ONCE["cuda"] // s.n_sources)
    ranking = FLOAT * (min(step, s.n_rows) * s.n_sources + s.n_rows * s.batch_size * 3)
    work = kept + patterns + rows + max(batch, ranking)
    return Memory(vectors, rows, max(freezing, work))


def table() -> str:
    """A markdown table with a row a prompt's length: work, memory and seconds by card."""
    header = [
        "sources",
        "their vectors",
        "rows and ranking",
        "device memory beside weights",
        "launches",
        "TFLOP",
        "GB moved",
        *(f"{name}, seconds" for name in GPUS),
    ]
    lines = ["| tokens | " + " | ".join(header) + " |", "| ---:" * (len(header) + 1) + " |"]
    for n_pos in _TOKENS:
        s = with_tokens(QWEN, n_pos, _TOP_K)
        costs, m = stages(s), memory(s)
        total = sum(costs.values(), Cost())
        cells = [
            f"{n_pos}",
            f"{s.n_sources:,}",
            *(f"{n / 1e9:.2f} GB" for n in (m.sources, m.rows, m.peak)),
            f"{total.launches:,.0f}",
            f"{(total.flop + total.flop_float32) / 1e12:.2f}",
            f"{total.n_bytes / 1e9:,.0f}",
            *(
                f"{sum(seconds_on(gpu, cost) for cost in costs.values()):.2f}"
                for gpu in GPUS.values()
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_stages(n_pos: int) -> str:
    """A markdown table with a row a stage of one prompt's length."""
    lines = [
        f"| {n_pos} tokens | launches | TFLOP, bfloat16 | TFLOP, float32 | GB moved | {_CARD} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, c in stages(with_tokens(QWEN, n_pos, _TOP_K)).items():
        work = f"{c.flop / 1e12:.3f} | {c.flop_float32 / 1e12:.3f} | {c.n_bytes / 1e9:.1f}"
        lines.append(
            f"| {name} | {c.launches:,.0f} | {work} | {seconds_on(GPUS[_CARD], c):.3f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    weights = QWEN.itemsize * (QWEN.model_parameters + QWEN.encoder_parameters)
    decoders = QWEN.itemsize * QWEN.decoder_parameters
    print(
        "Qwen3-1.7B with modules of 8x and k64, bfloat16, 3,000 feature nodes, batch 16, half of "
        "the Lorsa features traced.\n"
        f"Weights: {weights / 1e9:.1f} GB with the encoders, {decoders / 1e9:.1f} GB of decoders "
        "unless these stay on the disk.\n"
    )
    print(table())
    for n_pos in _TOKENS:
        print("\n" + table_of_stages(n_pos))


if __name__ == "__main__":
    main()
