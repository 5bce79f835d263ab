"""How much memory a graph takes beside the model: from its shape, in bytes, stage by stage.

With F active features that write to W layers each (1 for per-layer transcoders, half of them for
cross-layer ones), L layers, P tokens, S = F + (L + 1) P sources, R rows (feature nodes and logits),
N nodes in the graph, B targets carried down at once, d the model's width, h and v the widths of all
heads' results and values, b bytes of a number of the model:

    frozen for the prompt   b F W d + 2 L P^2 n_heads + 4 L P d + b L d (h + v)
    rows and their ranking  4 R S + 4 R^2
    a batch                 B P (8 d + 4 max(2 h, h + 2 v, d + v)) [+ 4 B P L d across layers]
    the graph, on the host  4 R N

These are the largest terms; the functions below have all of them. On a CUDA device decoder vectors
are padded to the position of a layer that has most. Rows on the host take memory only as far as
the features below their target, about half of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from attribution.memory import (
    ENTRIES_AT_ONCE,
    FLOAT,
    TARGETS_IN_CACHE,
    Shape,
    rows_bytes,
    step_bytes,
    target_bytes,
)
from attribution.patterns import BLOCK_LENGTH

_INDEX = 8  # bytes
# Larger blocks glibc gives back when they are freed. Of what building frees a part stays in pieces
# that are too small for a batch: as measured, this share of building's peak.
_LARGEST_KEPT, _FRAGMENTS = 32 << 20, 0.1


@dataclass(frozen=True)
class GraphShape(Shape):
    """With what the pass over the prompt and the encoders take too."""

    n_heads: int = 0
    encoders_copied: bool = False  # lazy ones
    d_mlp: int = 0
    d_vocab: int = 0
    d_transcoder: int = 0
    capped_logits: bool = False
    reads_behind_norm: bool = True

    @property
    def widens(self) -> bool:
        """Whether weights of 16 bits are made float32 for a product."""
        return self.number < self.gradient


@dataclass(frozen=True)
class Peak:
    """Bytes beside the model's weights. On a CPU all are the host's."""

    device: float
    host: float

    @property
    def total(self) -> float:
        return self.device + self.host


def decoder_bytes(shape: GraphShape) -> float:
    """What the active features' decoder vectors take, unpadded."""
    layers_written = (shape.n_layers + 1) / 2 if shape.cross_layer else 1
    return shape.n_active * layers_written * shape.d_model * shape.number


def forward_bytes(shape: GraphShape) -> float:
    """The model's pass over the prompt, with what is recorded of it."""
    positions, pattern = shape.n_pos, _pattern_bytes(shape)
    attention = 4.25 * pattern  # scores, the pattern, a copy without NaN, zeros and a mask
    mlp = 4 * positions * shape.d_mlp * shape.number
    logits = positions * shape.d_vocab * shape.number * (3 if shape.capped_logits else 1)
    records = shape.n_layers * pattern + _recorded_bytes(shape)
    return records + max(attention, mlp, logits)


def frozen_bytes(shape: GraphShape) -> float:
    """The local replacement model of the prompt, which stays until the graph is done."""
    return decoder_bytes(shape) * shape.padding + _frozen_beside_decoders(shape)


def building_bytes(shape: GraphShape) -> float:
    """The most there is while features are encoded and their decoder vectors gathered."""
    decoders, stream = decoder_bytes(shape), shape.n_layers * shape.n_pos * shape.d_model
    # Of one layer: float32 vectors before and behind the norm, and what the product leaves.
    widened = 3 * FLOAT * shape.n_active / shape.n_layers * shape.d_model
    encoding = shape.n_pos * shape.d_transcoder * (2 * shape.number + 1)
    gathering = decoders + max(widened, encoding)
    padding = decoders * shape.padding + 2 * decoders / shape.n_layers if shape.on_cuda else 0
    # The reconstruction, which becomes the errors, is in the frozen part.
    recorded = _recorded_bytes(shape) + shape.number * stream
    return _frozen_beside_decoders(shape) + recorded + max(gathering, padding)


