"""What a graph of a complete set costs on a CUDA device, by formula, as in `workload_costs`.

An edge is one product of what a source writes and what a target reads. A Lorsa's feature reads at
all positions up to its own, a transcoder's at its own alone. Nothing here is measured.
"""

from __future__ import annotations

from math import ceil

from benchmarks.workload_costs import N_LOGITS, Cost, Shapes, forward_pass
from loading.footprint import Shapes as Footprint

# Launches of a batch of targets, and of a layer when the prompt is frozen.
_BATCH_LAUNCHES, _FREEZING_LAUNCHES = 60, 60
# Launches of a ranking, and those of each of the layers that it goes through.
_RANKING_LAUNCHES, _LAUNCHES_OF_SUBLAYER = 20, 4
_IN_MATRIX = 4  # bytes of a number


def complete_stages(
    s: Footprint, plain: Shapes, max_feature_nodes: int, batch_size: int
) -> dict[str, Cost]:
    """The cost of each stage of a graph.

    Args:
        plain: the language model's shapes, and the prompt's positions.
    """
    n_pos, sublayers = plain.n_pos, s.modules * s.n_layers
    active = n_pos * sublayers * s.n_active
    sources = active + (sublayers + 1) * n_pos
    nodes = min(max_feature_nodes, active)
    batches = ceil(nodes / batch_size)
    queries = 2 * s.n_layers * s.n_qk_heads * s.d_qk_head * s.d_model
    written = sources * s.d_model
    freezing = Cost(
        flop=2 * n_pos * (s.encoder + queries),
        n_bytes=2 * (s.encoder + queries + 2 * active * s.d_model) + _IN_MATRIX * 2 * written,
        launches=_FREEZING_LAUNCHES * sublayers,
    )
    lorsas = transcoders = nodes / 2
    # Half of the sources lie before a position, on average.
    products = lorsas * sources / 2 + (transcoders + N_LOGITS) * sources / n_pos
    rows = nodes * (sources + nodes)
    edges = Cost(
        flop_float32=2 * s.d_model * products,
        n_bytes=_IN_MATRIX * (batches * written / 2 + 4 * rows),
        launches=_BATCH_LAUNCHES * batches,
    )
    # Every batch ranks: each row so far is read against all sources, and against the other rows.
    ranked = nodes * batches / 2
    ranking = Cost(
        flop_float32=2 * ranked * (active + nodes / 2),
        n_bytes=_IN_MATRIX * ranked * (active + nodes / 2),
        launches=(_RANKING_LAUNCHES + _LAUNCHES_OF_SUBLAYER * sublayers) * batches,
    )
    matrix = _IN_MATRIX * (nodes + (sublayers + 1) * n_pos + N_LOGITS) ** 2
    return {
        "forward pass": forward_pass(plain),
        "encoding and freezing": freezing,
        "edges": edges,
        "ranking": ranking,
        "the rest": Cost(n_bytes=2 * matrix, to_host=matrix),
    }
