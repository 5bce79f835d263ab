"""The complete replacement models of `complete_cases` in memory, and graphs as plain ones."""

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens import HookedTransformer
from transformers import AutoConfig, AutoTokenizer

from attribution import PrunedGraph
from attribution.complete import attribute, freeze
from attribution.complete.graph import CompleteGraph, Contributor, QKTraces
from attribution.complete.local_model import LocalCompleteModel
from attribution.complete.modules import CompleteModel, Decoder
from loading import transformerlens_engine
from loading.checkpoint import open_checkpoint
from loading.complete_files import read_module
from loading.complete_modules import Placement, read_lorsa, read_transcoder
from tests.support.complete_cases import CASES, Case, Folders, write_case
from tests.support.complete_graphs import Node, PlainGraph, Trace


def complete_model(
    folders: Folders,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    lazy_decoder: bool = False,
) -> CompleteModel:
    """Load a case's model and modules."""
    config = AutoConfig.from_pretrained(folders.model)
    place = torch.device(device)
    opened = open_checkpoint(folders.model, config, device=place, dtype=dtype)
    model = transformerlens_engine.hooked_model(HookedTransformer, opened, "tiny", place, dtype)
    model.tokenizer = AutoTokenizer.from_pretrained(folders.model)
    placement = Placement(place, dtype, lazy_decoder)
    layers = range(model.cfg.n_layers)
    return CompleteModel(
        model,
        [read_lorsa(read_module(folders.module("lorsa", n)), placement) for n in layers],
        [read_transcoder(read_module(folders.module("transcoder", n)), placement) for n in layers],
    )


def models_of_cases(directory: Path) -> Callable[..., CompleteModel]:
    """A function: the model of a case by its name, each loaded once."""

    @cache
    def made(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> CompleteModel:
        return complete_model(write_case(directory, CASES[name]), dtype, **changes)

    return made


def in_float32(model: CompleteModel) -> CompleteModel:
    """The same weights, widened."""
    language_model = copy.deepcopy(model.language_model).float()
    language_model.cfg.dtype = torch.float32
    return CompleteModel(language_model, _widened(model.lorsas), _widened(model.transcoders))


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return [_widened(item) for item in value]
    if isinstance(value, Decoder):  # its rows are widened where they are used
        return value
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    widened: dict[str, Any] = {name: _widened(each) for name, each in fields.items()}
    return dataclasses.replace(value, **widened)


def attributed(model: CompleteModel, case: Case) -> tuple[LocalCompleteModel, CompleteGraph]:
    """A case's prompt in its model, and the graph of that."""
    ids = model.tokenizer(case.prompt).input_ids
    local = freeze(model, torch.tensor(ids))
    graph = attribute(
        local,
        max_n_logits=case.max_n_logits,
        desired_logit_prob=case.desired_logit_prob,
        batch_size=case.batch_size,
        max_feature_nodes=case.max_feature_nodes,
    )
    return local, graph


def plain_graph(
    graph: CompleteGraph,
    pruned: PrunedGraph,
    traces: QKTraces,
    logit_values: Any,
    selected: list[Node],
) -> PlainGraph:
    """A graph, pruned and traced, with its features in the order of `selected` where they can be.

    The graph keeps no order of selection: its features are sorted.
    """
    nodes = nodes_of(graph)
    n_selected, n_logits = len(graph.selected_features), len(graph.logit_targets)
    own = nodes[:n_selected]
    order = (
        [own.index(node) for node in selected] if set(own) == set(selected) else [*range(len(own))]
    )
    logit_rows = [*range(len(nodes) - n_logits, len(nodes))]
    columns = nodes[: len(nodes) - n_logits]
    matrix = graph.adjacency_matrix.numpy()
    links = zip(pruned.edge_targets.tolist(), pruned.edge_sources.tolist(), strict=True)
    return PlainGraph(
        input_ids=graph.input_tokens.tolist(),
        logits=nodes[-n_logits:],
        logit_values=np.asarray(logit_values),
        probabilities=graph.logit_probabilities.numpy(),
        active=dict(
            zip(
                [Node("feature", *at) for at in graph.active_features.tolist()],
                graph.activation_values.tolist(),
                strict=True,
            )
        ),
        selected=[own[row] for row in order],
        columns=columns,
        adjacency=matrix[logit_rows + order][:, : len(columns)],
        links={(nodes[target], nodes[source]) for target, source in links},
        traces={
            nodes[row]: Trace(
                [(_node(source), value) for source, value in trace.q_marginal],
                [(_node(source), value) for source, value in trace.k_marginal],
                [(_node(q), _node(k), value) for q, k, value in trace.pairs],
            )
            for row, trace in traces.items()
        },
    )


def nodes_of(graph: CompleteGraph) -> list[Node]:
    """The node of each row of the adjacency matrix."""
    positions = range(graph.n_pos)
    features = graph.active_features[graph.selected_features].tolist()
    return [
        *(Node("feature", *at) for at in features),
        *(Node("error", i, p, -1) for i in range(graph.n_sublayers) for p in positions),
        *(Node("embedding", -1, p, t) for p, t in enumerate(graph.input_tokens.tolist())),
        *(
            Node("logit", graph.n_sublayers, graph.n_pos - 1, logit.vocab_idx)
            for logit in graph.logit_targets
        ),
    ]


def _node(source: Contributor) -> Node:
    return Node(source.kind, source.sublayer, source.position, source.index)
