"""Graphs of any size, with no model behind them: random features, random direct effects."""

import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

from attribution import PrunedGraph

D_VOCAB = 256
D_TRANSCODER = 16_384


def make_config(n_layers):
    return UnifiedConfig(
        n_layers, 8, 4, 2, 16, D_VOCAB, "none", "none", "none", dtype=torch.float32
    )


def make_graph(*, n_features=60, n_layers=3, n_pos=5, n_logits=4, adjacency=None, seed=0):
    """A graph whose selected features are half of the active ones.

    Without an adjacency matrix, every node is moved by every node before it.
    """
    generator = torch.Generator().manual_seed(seed)
    n_active = 2 * n_features
    codes = torch.randperm(n_layers * n_pos * D_TRANSCODER, generator=generator)[:n_active]
    codes = codes.sort().values
    layer, rest = codes // (n_pos * D_TRANSCODER), codes % (n_pos * D_TRANSCODER)
    active = torch.stack([layer, rest // D_TRANSCODER, rest % D_TRANSCODER], dim=1)
    selected = torch.randperm(n_active, generator=generator)[:n_features].sort().values
    n_nodes = n_features + n_layers * n_pos + n_pos + n_logits
    if adjacency is None:
        adjacency = torch.randn(n_nodes, n_nodes, generator=generator)
        adjacency[n_features:-n_logits] = 0
        adjacency[:, -n_logits:] = 0
        adjacency[:n_features, :n_features].tril_(-1)
    return Graph(
        input_string="synthetic",
        input_tokens=torch.randint(0, D_VOCAB, (n_pos,), generator=generator),
        active_features=active,
        adjacency_matrix=adjacency,
        cfg=make_config(n_layers),
        selected_features=selected,
        activation_values=torch.rand(n_active, generator=generator) * 10,
        logit_targets=[LogitTarget(f" word{i}", 7 + i) for i in range(n_logits)],
        logit_probabilities=torch.rand(n_logits, generator=generator).softmax(0),
        scan="synthetic",
    )


def make_pruned(graph, n_links, *, seed=0):
    """A graph of which every node is kept, and this many random edges, row by row."""
    generator = torch.Generator().manual_seed(seed)
    n_features, n_logits = len(graph.selected_features), len(graph.logit_targets)
    n_nodes = len(graph.adjacency_matrix)
    targets = torch.randint(0, n_features + n_logits, (n_links,), generator=generator)
    targets[targets >= n_features] += n_nodes - n_logits - n_features
    return PrunedGraph(
        graph=graph,
        node_mask=torch.ones(n_nodes, dtype=torch.bool),
        cumulative_scores=torch.rand(n_nodes, generator=generator),
        edge_targets=targets.sort().values,
        edge_sources=torch.randint(0, n_nodes - n_logits, (n_links,), generator=generator),
        edge_weights=torch.randn(n_links, generator=generator) / 100,
        replacement_score=0.75,
        completeness_score=0.875,
    )


def make_metadata(n_pos=5, **changes):
    return {
        "slug": "a-slug",
        "scan": "synthetic",
        "transcoder_list": [],
        "prompt_tokens": [f" {chr(97 + at % 26)}" for at in range(n_pos)],
        "prompt": "a b c d e",
        "node_threshold": 0.8,
        "schema_version": 1,
        **changes,
    }
