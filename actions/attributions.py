"""The attribution of a prompt by the loaded model's engine: one that is kept, or a new one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import attribution
from actions.job import Job
from attribution import PrunedGraph
from attribution.complete import attribute as complete_attribute
from attribution.complete import pruning as complete_pruning
from attribution.complete.graph import CompleteGraph, QKTraces
from attribution.complete.tracing import trace_attention
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
    targets: list[int] | None,
    settings: Mapping[str, Any],
    loaded: LoadedModel,
    job: Job,
) -> Attributed:
    """The attribution that was kept for these inputs or a new one, traced if that is asked for.

    Traces are kept with their graph, though they are quick to make: with them a request that comes
    again, to a fresh URL or with other thresholds, doesn't wait for the model. A graph has the
    traces of the last request that asked for other ones.
    """
    key = (
        method_of(loaded),
        tuple(prompt.ids),
        None if targets is None else tuple(targets),
        *settings.values(),
    )
    kept = loaded.graphs.get(key)
    graph = kept.graph if isinstance(kept, TracedGraph) else kept
    job.counts["cached"], is_kept = int(graph is not None), True
    if graph is None:
        graph = _new_attribution(prompt, targets, settings, loaded, job)
        is_kept = loaded.graphs.put(key, graph)
    if not request.enable_qk_tracing:
        return Attributed(graph, {}, is_kept)
    tracing = (request.qk_top_fraction, request.qk_topk)
    if isinstance(kept, TracedGraph) and kept.tracing == tracing:
        return Attributed(graph, kept.traces, is_kept=True)
    traces = _new_traces(graph, *tracing, loaded, job)
    traced = TracedGraph(graph, tracing, traces)
    is_kept = loaded.graphs.put(key, traced) or loaded.graphs.put(key, graph)
    return Attributed(graph, traces, is_kept)


def prune(graph: "Graph | CompleteGraph", request: GenerateGraphRequest) -> PrunedGraph:
    """Keep what matters of a graph, by the rule of its engine."""
    rule = complete_pruning.prune if isinstance(graph, CompleteGraph) else attribution.prune
    return rule(graph, request.node_threshold, request.edge_threshold)


def _new_attribution(
    prompt: Prompt,
    targets: list[int] | None,
    settings: Mapping[str, Any],
    loaded: LoadedModel,
    job: Job,
) -> "Graph | CompleteGraph":
    attribute = complete_attribute.attribute if loaded.is_complete else attribution.attribute
    with job.model(loaded), job.stage("attribute"):
        graph: Graph | CompleteGraph = attribute(
            torch.tensor(prompt.ids),
            loaded.model,
            attribution_targets=None if targets is None else torch.tensor(targets),
            **settings,
            on_progress=_report(job, "attribute", "feature nodes"),
            check=job.check,
        )
    if not graph.logit_probabilities.sum() > 0:
        raise InvalidInput(
            "attribution_targets: the model gives none of them any probability after this prompt"
        )
    return graph


def _new_traces(
    graph: CompleteGraph, top_fraction: float, topk: int, loaded: LoadedModel, job: Job
) -> QKTraces:
    with job.model(loaded), job.stage("trace"):
        return trace_attention(
            graph,
            loaded.model,
            top_fraction=top_fraction,
            topk=topk,
            on_progress=_report(job, "trace", "attention heads"),
            check=job.check,
        )


def _report(job: Job, stage: str, things: str) -> Callable[[int, int], None]:
    """What reports so many of so many things as progress of a stage."""

    def report(done: int, total: int) -> None:
        job.report(stage, done / max(total, 1), f"{done} of {total} {things}")

    return report
