"""Graphs of complete replacement models of any size, and traces, with no model behind them."""

from random import Random

import torch
from circuit_tracer.attribution.targets import LogitTarget

from attribution.complete.graph import CompleteGraph, Contributor, QKTrace
from tests.support.synthetic_graph import D_TRANSCODER, D_VOCAB, make_config


def make_complete_graph(
    *, features=None, n_features=60, n_layers=3, n_pos=5, n_logits=4, adjacency=None, seed=0
):
    """A graph whose selected features are half of the active ones, or all of `features`.

    Without an adjacency matrix, every node is moved by every node before it.

    Args:
        features: (sublayer, position, index) of each, sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    if features is None:
        n_active, n_codes = 2 * n_features, 2 * n_layers * n_pos * D_TRANSCODER
        codes = torch.randperm(n_codes, generator=generator)[:n_active].sort().values
        at, index = codes // D_TRANSCODER, codes % D_TRANSCODER
        active = torch.stack([at // n_pos, at % n_pos, index], dim=1)
        selected = torch.randperm(n_active, generator=generator)[:n_features].sort().values
    else:
        active, n_features = torch.tensor(features), len(features)
        selected = torch.arange(n_features)
    n_nodes = n_features + (2 * n_layers + 1) * n_pos + n_logits
    if adjacency is None:
        adjacency = torch.randn(n_nodes, n_nodes, generator=generator)
        adjacency[n_features:-n_logits] = 0
        adjacency[:, -n_logits:] = 0
        adjacency[:n_features, :n_features].tril_(-1)
    return CompleteGraph(
        input_tokens=torch.randint(0, D_VOCAB, (n_pos,), generator=generator),
        logit_targets=[LogitTarget(f" word{i}", 7 + i) for i in range(n_logits)],
        logit_probabilities=torch.rand(n_logits, generator=generator).softmax(0),
        vocab_size=D_VOCAB,
        active_features=active,
        activation_values=torch.rand(len(active), generator=generator) * 10,
        selected_features=selected,
        adjacency_matrix=adjacency,
        cfg=make_config(n_layers),
    )


def lorsa_rows(graph):
    """The rows of a graph's Lorsa features."""
    sublayers = graph.active_features[graph.selected_features, 0]
    return torch.nonzero(sublayers % 2 == 0).flatten().tolist()


def make_traces(graph, *, topk=10, seed=0):
    """A trace of each Lorsa feature: contributors of all kinds, within the graph and without."""
    random = Random(seed)
    active, tokens = graph.active_features.tolist(), graph.input_tokens.tolist()
    at_position = {at: [f for f in active if f[1] == at] for at in range(graph.n_pos)}

    def contributor(sublayer, position, bias):
        kind = random.choice(["embedding", bias, "bias_d", "error", "feature"])
        feature = random.choice(at_position[position] or [None])
        if kind == "feature" and feature and feature[0] < sublayer:
            return Contributor(kind, *feature, random.random())
        if kind in ("bias_d", "error") and sublayer:
            return Contributor(kind, random.randrange(sublayer), position, -1)
        if kind == bias:
            return Contributor(kind, sublayer, position, -1)
        return Contributor("embedding", -1, position, tokens[position])

    def values():
        return sorted((random.random() for _ in range(topk)), reverse=True)

    traces = {}
    for row in lorsa_rows(graph):
        sublayer, position, _ = active[graph.selected_features[row]]
        key_position = random.randrange(position + 1)
        queries, keys = (
            [contributor(sublayer, at, bias) for _ in range(topk)]
            for at, bias in ((position, "bias_q"), (key_position, "bias_k"))
        )
        traces[row] = QKTrace(
            key_position,
            list(zip(queries, keys, values(), strict=True)),
            list(zip(reversed(queries), values(), strict=True)),
            list(zip(reversed(keys), values(), strict=True)),
        )
    return traces
