"""A graph on the emulated CUDA device: what each stage took, and the shapes that formulas take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

import attribution
from attribution import contraction, expansion, sweep
from benchmarks.emulated_cuda import EmulatedCuda
from benchmarks.kernels import OF_A_GRAPH, Stages, staged
from benchmarks.workload_costs import Batch, Shapes

attribute_module = import_module("attribution.attribute")  # the name is the function's
_PARTS: list[tuple[str, Any, str]] = [
    ("sweep: features", contraction.PaddedPositions, "write_edges"),
    ("sweep: errors and tokens", sweep, "_error_edges"),
    ("sweep: errors and tokens", sweep, "_token_edges"),
]


def counted_graph(
    cuda: EmulatedCuda, model: Any, tokens: torch.Tensor, **settings: Any
) -> tuple[Shapes, Stages]:
    """The graph's shapes, its targets in the order they were expanded, and counts by stage."""
    functions = [
        (f"{name}: attention", *of) if name == "sweep" else (name, *of)
        for name, *of in OF_A_GRAPH
        if name != "pruning"
    ]
    intervals: list[list[Batch]] = []
    with (
        _recorded(intervals, model.cfg.n_layers),
        staged(cuda, [*functions, *_PARTS], "the rest") as stages,
    ):
        graph = attribution.attribute(tokens, model, **settings)
    cfg, active = model.cfg, graph.active_features.cpu()
    groups = active[:, 0] * len(tokens) + active[:, 1]
    sizes = groups.bincount(minlength=cfg.n_layers * len(tokens)).view(cfg.n_layers, -1)
    shapes = Shapes(
        n_layers=cfg.n_layers,
        n_pos=len(tokens),
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        n_values=cfg.n_key_value_heads or cfg.n_heads,
        d_mlp=cfg.d_mlp,
        d_vocab=cfg.d_vocab,
        d_transcoder=model.transcoders.d_transcoder,
        itemsize=cfg.dtype.itemsize,
        active=sizes.sum(1).tolist(),
        most=sizes.max(1).values.tolist(),
        intervals=intervals,
    )
    return shapes, stages


@contextmanager
def _recorded(intervals: list[list[Batch]], n_layers: int) -> Iterator[None]:
    """Add the batches of each interval meanwhile; the logits' come first."""
    rows_of, feature_rows = attribute_module.attribution_rows, expansion.Expansion._feature_rows
    intervals.append([])

    def of_batch(local: Any, layers: torch.Tensor, positions: torch.Tensor, *rest: Any) -> None:
        above = [int((layers > layer).sum()) for layer in range(n_layers)]
        joined = [int((layers >= layer).sum()) for layer in range(n_layers)]
        intervals[-1].append(Batch(len(layers), int(positions.max()) + 1, above, joined))
        rows_of(local, layers, positions, *rest)

    def of_interval(*args: Any) -> None:
        intervals.append([])
        feature_rows(*args)

    with (
        patch.object(attribute_module, "attribution_rows", of_batch),
        patch.object(expansion.Expansion, "_feature_rows", of_interval),
    ):
        yield
