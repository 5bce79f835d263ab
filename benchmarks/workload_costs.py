"""What a graph of given shapes costs on a CUDA device, by formula: FLOP, bytes and launches.

One function a stage. Bytes are those that kernels read and write, each operand once; FLOP those of
matrix products, apart for those in the model's dtype and in float32.
`tests/benchmarks/test_roofline.py` holds all of it to what the emulated device counts.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil, log

from attribution.memory import Shape, targets_at_once
from attribution.patterns import BLOCK_LENGTH
from benchmarks.families import share_above
from benchmarks.reference_workload import Workload

N_LOGITS, INTERVAL = 10, 4
_ROWS_AT_ONCE = 256  # of the matrix that goes to the host
# TransformerLens's elementwise operations a layer, as passes over its activations: read or written.
_PASSES_OF_STREAM, _PASSES_OF_HEADS, _PASSES_OF_MLP, _PASSES_OF_PATTERNS = 60, 24, 12, 12
# By bytes of a number: launches of a layer, and those beside the layers.
_FORWARD_LAUNCHES = {2: (93, 18), 4: (85, 13)}
_ENCODING_LAUNCHES = {2: (41, 16), 4: (32, 14)}
_RANKING_LAUNCHES, _LAUNCHES_OF_BLOCK, _ENTRIES_OF_BLOCK = 20, 2, 1 << 26


@dataclass(frozen=True)
class Cost:
    """Of a stage, or of a part of one."""

    flop: float = 0  # in the model's dtype
    flop_float32: float = 0
    n_bytes: float = 0
    launches: float = 0
    to_host: float = 0  # bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flop + other.flop,
            self.flop_float32 + other.flop_float32,
            self.n_bytes + other.n_bytes,
            self.launches + other.launches,
            self.to_host + other.to_host,
        )


@dataclass(frozen=True)
class Batch:
    """Targets that are carried down at once: how many, and how far."""

    n: int
    n_pos: int  # positions that their gradients are at
    above: Sequence[int]  # for each layer how many targets are above its features
    joined: Sequence[int]  # and how many go through its attention


@dataclass(frozen=True)
class ModelShapes:
    """A language model and a prompt."""

    n_layers: int
    n_pos: int
    d_model: int
    n_heads: int
    d_head: int
    n_values: int  # heads of keys and values
    d_mlp: int
    d_vocab: int

    @property
    def results(self) -> int:
        return self.n_heads * self.d_head

    @property
    def values(self) -> int:
        return self.n_values * self.d_head

    @property
    def layer_parameters(self) -> int:
        """A layer's matrices."""
        return self.d_model * (2 * self.results + 2 * self.values + 3 * self.d_mlp)


@dataclass(frozen=True)
class Shapes(ModelShapes):
    """A model, a prompt and its active features, and the order in which targets are expanded."""

    d_transcoder: int
    itemsize: int  # bytes of a number in the model's dtype
    active: Sequence[int]  # features of each layer
    most: Sequence[int]  # features of the position that has most, of each layer
    intervals: Sequence[Sequence[Batch]]  # logits first, then what lies between two rankings

    @property
    def n_active(self) -> int:
        return sum(self.active)

    @property
    def n_sources(self) -> int:
        return self.n_active + (self.n_layers + 1) * self.n_pos

    @property
    def n_logits(self) -> int:
        return sum(batch.n for batch in self.intervals[0])

    @property
    def n_features(self) -> int:
        return sum(batch.n for batches in self.intervals[1:] for batch in batches)

    @property
    def n_nodes(self) -> int:
        return self.n_features + (self.n_layers + 1) * self.n_pos + self.n_logits


