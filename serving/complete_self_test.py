"""A small graph and traces of a complete replacement model, whose numbers are computed in two ways.

For the strongest features of each module, what they read is computed again in float32 on the CPU
from a pass of its own. With it go their activations, the sums of their edges and the sums of what
explains their heads' attention. A set that explains nothing of the model is refused here too:
nothing in a set's files says whether its weights are those of the model's own scale.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

import steering
from attribution import complete
from attribution.complete import CompleteGraph, CompleteModel
from attribution.complete.edges import attribution_rows
from attribution.complete.local_model import LocalCompleteModel
from attribution.complete.modules import Lorsa, Transcoder
from attribution.freezing import run_and_record
from attribution.precision import operand_dtype
from serving.consistency import (
    InconsistentError,
    UnexplainedError,
    check_logits,
    check_second_run,
    check_steer,
    logit_gradients,
    tolerance,
)
from steering import Intervention

logger = logging.getLogger(__name__)

_FEATURE_NODES = 64
_STRONGEST = 4  # features of each module that are checked
_NAMED = 6  # modules that a sentence names
# What float32 sums in another order, through a softmax, may be off by: of the terms' sizes.
_CLOSE = 1e-3
_ROUNDING = 64 * torch.finfo(torch.float32).eps


def run(model: CompleteModel, ids: Sequence[int]) -> None:
    """Run the model, attribute, trace and steer a prompt, and check the numbers.

    Raises:
        InconsistentError: numbers disagree with each other or with float32.
        UnexplainedError: in most modules the set's error is larger than what it stands in for.
        errors.NotFinite: some overflow.
    """
    first = steering.next_token_logits(model, ids)
    tokens = torch.tensor(ids)
    local = complete.freeze(model, tokens)
    graph = complete.attribute(local, max_feature_nodes=_FEATURE_NODES)
    complete.trace_attention(graph, local)
    with torch.no_grad():
        prompt = _Prompt.of(local, tokens)
        check_logits(_logit_ids(graph), graph.logit_probabilities, first)
        own = [
            feature
            for sublayer in range(local.shape.n_layers)
            for feature in _check_module(local, prompt, sublayer)
        ]
        _check_activations_in_a_steer(model, ids, own)
        check_steer(model, ids, own)
        _check_edges_into_logits(graph, model, ids)
        _check_explained(local, prompt)
        check_second_run(first, steering.next_token_logits(model, ids))


@dataclass(frozen=True)
class _Prompt:
    """A pass over the prompt, in float32 on the CPU. By sublayer, then position."""

    reads: Tensor  # (n_sublayers, n_pos, d_model): normalised, as modules read it
    outputs: Tensor  # (n_sublayers, n_pos, d_model)
    scales: Tensor  # (n_sublayers, n_pos) of the norms
    # What sources give: the stream before each sublayer, less the biases of modules below.
    streams: Tensor  # (n_sublayers, n_pos, d_model)
    sizes: Tensor  # (n_sublayers, n_pos, d_model): the same sum of absolute values

    @classmethod
    def of(cls, local: LocalCompleteModel, tokens: Tensor) -> _Prompt:
        model, layers = local.model, range(local.model.cfg.n_layers)
        names = {
            kind: [f"blocks.{layer}.{hook}" for layer in layers for hook in hooks]
            for kind, hooks in {
                "reads": ("ln1.hook_normalized", "ln2.hook_normalized"),
                "outputs": ("hook_attn_out", "hook_mlp_out"),
                "scales": ("ln1.hook_scale", "ln2.hook_scale"),
            }.items()
        }
        hooks = [name for own in names.values() for name in own]
        _, seen = run_and_record(
            model.language_model, tokens.to(local.device), [*hooks, "hook_embed"]
        )
        reads, outputs, scales = (
            torch.stack([seen[name][0].cpu().float() for name in own]) for own in names.values()
        )
        written = outputs - local.decoder_biases.cpu()[:, None]
        before = torch.cat([seen["hook_embed"].cpu().float(), written[:-1]])
        return cls(reads, outputs, scales[..., 0], before.cumsum(0), _sizes(local))


def _sizes(local: LocalCompleteModel) -> Tensor:
    """The sum of the absolute values that sources below each sublayer write, at each position."""
    sources, n_sublayers = local.sources, local.shape.n_layers
    at = [
        sources.vectors[start:end].abs().sum(0)
        for starts in sources.starts.tolist()
        for start, end in pairwise(starts[: n_sublayers + 1])
    ]
    parts = torch.stack(at).cpu().unflatten(0, (-1, n_sublayers)).transpose(0, 1)
    return parts.cumsum(0) + local.decoder_biases.cpu().abs().cumsum(0)[:, None]


class _Read(NamedTuple):
    """What a feature reads: a vector, and how much of the stream at each position."""

    vector: Tensor  # (d_model,)
    weights: Tensor  # (n_pos,), less the norms' scales


def _check_module(local: LocalCompleteModel, prompt: _Prompt, sublayer: int) -> list[Intervention]:
    """Check the strongest features of a module; returns each held at its own activation."""
    module, name = local.model.module(sublayer), _name(sublayer)
    start, end = (int(n) for n in local.before_layer[sublayer : sublayer + 2])
    values = local.activation_values[start:end].cpu()
    chosen = values.topk(min(_STRONGEST, len(values))).indices + start
    if not len(chosen):
        return []
    positions = local.feature_positions[chosen]
    layers = torch.full_like(positions, sublayer)
    features = chosen.to(local.device)
    rows = torch.zeros(len(chosen), local.shape.n_sources, device=local.device)
    attribution_rows(local, layers, positions, local.feature_reads(layers, features), rows)
    sums, indices = rows.sum(1).cpu(), local.active_features[features, 2].cpu()
    own: list[Intervention] = []
    for feature, position, index, row_sum in zip(
        (chosen - start).tolist(), positions.tolist(), indices.tolist(), sums.tolist(), strict=True
    ):
        x = prompt.reads[sublayer]
        found = float(values[feature])
        head = None
        if isinstance(module, Lorsa):
            head = _Head(module, index // module.n_grouped, x)
            value, bound, read = _lorsa_value(module, head, x, position, index)
        else:
            value, bound, read = _transcoder_value(module, x, position, index)
        _check(f"features of {name} have other activations in a graph", found, value, bound)
        weights = read.weights / prompt.scales[sublayer]
        expected = float(weights @ (prompt.streams[sublayer] @ read.vector))
        sizes = weights @ (
            _CLOSE * (prompt.streams[sublayer].abs() @ read.vector.abs())
            + _ROUNDING * (prompt.sizes[sublayer] @ read.vector.abs())
        )
        _check(f"edges into features of {name} have other sums", row_sum, expected, float(sizes))
        if head is not None:
            _check_score(local, prompt, sublayer, head, position)
        own.append(Intervention(sublayer, index, position, found))
    return own


def _check_activations_in_a_steer(
    model: CompleteModel, ids: Sequence[int], own: Sequence[Intervention]
) -> None:
    features = [(it.layer, it.position or 0, it.index) for it in own]
    for it, steered in zip(own, steering.feature_activations(model, ids, features), strict=True):
        what = f"features of {_name(it.layer)} have other activations in a steer"
        bound = tolerance(model.cfg.dtype) * abs(it.value) + _CLOSE
        _check(what, steered, it.value, bound, "than in a graph")


def _check(
    what: str, found: float, expected: float, bound: float, other: str = "than in float32"
) -> None:
    off = abs(found - expected)
    if not off <= bound:
        raise InconsistentError(
            f"{what} {other}: off by {off:.2g}, where {bound:.2g} would be rounding"
        )


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    """Inputs on the CPU as they enter a product with a weight."""
    return x.to(operand_dtype(weight)).float()


def _transcoder_value(
    module: Transcoder, x: Tensor, position: int, index: int
) -> tuple[float, float, _Read]:
    """A feature's activation, how far it may be off, and what it reads."""
    allowed, here = tolerance(module.W_E.dtype), _rounded(x[position], module.W_E)
    row, bias = module.W_E[index].cpu().float(), float(module.b_E[index])
    value, size = float(here @ row) + bias, float(here.abs() @ row.abs()) + abs(bias)
    at = torch.zeros(len(x))
    at[position] = 1
    if module.W_E_glu is None or module.b_E_glu is None:
        return value, allowed * size, _Read(row, at)
    gate_row, gate_bias = module.W_E_glu[index].cpu().float(), float(module.b_E_glu[index])
    gate = float(torch.sigmoid(here @ gate_row + gate_bias))
    gate_size = float(here.abs() @ gate_row.abs()) + abs(gate_bias)
    read = gate * row + value * gate * (1 - gate) * gate_row
    return value * gate, allowed * (size + abs(value) * gate_size), _Read(read, at)


