"""What complete graphs say is true of the model itself: no reference library takes part.

Edges are compared with what autograd gives for the formulas of the replacement in float64, rows
with the activations that they explain, traces with attention scores, and edges with interventions.
"""

import pytest
import torch

from attribution.complete import attribute, freeze, trace_attention
from tests.support.complete_cases import CASES, ONE_OF_EACH, write_case
from tests.support.complete_engine import complete_model, in_float32, nodes_of

LARGEST_ERROR = {torch.bfloat16: 0.05, torch.float16: 0.01}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


def _local(name, directory):
    case = CASES[name]
    model = complete_model(write_case(directory, case))
    tokens = torch.tensor([model.tokenizer.encode(case.prompt, add_special_tokens=False)]).flatten()
    return freeze(model, tokens)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_row_and_the_biases_sum_to_what_it_explains(name, directory):
    local = _local(name, directory)
    graph = attribute(local)
    sublayers = graph.active_features[:, 0]

    of_sources = graph.adjacency_matrix[: len(sublayers)].sum(1)

    expected = torch.stack(
        [
            value - _from_biases(local, *where)
            for value, where in zip(
                graph.activation_values, graph.active_features.tolist(), strict=True
            )
        ]
    )
    largest = graph.activation_values.abs().max()
    if local.gates is None:
        assert (of_sources - expected).abs().max() < 1e-5 * largest
    else:  # A gate's read is a derivative: only what has no gate sums to its activation.
        is_lorsa = sublayers % 2 == 0
        assert (of_sources - expected)[is_lorsa].abs().max() < 1e-5 * largest


def _from_biases(local, sublayer, position, index):
    """What the biases give of a feature's activation: its own, and those of lower decoders."""
    module = local.model.module(sublayer)
    written = local.decoder_biases[:sublayer].sum(0)
    if sublayer % 2:
        scale = local.inverse_scales[sublayer, position]
        return module.b_E[index] + written @ module.W_E[index] * scale
    pattern = local.attention[sublayer // 2].pattern[index // module.n_grouped, position]
    weight = (pattern * local.inverse_scales[sublayer]).sum()
    return module.b_V[index] * pattern.sum() + written @ module.W_V[index] * weight


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_edges_are_the_derivatives_of_the_frozen_model(name, directory):
    local = _local(name, directory)
    graph = attribute(local)
    some = torch.linspace(0, len(graph.active_features) - 1, 12).long()
    scales = torch.ones(len(local.sources.vectors), dtype=torch.float64, requires_grad=True)

    values = _frozen_values(local, scales, local.active_features[some].tolist())
    rows = torch.stack([torch.autograd.grad(v, scales, retain_graph=True)[0] for v in values])

    edges = graph.adjacency_matrix[some, : rows.shape[1]]
    in_columns = rows[:, local.sources.of_columns].float()
    assert (edges - in_columns).abs().max() < 1e-6 * in_columns.abs().max()


def _frozen_values(local, scales, features):
    """Features' activations in float64, with each source times its scale and all else frozen."""
    sources, n_pos = local.sources, len(local.tokens)
    written = sources.vectors.double() * scales[:, None]
    at_position = torch.nn.functional.one_hot(sources.positions, n_pos).double().T

    def stream(sublayer):
        below = (sources.sublayers < sublayer).double()
        biases = local.decoder_biases[:sublayer].double().sum(0)
        scale = local.inverse_scales[sublayer, :, None].double()
        return (at_position * below @ written + biases) * scale

    values = []
    for sublayer, position, index in features:
        module, x = local.model.module(sublayer), stream(sublayer)
        if sublayer % 2 == 0:
            pattern = local.attention[sublayer // 2].pattern[index // module.n_grouped, position]
            values.append(pattern.double() @ (x @ module.W_V[index].double() + module.b_V[index]))
            continue
        value = x[position] @ module.W_E[index].double() + module.b_E[index]
        if module.W_E_glu is not None:
            gate = x[position] @ module.W_E_glu[index].double() + module.b_E_glu[index]
            value = value * gate.sigmoid()
        values.append(value)
    return values


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_all_pairs_of_a_head_sum_to_its_attention_score(name, directory):
    local = _local(name, directory)
    graph = attribute(local)

    traces = trace_attention(graph, local, top_fraction=0.05, topk=500)

    nodes = nodes_of(graph)
    assert traces
    for row, trace in list(traces.items())[:6]:
        _, sublayer, position, index = nodes[row]
        attention, lorsa = local.attention[sublayer // 2], local.model.lorsas[sublayer // 2]
        head = index // lorsa.n_grouped
        q, k = attention.q[head, position], attention.k[head, trace.key_position]
        score = float(q @ k) / lorsa.attn_scale
        from_q, from_k, whole = _sums(local, sublayer, head, position, trace.key_position)
        assert attention.pattern[head, position].argmax() == trace.key_position
        assert whole == pytest.approx(score, abs=1e-4)
        for marginal, expected in ((trace.q_marginal, from_q), (trace.k_marginal, from_k)):
            assert sum(value for _, value in marginal) == pytest.approx(expected, abs=1e-4)


def _sums(local, sublayer, head, position, key_position):
    """The positive marginals of both sides, and all of one side's, computed source by source."""
    lorsa, attention = local.model.lorsas[sublayer // 2], local.attention[sublayer // 2]
    q = _parts(
        local, sublayer, head, position, lorsa.W_Q, lorsa.b_Q, lorsa.q_gain, attention.q_scale
    )
    k = _parts(
        local, sublayer, head, key_position, lorsa.W_K, lorsa.b_K, lorsa.k_gain, attention.k_scale
    )
    table = q @ k.T / lorsa.attn_scale
    of_q, of_k = table.sum(1), table.sum(0)
    return float(of_q.clamp(min=0).sum()), float(of_k.clamp(min=0).sum()), float(table.sum())


def _parts(local, sublayer, head, position, weight, bias, gain, scale):
    """What each source adds to a query or key, by the definition, a source at a time."""
    sources = local.sources
    at = (sources.positions == position) & (sources.sublayers < sublayer)
    written = torch.cat([sources.vectors[at], local.decoder_biases[:sublayer]])
    parts = torch.stack(
        [w * local.inverse_scales[sublayer, position] @ weight[head] for w in written]
    )
    parts = torch.cat([parts, bias[head][None]])
    if gain is not None:
        parts = parts * gain[head] / scale[head, position]
    rotary = local.model.lorsas[sublayer // 2].rotary
    return parts if rotary is None else rotary.forward(parts, torch.full((len(parts),), position))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["jumprelu-9", "glu-6", "relu-6"])
def test_edges_in_16_bits_are_near_those_of_the_same_weights_in_float32(name, dtype, directory):
    case = CASES[name]
    model = complete_model(write_case(directory, case), dtype)
    tokens = torch.tensor(model.tokenizer.encode(case.prompt, add_special_tokens=False))
    exact_model = in_float32(model)

    ours, truth = (attribute(freeze(each, tokens)) for each in (model, exact_model))

    nodes, exact_nodes = nodes_of(ours), nodes_of(truth)
    common = [node for node in nodes if node in exact_nodes]
    assert len(common) > 0.9 * len(exact_nodes)
    edges, exact = (
        graph.adjacency_matrix[at][:, at]
        for graph, at in (
            (ours, [nodes.index(node) for node in common]),
            (truth, [exact_nodes.index(node) for node in common]),
        )
    )
    assert (edges - exact).norm() < LARGEST_ERROR[dtype] * exact.norm()