def sweep_bytes(shape: GraphShape, n_targets: int, *, rows_on_host: bool = False) -> float:
    """What a sweep takes for all targets that it carries down at once."""
    needed = n_targets * target_bytes(shape, rows_on_host=rows_on_host)
    if not shape.on_cuda:
        needed += min(n_targets, TARGETS_IN_CACHE) * shape.n_pos * step_bytes(shape)
    if shape.widens:
        needed += FLOAT * shape.d_results * shape.d_model
        if shape.on_cuda:
            needed += FLOAT / shape.number * decoder_bytes(shape) * shape.padding / shape.n_layers
    return needed


def ranking_bytes(shape: GraphShape, n_rows: int) -> float:
    """The block of absolute entries that ranking goes by, and what it takes in."""
    step = max(1, ENTRIES_AT_ONCE["cuda" if shape.on_cuda else "cpu"] // shape.n_sources)
    return FLOAT * min(step, n_rows) * shape.n_sources


def peak(
    shape: GraphShape,
    n_features: int,
    n_logits: int,
    n_targets: int,
    *,
    rows_on_host: bool = False,
    reached: float = 1,
) -> Peak:
    """The most that a graph of `n_features` feature nodes takes, of all that are active.

    Args:
        n_targets: carried down at once, where there are as many.
        rows_on_host: on a CUDA device, whether the rows are kept on the host.
        reached: of a row on the host, the share that is written: what is below its target.
    """
    n_rows, n_targets = n_features + n_logits, min(n_targets, max(n_features, n_logits))
    n_nodes = n_rows + (shape.n_layers + 1) * shape.n_pos
    graph = FLOAT * n_rows * n_nodes
    rows = FLOAT * n_rows * shape.n_sources
    between = rows_bytes(n_rows, shape.n_sources) - rows
    ranking = ranking_bytes(shape, n_rows)
    sweep = frozen_bytes(shape) + sweep_bytes(shape, n_targets, rows_on_host=rows_on_host)
    before = max(forward_bytes(shape), building_bytes(shape))
    if not shape.on_cuda:
        batch = sweep - frozen_bytes(shape)
        # A large batch is given back before the graph is put together, a small one is kept.
        is_large = n_targets * target_bytes(shape) > _LARGEST_KEPT
        last = max(batch, graph) if is_large else batch + graph
        return Peak(0, before * (1 + _FRAGMENTS) + last + rows * reached + between)
    if rows_on_host:
        return Peak(max(before, sweep), rows * reached + between + max(ranking, graph))
    device = max(sweep, frozen_bytes(shape) + ranking) + rows + between
    return Peak(max(before, device), graph)


def _pattern_bytes(shape: GraphShape) -> float:
    return FLOAT * shape.n_heads * shape.n_pos**2


def _recorded_bytes(shape: GraphShape) -> float:
    """What features read and write in the model's pass, which is recorded."""
    read = FLOAT if shape.reads_behind_norm else shape.number
    return shape.n_layers * shape.n_pos * shape.d_model * (read + shape.number)


def _frozen_beside_decoders(shape: GraphShape) -> float:
    layers, d = shape.n_layers, shape.d_model
    folded = layers * d * (shape.d_results + shape.d_values) * shape.number
    skips = layers * d * d * FLOAT if shape.skip else 0
    errors_and_tokens = (layers + 1) * shape.n_pos * d * FLOAT
    of_feature = 3 * _INDEX + shape.number  # its place and activation
    if shape.on_cuda:
        of_feature += 2 * _INDEX  # where it is among the padded
    if shape.encoders_copied:
        of_feature += d * shape.number
    length = BLOCK_LENGTH["cuda" if shape.on_cuda else "cpu"]
    cut = [min(length, shape.n_pos - i) * (shape.n_pos - i) for i in range(0, shape.n_pos, length)]
    patterns = layers * FLOAT * shape.n_heads * sum(cut)
    return folded + skips + errors_and_tokens + shape.n_active * of_feature + patterns