class _Head:
    """A Lorsa's head, computed again."""

    def __init__(self, lorsa: Lorsa, head: int, x: Tensor) -> None:
        self.lorsa, self.head = lorsa, head
        x = _rounded(x, lorsa.W_Q)
        self.q, self.q_scale = self._projected(x, lorsa.W_Q, lorsa.b_Q, lorsa.q_gain)
        self.k, _ = self._projected(x, lorsa.W_K, lorsa.b_K, lorsa.k_gain)
        self.scores = self.q @ self.k.T / lorsa.attn_scale

    def pattern(self, position: int) -> Tensor:
        pattern = torch.zeros(len(self.scores))
        pattern[: position + 1] = self.scores[position, : position + 1].softmax(0)
        return pattern

    def query(self, vector: Tensor, position: int) -> Tensor:
        """The query of an input (d_model,), with the norm's scale of the real one."""
        lorsa = self.lorsa
        query = vector @ lorsa.W_Q[self.head].cpu().float() + lorsa.b_Q[self.head].cpu().float()
        if lorsa.q_gain is not None:
            query = query / self.q_scale[position] * lorsa.q_gain[self.head].cpu().float()
        return self._rotated(query[None], slice(position, position + 1))[0]

    def _projected(
        self, x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Queries or keys (n_pos, d_qk), and their norms' scales (n_pos, 1)."""
        vectors = x @ weight[self.head].cpu().float() + bias[self.head].cpu().float()
        scale = (vectors.square().mean(-1, keepdim=True) + self.lorsa.eps).sqrt()
        if gain is not None:
            vectors = vectors / scale * gain[self.head].cpu().float()
        return self._rotated(vectors, slice(0, len(x))), scale

    def _rotated(self, vectors: Tensor, positions: slice) -> Tensor:
        rotary = self.lorsa.rotary
        if rotary is None:
            return vectors
        return rotary.forward(vectors.to(rotary.cos.device), positions).cpu()


def _lorsa_value(
    module: Lorsa, head: _Head, x: Tensor, position: int, index: int
) -> tuple[float, float, _Read]:
    """A feature's activation, how far it may be off, and what it reads."""
    pattern, x = head.pattern(position), _rounded(x, module.W_V)
    row, bias = module.W_V[index].cpu().float(), float(module.b_V[index])
    value = float(pattern @ (x @ row)) + bias
    size = float(pattern @ (x.abs() @ row.abs())) + abs(bias)
    return value, max(_CLOSE, tolerance(module.W_V.dtype)) * size, _Read(row, pattern)


def _check_score(
    local: LocalCompleteModel, prompt: _Prompt, sublayer: int, head: _Head, position: int
) -> None:
    """What sources add to a query sums to the attention score of the unrounded stream."""
    lorsa = head.lorsa
    key_position = int(local.attention[sublayer // 2].key_positions[head.head, position])
    biases = local.decoder_biases[:sublayer].cpu().sum(0)
    scale = prompt.scales[sublayer, position]
    query = head.query((prompt.streams[sublayer, position] + biases) / scale, position)
    key = head.k[key_position] / lorsa.attn_scale
    expected = float(query @ key)
    found, _ = complete.marginal_sums(
        local, sublayer, torch.tensor([head.head]), torch.tensor([position])
    )
    weight = lorsa.W_Q[head.head].cpu().float().abs()
    sizes = (prompt.sizes[sublayer, position] / scale) @ weight
    if lorsa.q_gain is not None:
        sizes = sizes / head.q_scale[position] * lorsa.q_gain[head.head].cpu().float().abs()
    bound = float((_CLOSE * query.norm() + _ROUNDING * sizes.norm()) * key.norm())
    what = f"what explains the attention of {_name(sublayer)} has another sum"
    _check(what, float(found[0]), expected, bound)


def _logit_ids(graph: CompleteGraph) -> Tensor:
    return torch.tensor([target.vocab_idx for target in graph.logit_targets])


def _check_edges_into_logits(
    graph: CompleteGraph, model: CompleteModel, ids: Sequence[int]
) -> None:
    """Check the edges from the last position's features into the logits, each one product."""
    chosen = graph.active_features[graph.selected_features]
    values = graph.activation_values[graph.selected_features]
    token_ids = _logit_ids(graph)
    towards = logit_gradients(token_ids, model.language_model, ids)  # (n_logits, d_model)
    edges = graph.adjacency_matrix[-len(token_ids) :]
    for column in (chosen[:, 1] == len(ids) - 1).nonzero().flatten().tolist():
        sublayer, _, index = chosen[column].tolist()
        row = model.module(sublayer).decoder.rows(torch.tensor([index]))
        written = row.cpu().float()[0] * values[column]
        off = (edges[:, column] - towards @ written).abs()
        bound = tolerance(row.dtype) * (towards.abs() @ written.abs())
        if not (off <= bound).all():
            raise InconsistentError(
                f"edges from features of {_name(sublayer)} into the logits are off by up to "
                f"{float(off.max()):.2g} from float32"
            )


def _check_explained(local: LocalCompleteModel, prompt: _Prompt) -> None:
    """Warn of modules whose error is larger than what they stand in for; refuse most of them.

    Compared at the position in the middle of the order, as the first tokens of a text may be of
    another size than all others.
    """
    n_active, n_errors = local.shape.n_active, len(prompt.outputs) * len(local.tokens)
    at = local.sources.of_columns[n_active : n_active + n_errors]
    errors = local.sources.vectors[at].norm(dim=1).cpu().unflatten(0, prompt.outputs.shape[:2])
    shares = (errors / prompt.outputs.norm(dim=2).clamp_min(1e-30)).median(1).values
    logger.debug("the set's error is %s of what it stands in for, by sublayer", shares.tolist())
    worst = [i for i in shares.argsort(descending=True).tolist() if shares[i] > 1]
    if not worst:
        return
    names = [f"{_name(i)} ({float(shares[i]):.3g} times)" for i in worst[:_NAMED]]
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    words = (
        f"in {len(worst)} of {len(shares)} modules the error is larger than what the module "
        f"stands in for: {', '.join(names)}{more}"
    )
    if len(worst) > len(shares) / 2:
        raise UnexplainedError(words)
    logger.warning(
        "%s; their weights may not be folded, or be those of another model; see TRANSCODER_SET",
        words,
    )


def _name(sublayer: int) -> str:
    layer, is_mlp = divmod(sublayer, 2)
    return f"layer {layer}'s {'transcoder' if is_mlp else 'Lorsa'}"