def shapes_of(w: Workload, itemsize: int, free_bytes: float) -> Shapes:
    """A workload's shapes, as its random weights make them.

    Features are active with the chance that a normal number is above the threshold, but at BOS.
    Feature nodes are spread evenly over layers and positions.

    Args:
        free_bytes: of the device, when batches are sized.
    """
    n_heads = w.n_heads or w.d_model // 64
    share = share_above(w.threshold)
    mean = w.d_transcoder * share
    most = mean + (mean * (1 - share) * 2 * log(w.n_tokens)) ** 0.5
    plain = Shapes(
        n_layers=w.n_layers,
        n_pos=w.n_tokens,
        d_model=w.d_model,
        n_heads=n_heads,
        d_head=w.d_head,
        n_values=max(1, n_heads // 2),
        d_mlp=w.d_mlp or 2 * w.d_model,
        d_vocab=w.d_vocab,
        d_transcoder=w.d_transcoder,
        itemsize=itemsize,
        active=[round(mean * (w.n_tokens - 1))] * w.n_layers,
        most=[round(most)] * w.n_layers,
        intervals=[],
    )
    return replace(plain, intervals=even_intervals(w, plain, free_bytes))


def even_intervals(w: Workload, s: Shapes, free_bytes: float) -> list[list[Batch]]:
    """Logits, and feature nodes spread evenly, in batches of as many as the device has room for."""
    all_layers = [N_LOGITS] * s.n_layers
    intervals = [[Batch(N_LOGITS, s.n_pos, all_layers, all_layers)]]
    at_once = targets_at_once(memory_shape(s), w.batch_size, INTERVAL, free_bytes=free_bytes)
    left = min(w.max_feature_nodes, s.n_active)
    while left:
        queue = min(INTERVAL * w.batch_size, left)
        batches = []
        for start in range(0, queue, at_once):  # from the last positions to the first
            n = min(at_once, queue - start)
            above = [round(n * (s.n_layers - 1 - i) / s.n_layers) for i in range(s.n_layers)]
            joined = [round(n * (s.n_layers - i) / s.n_layers) for i in range(s.n_layers)]
            n_pos = max(1, round(s.n_pos * (queue - start) / queue))
            batches.append(Batch(n, n_pos, above, joined))
        intervals.append(batches)
        left -= queue
    return intervals


def memory_shape(s: Shapes) -> Shape:
    """What a sweep's memory follows from."""
    return Shape(
        n_layers=s.n_layers,
        n_pos=s.n_pos,
        d_model=s.d_model,
        d_results=s.results,
        d_values=s.values,
        n_active=s.n_active,
        on_cuda=True,
        gradient=s.itemsize,
        padding=sum(s.most) * s.n_pos / s.n_active,
    )


def forward_pass(s: Shapes) -> Cost:
    """The model's own pass over the prompt, logits of all positions, as TransformerLens runs it."""
    weights = s.layer_parameters
    attention = 2 * s.n_pos * s.results  # scores, and values by patterns
    flop = 2 * s.n_pos * (s.n_layers * (weights + attention) + s.d_model * s.d_vocab)
    # Weights are transposed, as the worker's layout of weights spares, and then read. The rest is
    # elementwise.
    streams = 4 * _PASSES_OF_STREAM * s.n_pos * s.d_model  # norms are float32
    heads = _PASSES_OF_HEADS * s.n_pos * (s.results + s.values)
    mlp = _PASSES_OF_MLP * s.n_pos * s.d_mlp
    patterns = _PASSES_OF_PATTERNS * s.n_heads * s.n_pos**2
    layer = streams + s.itemsize * (3 * weights + heads + mlp + patterns)
    unembedding = s.itemsize * (3 * s.d_model + 3 * s.n_pos) * s.d_vocab
    launches = _FORWARD_LAUNCHES[s.itemsize]
    return Cost(flop, 0, s.n_layers * layer + unembedding, s.n_layers * launches[0] + launches[1])


def encoding(s: Shapes) -> Cost:
    """Active features and their decoder vectors, and the weights with the norms folded in."""
    b, p, d = s.itemsize, s.n_pos, s.d_model
    flop = 2 * s.n_layers * p * d * s.d_transcoder
    n_bytes = 0.0
    folds = 20 if b == 2 else 8  # widened, times the norm's weight, and rounded
    for active, most in zip(s.active, s.most, strict=True):
        encoded = b * d * s.d_transcoder + (7 * b + 2) * p * s.d_transcoder
        # Gathered, times the activation, summed, rounded and padded.
        decoded = active * d * (6 * b + 12) + b * p * most * d
        folded = d * (folds * (s.results + s.values) + 2 * b * s.values)
        patterns = s.n_heads * p**2 * (24 + (b + 4) * (b == 2))
        n_bytes += encoded + decoded + folded + patterns + 4 * 12 * p * d
    launches = _ENCODING_LAUNCHES[b]
    return Cost(flop, 0, n_bytes, s.n_layers * launches[0] + launches[1])


def sweep(s: Shapes) -> dict[str, Cost]:
    """All batches' way down, by what the gradients meet."""
    parts = {"features": Cost(), "attention": Cost(), "errors and tokens": Cost()}
    for batches in s.intervals:
        for batch in batches:
            numbers = 4 * batch.n * s.d_model
            parts["attention"] += Cost(
                n_bytes=numbers * (batch.n_pos + 2), launches=4
            )  # its gradients, zero but where the targets read
            for layer in range(s.n_layers):
                above, joined = batch.above[layer], batch.joined[layer]
                if joined:
                    parts["attention"] += _attention(s, batch.n_pos, joined, layer)
                if above:
                    parts["features"] += _features(s, batch.n_pos, above, layer)
                    parts["errors and tokens"] += _dots(batch.n_pos, above, s.d_model)
                if joined and layer == 0:
                    parts["errors and tokens"] += _tokens(s, batch.n_pos, joined)
    return parts


def _features(s: Shapes, n_pos: int, above: int, layer: int) -> Cost:
    """One batched product over positions, of which the edges are put into the rows."""
    most, reached = s.most[layer], s.active[layer] * n_pos / s.n_pos
    operands = s.itemsize * n_pos * s.d_model * (above + most)
    edges = 4 * above * (n_pos * most + 4 * reached) + 16 * reached
    flop = 2 * above * n_pos * most * s.d_model
    return _in_dtype(s, flop, operands + edges, launches=3)


def _attention(s: Shapes, n_pos: int, joined: int, layer: int) -> Cost:
    """Gradients through a layer's heads: two products with weights, one with patterns."""
    b, vectors = s.itemsize, joined * n_pos
    rounded = 6 * vectors * s.d_model * (b == 2)
    writes = b * s.d_model * (vectors + s.results) + 4 * vectors * s.results
    together = 8 * vectors * s.results
    brought = (4 + (b if layer else 4)) * vectors * s.values
    flop, n_bytes = 2 * vectors * s.d_model * s.results, rounded + writes + together + brought
    launches = 2 + (b == 2)
    mixed = _patterns(s, n_pos, joined)
    if layer:
        flop += 2 * vectors * s.values * s.d_model
        read = b * s.values * (vectors + s.d_model) + 8 * vectors * s.d_model
        n_bytes, launches = n_bytes + read, launches + 1
    return _in_dtype(s, flop, n_bytes, launches) + mixed


def _patterns(s: Shapes, n_pos: int, joined: int) -> Cost:
    """Products with each block of a pattern, and the copies that bring their results together."""
    cost = Cost(launches=n_pos > BLOCK_LENGTH["cuda"])  # memory for the copies
    for start in range(0, n_pos, BLOCK_LENGTH["cuda"]):
        attended, attending = min(BLOCK_LENGTH["cuda"], n_pos - start), n_pos - start
        entries = s.n_heads * attended * attending
        vectors = joined * (attending * s.results + attended * s.values)
        flop = 2 * joined * attended * attending * s.results
        cost += Cost(flop_float32=flop, n_bytes=4 * (entries + vectors), launches=2)
    return cost


def _dots(n_pos: int, n: int, d: int) -> Cost:
    """Products with one vector a position, put into the rows."""
    n_bytes = 4 * n_pos * (n * d + d + 3 * n)
    return Cost(flop_float32=2 * n_pos * n * d, n_bytes=n_bytes, launches=2)


def _tokens(s: Shapes, n_pos: int, joined: int) -> Cost:
    directly, by_values = _dots(n_pos, joined, s.d_model), _dots(n_pos, joined, s.values)
    read = 4 * s.n_pos * s.d_model + s.itemsize * s.values * s.d_model
    flop = 2 * s.n_pos * s.d_model * s.values
    joint = Cost(n_bytes=4 * n_pos * joined, launches=(s.itemsize == 2))
    return directly + by_values + joint + _in_dtype(s, flop, read, launches=1)


def ranking(s: Shapes) -> Cost:
    """Influence from the rows so far, before each interval."""
    cost, before, n_rows = Cost(), 0, s.n_logits
    for i, batches in enumerate(s.intervals[1:]):
        new = n_rows - before
        # Of the new rows: features as far as the highest target's, then errors and tokens.
        reach = sum(s.active[: _top_layer(s.intervals[i], s.n_layers)])
        norms = 4 * new * 3 * (reach + s.n_sources - s.n_active)
        # Edges between rows' own nodes: gathered, absolute, over the norm, put in their block.
        between = 4 * 8 * (n_rows * new + new * before * (i > 1)) * (i > 0)
        steps = min(s.n_layers, n_rows) + 1
        paths = steps * 4 * (n_rows**2 + 3 * n_rows)
        spread = 4 * 3 * n_rows * s.n_active
        blocks = 1 + ceil(new * s.n_active / _ENTRIES_OF_BLOCK)
        blocks += ceil(n_rows * s.n_active / _ENTRIES_OF_BLOCK)
        flop = 2 * n_rows * (steps * n_rows + s.n_active)
        cost += Cost(
            0,
            flop,
            norms + between + paths + spread,
            _RANKING_LAUNCHES + steps + _LAUNCHES_OF_BLOCK * blocks,
        )
        before, n_rows = n_rows, n_rows + sum(batch.n for batch in batches)
    return cost


def _top_layer(batches: Sequence[Batch], n_layers: int) -> int:
    """The layer of the highest target; a logit's is `n_layers`."""
    first = batches[0]
    return n_layers if first.above[-1] else sum(joined > 0 for joined in first.joined) - 1


def the_rest(s: Shapes) -> Cost:
    """Memory for the rows, what targets read, and the graph's matrix to the host."""
    n_rows, n_columns = s.n_features + s.n_logits, s.n_nodes - s.n_logits
    rows = 4 * (n_rows * s.n_sources + n_rows**2)
    reads = s.n_features * s.d_model * (4 * s.itemsize + 28)
    unembedding = 2 * s.itemsize * s.d_vocab * s.d_model
    layers_met, nodes = 0, [0] * s.n_layers  # feature nodes of each layer
    for batch in (batch for interval in s.intervals[1:] for batch in interval):
        for layer, (joined, above) in enumerate(zip(batch.joined, batch.above, strict=True)):
            layers_met += joined > above
            nodes[layer] += joined - above
    # The matrix by blocks of rows, each up to the features below the layer of its last row.
    starts, entries = list(accumulate(nodes, initial=0)), s.n_logits * n_columns
    for start in range(0, s.n_features, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, s.n_features)
        below = starts[bisect(starts, end - 1) - 1]
        entries += (end - start) * (below + n_columns - s.n_features)
    matrix = 4 * entries
    ordered = 20 * s.n_active * (len(s.intervals) - 1)
    launches = 2 * layers_met + 8 * len(s.intervals) + 3 * (n_rows // _ROWS_AT_ONCE) + 22
    to_host = matrix + 8 * s.n_active * (len(s.intervals) + 1)
    return Cost(0, 0, rows + reads + unembedding + ordered + 3 * matrix, launches, to_host)


def stages(s: Shapes) -> dict[str, Cost]:
    """The cost of each stage of a graph."""
    swept = {f"sweep: {part}": cost for part, cost in sweep(s).items()}
    return {
        "forward pass": forward_pass(s),
        "encoding and freezing": encoding(s),
        "ranking": ranking(s),
        **swept,
        "the rest": the_rest(s),
    }


def _in_dtype(s: Shapes, flop: float, n_bytes: float, launches: float) -> Cost:
    if s.itemsize == 4:
        return Cost(0, flop, n_bytes, launches)
    return Cost(flop, 0, n_bytes, launches)
