"""How many targets a sweep carries down at once: as many as there is memory for.

What a whole graph takes, stage by stage, is in `benchmarks.graph_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

# Of a block of rows that is made absolute: on a CPU it stays in the cache, on a GPU it is large
# enough for a launch to be worth it.
ENTRIES_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 26}
# Targets that go through a layer's attention at once on a CPU: what they need stays in its cache.
TARGETS_IN_CACHE = 24
# What targets beyond one batch may take: these bytes, as larger products are no faster, and on a
# GPU no more than this share of its free memory.
BYTES_OF_BATCH, SHARE_OF_BATCH = {"cpu": 1 << 26, "cuda": 1 << 30}, 0.5
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Shape:
    """A model, its transcoders and a prompt in numbers."""

    n_layers: int
    n_pos: int
    d_model: int
    d_results: int  # n_heads * d_head
    d_values: int  # key-value heads * d_head
    n_active: int  # features, at all layers and positions
    number: int  # bytes of one in the model's dtype
    on_cuda: bool
    bfloat16: bool = False
    cross_layer: bool = False
    skip: bool = False
    padding: float = 1  # decoder vectors kept for each active feature's

    @property
    def n_sources(self) -> int:
        return self.n_active + (self.n_layers + 1) * self.n_pos

    @property
    def gradient(self) -> int:
        """Bytes of a number of the gradients that enter products."""
        return 2 if self.on_cuda and self.bfloat16 else FLOAT


def rows_bytes(n_rows: int, n_sources: int) -> int:
    """Rows of the attribution matrix, and what ranking keeps of the block between them."""
    return FLOAT * n_rows * (n_sources + n_rows)


def targets_at_once(
    shape: Shape,
    batch_size: int,
    update_interval: int,
    *,
    free_bytes: float = inf,
    rows_on_host: bool = False,
) -> int:
    """A batch, and of the others up to the next ranking as many as there is room for.

    Args:
        free_bytes: of a CUDA device.
        rows_on_host: on a CUDA device, whether the rows are kept on the host.
    """
    room: float = BYTES_OF_BATCH["cuda" if shape.on_cuda else "cpu"]
    if shape.on_cuda:
        room = min(room, SHARE_OF_BATCH * free_bytes)
    affordable = int(room / target_bytes(shape, rows_on_host=rows_on_host))
    return max(batch_size, min(update_interval * batch_size, affordable))


def target_bytes(shape: Shape, *, rows_on_host: bool = False) -> float:
    """What a sweep takes for each target that it carries down."""
    d = shape.d_model
    numbers = float(FLOAT * d)
    if shape.cross_layer:  # gradients behind every layer
        numbers += shape.gradient * shape.n_layers * d
    if shape.on_cuda:
        numbers += step_bytes(shape)
    row = FLOAT * shape.n_sources if rows_on_host and shape.on_cuda else 0
    return shape.n_pos * numbers + row


def step_bytes(shape: Shape) -> float:
    """Of a target and position, the most that a layer takes beside the gradients."""
    d, h, v = shape.d_model, shape.d_results, shape.d_values
    rounded = shape.gradient * d if shape.gradient < FLOAT else 0
    attention = FLOAT * max(2 * h, h + 2 * v)
    added = FLOAT * (d + v) + (2 * v if rounded else 0)
    met = 0.0
    if shape.on_cuda:  # edges of a layer's features, padded and not
        met = FLOAT * shape.n_active / shape.n_layers / shape.n_pos * (1 + shape.padding)
    through_skip = 2 * FLOAT * d if shape.skip else 0
    return rounded + max(attention, added, met, through_skip)
