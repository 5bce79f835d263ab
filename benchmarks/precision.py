"""How near graphs computed in 16 bits are to the truth, ours and circuit-tracer's.

    OMP_NUM_THREADS=1 python -m benchmarks.precision

The truth for a model with 16-bit weights is the same weights, widened, in float32. Beside it stand
our graph and the library's, both in 16 bits: the overlap of their features with the true ones
(Jaccard), and the relative error of the edges between nodes that both have (Frobenius norm of the
difference by that of the truth). Tiny random models of each architecture, means over prompts.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

import circuit_tracer
import torch
from circuit_tracer.graph import Graph

import attribution

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FEATURE_NODES = 60  # of some 200 that are active, so that their selection counts too


class Agreement(NamedTuple):
    """How near a graph is to the true one."""

    jaccard: float  # of their features: 1 where they have the same
    error: float  # of shared edges: 0 where they are the same


Build = Callable[..., Any]  # a dtype to a replacement model, always of one shape


def in_float32(model: Any, build: Build) -> Any:
    """A model with the weights of `model` that computes in float32."""
    truth = build(torch.float32)
    truth.load_state_dict(model.state_dict())
    return truth


def agreement(graph: Graph, truth: Graph) -> Agreement:
    """How near a graph of the same prompt and model is to the true one."""
    nodes, true_nodes = _nodes(graph), _nodes(truth)
    shared = [node for node in true_nodes if node in nodes]
    edges, true_edges = (
        g.adjacency_matrix.double()[where][:, where]
        for g, where in (
            (graph, [nodes[node] for node in shared]),
            (truth, [true_nodes[node] for node in shared]),
        )
    )
    features, true_features = (
        {node for node in names if node[0] == "feature"} for names in (nodes, true_nodes)
    )
    return Agreement(
        len(features & true_features) / max(1, len(features | true_features)),
        float((edges - true_edges).norm() / true_edges.norm()),
    )


def _nodes(graph: Graph) -> dict[tuple[Any, ...], int]:
    """The row of each node of a graph, by what it is."""
    features = graph.active_features[graph.selected_features].tolist()
    n_logits = len(graph.logit_targets)
    n_others = len(graph.adjacency_matrix) - len(features) - n_logits
    names: list[tuple[Any, ...]] = [("feature", *feature) for feature in features]
    names += [("error or token", i) for i in range(n_others)]
    names += [("logit", target.vocab_idx) for target in graph.logit_targets]
    return {name: row for row, name in enumerate(names)}


def compare(
    build: Build, dtype: torch.dtype, prompts: Sequence[torch.Tensor], **settings: Any
) -> tuple[Agreement, Agreement | None]:
    """Ours and the library's mean agreement with the truth on prompts, for a model of 16 bits.

    The library's is None where it can't compute a graph.
    """
    model = build(dtype)
    true_model = in_float32(model, build)
    truths = [attribution.attribute(prompt, true_model, **settings) for prompt in prompts]

    def agreements(attribute: Callable[..., Graph]) -> Agreement:
        graphs = (attribute(prompt, model, **settings) for prompt in prompts)
        return _mean(agreement(g, truth) for g, truth in zip(graphs, truths, strict=True))

    try:
        library = agreements(circuit_tracer.attribute)
    except RuntimeError:  # it mixes dtypes: cross-layer transcoders behind a norm
        library = None
    return agreements(attribution.attribute), library


def _mean(agreements: Iterable[Agreement]) -> Agreement:
    jaccards, errors = zip(*agreements, strict=True)
    return Agreement(mean(jaccards), mean(errors))


class Kind(NamedTuple):
    """A row of the table: models that differ in where features read and write alone."""

    architecture: str
    dictionary: str
    skip: bool
    hooks: tuple[str, ...]  # where they read and write


def kinds() -> list[Kind]:
    """Every architecture with every dictionary, wherever circuit-tracer serves it.

    It mixes dtypes where cross-layer features or skip connections read behind a norm; of these only
    the first are served here too, in rows of their own.
    """
    from tests.support.tiny_models import ARCHITECTURES, CROSS_LAYER, HOOKS, PER_LAYER

    found = []
    for architecture in ARCHITECTURES:
        if architecture == "parallel":  # no sum behind attention, and one hook point before both
            found += [Kind(architecture, d, False, ("gemma scope",)) for d in PER_LAYER]
            continue
        everywhere, elsewhere = tuple(HOOKS), ("residual", "mlp")
        found += [Kind(architecture, d, False, everywhere) for d in PER_LAYER]
        found += [Kind(architecture, d, False, elsewhere) for d in CROSS_LAYER]
        found += [Kind(architecture, d, True, elsewhere) for d in ("relu", "cross_layer_relu")]
        found.append(Kind(architecture, "cross_layer_jump_relu", False, ("gemma scope",)))
    return found


def measured(
    kind: Kind, dtype: torch.dtype, prompts: Sequence[torch.Tensor]
) -> tuple[Agreement, Agreement | None]:
    """Ours and the library's mean agreement with the truth."""
    from tests.support.tiny_models import tiny_model

    ours, library = [], []
    for hooks in kind.hooks:
        build = partial(_tiny, tiny_model, kind, hooks)
        mine, theirs = compare(
            build, dtype, prompts, max_feature_nodes=FEATURE_NODES, batch_size=16
        )
        ours.append(mine)
        library.append(theirs)
    known = [agreement for agreement in library if agreement is not None]
    return _mean(ours), _mean(known) if len(known) == len(library) else None


def _tiny(tiny_model: Build, kind: Kind, hooks: str, dtype: torch.dtype) -> Any:
    return tiny_model(kind.architecture, kind.dictionary, hooks, skip=kind.skip, dtype=dtype)


def _print_row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def _shown(agreement: Agreement | None) -> tuple[str, str]:
    return ("none", "none") if agreement is None else (f"{agreement[0]:.3f}", f"{agreement[1]:.2%}")


def main() -> None:
    from tests.support.tiny_models import prompt_tokens

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=4)
    n_prompts = parser.parse_args().prompts
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prompts = [prompt_tokens(10, seed) for seed in range(n_prompts)]
    columns = ("Jaccard", "library", "error", "library")
    _print_row("architecture", "features", *(f"{name}: {c}" for name in DTYPES for c in columns))
    _print_row(*["---"] * 10)
    for kind in kinds():
        features = kind.dictionary.replace("_", " ") + (", skip" if kind.skip else "")
        if kind.hooks == ("gemma scope",) and kind.architecture != "parallel":
            features += ", behind a norm"
        cells: list[str] = []
        for dtype in DTYPES.values():
            jaccards, errors = zip(*map(_shown, measured(kind, dtype, prompts)), strict=True)
            cells += [*jaccards, *errors]
        _print_row(kind.architecture, features, *cells)


if __name__ == "__main__":
    main()
