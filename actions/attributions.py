"""The attribution of a prompt by the loaded model's engine: one that is kept, or a new one."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import attribution
from actions.job import Job
from actions.targets import Target
from attribution import PrunedGraph, complete
from attribution.complete import CompleteGraph, QKTraces
from errors import InvalidInput
from graphs.cache import TracedGraph
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import GenerateGraphRequest

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


@dataclass(frozen=True)
class Attributed:
    """A graph before pruning, the traces of its attention, and whether both are kept now."""

    graph: "Graph | CompleteGraph"
    traces: QKTraces  # empty without tracing
    is_kept: bool


def method_of(loaded: LoadedModel) -> str:
    """How graphs of the loaded model are computed, as their metadata says it."""
    if loaded.is_complete:
        return "complete replacement model"
    return attribution.method_for(loaded.model)


def attribution_settings(
    request: GenerateGraphRequest, loaded: LoadedModel, job: Job
) -> dict[str, Any]:
    """What decides, besides the tokens, what the engine's `attribute` computes.

    Batch size and update interval belong here: they decide when features are ranked, and so which
    are selected. A complete replacement model ranks them after every batch.
    """
    settings: dict[str, Any] = {
        "max_n_logits": request.max_n_logits,
        "desired_logit_prob": request.desired_logit_prob,
        "batch_size": request.batch_size,
        "max_feature_nodes": request.max_feature_nodes or job.settings.max_feature_nodes,
    }
    if not loaded.is_complete:
        settings["update_interval"] = job.settings.update_interval
    return settings


def attributed(
    request: GenerateGraphRequest,
    prompt: Prompt,
    targets: Sequence[Target] | None,
    settings: Mapping[str, Any],
    loaded: LoadedModel,
    job: Job,
) -> Attributed:
    """The attribution that was kept for these inputs or a new one, traced if that is asked for."""
    key = (
        method_of(loaded),
        tuple(prompt.ids),
        None if targets is None else tuple(targets),
        *settings.values(),
    )
    kept = loaded.graphs.get(key)
    job.counts["cached"] = int(kept is not None)
    options = {
        **settings,
        "attribution_targets": targets,
        "on_progress": job.counted("attribute", "feature nodes"),
        "check": job.check,
    }
    if loaded.is_complete:
        tracing = (request.qk_top_fraction, request.qk_topk) if request.enable_qk_tracing else None
        return _complete_attributed(key, kept, tracing, prompt, options, loaded, job)
    if kept is not None:
        return Attributed(kept, {}, is_kept=True)
    with job.model(loaded), job.stage("attribute"):
        graph = attribution.attribute(torch.tensor(prompt.ids), loaded.model, **options)
    _check_targets(graph)
    return Attributed(graph, {}, loaded.graphs.put(key, graph))


def _complete_attributed(
    key: Hashable,
    kept: CompleteGraph | TracedGraph | None,
    tracing: tuple[float, int] | None,
    prompt: Prompt,
    options: Mapping[str, Any],
    loaded: LoadedModel,
    job: Job,
) -> Attributed:
    """The same on a complete replacement model.

    Traces are kept with their graph, though they are quick to make: with them a request that comes
    again, to a fresh URL or with other thresholds, doesn't wait for the model. A graph has the
    traces that were asked for last.

    Args:
        tracing: `qk_top_fraction` and `qk_topk`; None without tracing.
    """
    graph = kept.graph if isinstance(kept, TracedGraph) else kept
    if graph is not None and tracing is None:
        return Attributed(graph, {}, is_kept=True)
    if isinstance(kept, TracedGraph) and kept.tracing == tracing:
        return Attributed(kept.graph, kept.traces, is_kept=True)
    local = None
    with job.model(loaded):
        if graph is None:
            with job.stage("attribute"):
                local = complete.freeze(loaded.model, torch.tensor(prompt.ids), job.check)
                graph = complete.attribute(local, **options)
            _check_targets(graph)
            is_kept = loaded.graphs.put(key, graph)
        if tracing is None:
            return Attributed(graph, {}, is_kept)
        with job.stage("trace"):
            traces = complete.trace_attention(
                graph,
                local or complete.freeze(loaded.model, graph.input_tokens, job.check),
                top_fraction=tracing[0],
                topk=tracing[1],
                on_progress=job.counted("trace", "attention heads"),
                check=job.check,
            )
    traced = TracedGraph(graph, tracing, traces)
    is_kept = loaded.graphs.put(key, traced) or loaded.graphs.put(key, graph)
    return Attributed(graph, traces, is_kept)


def _check_targets(graph: "Graph | CompleteGraph") -> None:
    """Raise InvalidInput when a share of influence on the targets can't be told."""
    if not graph.logit_probabilities.sum() > 0:
        raise InvalidInput(
            "attribution_targets: the model gives none of them any probability after this prompt"
        )
    if not graph.adjacency_matrix[-len(graph.logit_targets) :].any():
        raise InvalidInput(
            "attribution_targets: nothing in this prompt moves any of them: the tokens of a "
            "difference have the same output weights; name tokens that the model tells apart"
        )


def prune(graph: "Graph | CompleteGraph", request: GenerateGraphRequest) -> PrunedGraph:
    """Keep what matters of a graph, by the rule of its engine."""
    rule = complete.prune if isinstance(graph, CompleteGraph) else attribution.prune
    return rule(graph, request.node_threshold, request.edge_threshold)
