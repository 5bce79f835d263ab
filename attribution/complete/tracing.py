"""QK tracing: why a Lorsa's head attends where it does.

With everything held still, a query and a key are sums over what sources write, and the attention
score before the softmax is a sum over pairs of them: with `Q_s` what source s adds to the query at
position p and `K_u` what source u adds to the key at the position k that the head attends to most,

    score[p, k] = sum_s sum_u Q_s . K_u / attn_scale

A source's marginal is its sum over the other side. Of pairs those are found whose one side is among
the largest marginals. The biases of queries and keys and of lower modules' decoders are sources
too. Lists have the largest values; what speaks against attention is not in them. The rule is that
of llamascopium's `compute_qk_tracing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attribution.complete.graph import CompleteGraph, Contributor, QKTrace, QKTraces
from attribution.complete.local_model import LocalCompleteModel
from attribution.complete.modules import Lorsa
from attribution.influence import NodeRanges, node_influence

_HEADS_AT_ONCE = 64
_ENTRIES_AT_ONCE = 1 << 24  # of a product of all picks of these heads with all sources


@torch.no_grad()
def trace_attention(
    graph: CompleteGraph,
    local: LocalCompleteModel,
    *,
    top_fraction: float = 0.6,
    topk: int = 10,
    on_progress: Callable[[int, int], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> QKTraces:
    """Trace the attention of the Lorsa features that influence the logits most.

    Features of one Lorsa, head and position share a trace.

    Args:
        graph: of a prompt, before pruning.
        local: the model on the same prompt, as `freeze` gives it.
        top_fraction: of the graph's Lorsa features that are traced, at least one.
        topk: most entries of each list.
        on_progress: called with (heads traced, heads in all), from (0, total).
        check: called before each batch of heads; raises to stop.
    """
    rows = _traced_features(graph, top_fraction)
    if not len(rows):
        return {}
    features = graph.active_features[graph.selected_features[rows]]
    n_grouped = torch.tensor([lorsa.n_grouped for lorsa in local.model.lorsas])
    sublayers, positions, indices = features.T
    heads = torch.stack([sublayers, indices // n_grouped[sublayers // 2], positions], 1)
    unique, of_feature = heads.unique(dim=0, return_inverse=True)
    done, sizes = 0, unique[:, 0].unique_consecutive(return_counts=True)[1]
    if on_progress is not None:
        on_progress(done, len(unique))
    batches: list[tuple[_Heads, _Lists]] = []
    at_once = _heads_at_once(local, topk)
    for of_sublayer in unique.split(sizes.tolist()):
        for batch in of_sublayer.split(at_once):
            check()
            traced = _Heads(local, int(batch[0, 0]), batch[:, 1], batch[:, 2])
            batches.append((traced, traced.lists(topk)))
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(unique))
    traces = _named(local, batches)
    return {row: traces[i] for row, i in zip(rows.tolist(), of_feature.tolist(), strict=True)}


@torch.no_grad()
def marginal_sums(
    local: LocalCompleteModel, sublayer: int, heads: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """The marginals of all sources, summed, of heads (n,) at their positions (n,).

    Both sums, of the query's side and of the key's, are the attention score at the position that
    the head attends to most, as far as the model rounds nothing.
    """
    traced = _Heads(local, sublayer, heads, positions)
    of_q, of_k = traced.marginals()
    return of_q.sum(1), of_k.sum(1)


def _heads_at_once(local: LocalCompleteModel, topk: int) -> int:
    """How many heads fit the memory that a batch may take; with long lists these are fewer."""
    starts = local.sources.starts
    n_sources = int((starts[:, -1] - starts[:, 0]).max()) + local.shape.n_layers
    return max(1, min(_HEADS_AT_ONCE, _ENTRIES_AT_ONCE // (topk * n_sources)))


def _traced_features(graph: CompleteGraph, top_fraction: float) -> Tensor:
    """Rows of the Lorsa features with most influence in the whole graph, ascending."""
    n_features = NodeRanges.of(graph).n_features
    sublayers = graph.active_features[graph.selected_features, 0]
    lorsas = (sublayers % 2 == 0).nonzero().flatten()
    if not len(lorsas):
        return lorsas
    influence = node_influence(graph)[0][:n_features][lorsas]
    n = max(1, int(len(lorsas) * top_fraction))
    return lorsas[influence.argsort(descending=True, stable=True)[:n]].sort().values


class _Lists(NamedTuple):
    """Values and sources of each list, (n_heads, topk), and of pairs both sources."""

    q_values: Tensor
    q_sources: Tensor
    k_values: Tensor
    k_sources: Tensor
    pair_values: Tensor
    pair_q: Tensor
    pair_k: Tensor


class _Names:
    """Which node each source is, from tables on the CPU."""

    def __init__(self, local: LocalCompleteModel) -> None:
        sources = local.sources
        of_columns = sources.of_columns.cpu()
        self._column_of = torch.empty_like(of_columns)
        self._column_of[of_columns] = torch.arange(len(of_columns))
        self._where = torch.stack([sources.sublayers, sources.positions], 1).cpu()
        self._features = local.active_features.cpu()
        self._activations = local.activation_values.cpu()
        self._tokens = local.tokens.cpu()

    def of_source(self, source: int) -> Contributor:
        column = int(self._column_of[source])
        sublayer, position = self._where[source].tolist()
        if column < len(self._features):
            index, activation = int(self._features[column, 2]), float(self._activations[column])
            return Contributor("feature", sublayer, position, index, activation)
        if sublayer < 0:
            return Contributor("embedding", sublayer, position, int(self._tokens[position]))
        return Contributor("error", sublayer, position, -1)


class _Side:
    """The queries of heads at their positions, or the keys, as sums over sources.

    The sources of a head are those below its Lorsa at its position, then the decoder biases of the
    lower sublayers, then its own bias. Heads have different numbers of them: what is behind the
    last is zero.
    """

    def __init__(
        self,
        local: LocalCompleteModel,
        sublayer: int,
        heads: Tensor,
        positions: Tensor,
        bias_kind: Literal["bias_q", "bias_k"],
    ) -> None:
        self._local, self._lorsa = local, local.model.lorsas[sublayer // 2]
        self.sublayer, self.positions, self._bias_kind = sublayer, positions, bias_kind
        attention, lorsa, device = local.attention[sublayer // 2], self._lorsa, local.device
        self._at = positions.to(device)
        heads = heads.to(device)
        weight, bias, gain, scale, whole = (
            (lorsa.W_Q, lorsa.b_Q, lorsa.q_gain, attention.q_scale, attention.q)
            if bias_kind == "bias_q"
            else (lorsa.W_K, lorsa.b_K, lorsa.k_gain, attention.k_scale, attention.k)
        )
        self.whole = whole[heads, self._at][:, None]  # (n_heads, 1, d_qk)
        self._weight = weight[heads].float()  # (n_heads, d_model, d_qk)
        self._gain = None
        if gain is not None and scale is not None:
            self._gain = (gain[heads] / scale[heads, self._at])[:, None]
        self._inverse_scale = local.inverse_scales[sublayer, self._at][:, None, None]
        self._bias = self._normed(bias[heads].float()[:, None])
        slices = [local.sources.below(position, sublayer) for position in positions.tolist()]
        self._slices = slices
        self.n_own = max(at.stop - at.start for at in slices)
        self.n_sources = self.n_own + sublayer + 1

    @cached_property
    def first_sources(self) -> Tensor:
        """The first source (n_heads,) of each head's position, on the CPU."""
        return torch.tensor([at.start for at in self._slices])

    def against(self, others: Tensor) -> Tensor:
        """Products (n_heads, n, n_sources) of the sources' parts with (n_heads, n, d_qk)."""
        back = self._back(others)
        products = others.new_zeros(*others.shape[:2], self.n_sources)
        for position in self.positions.unique().tolist():
            at = self._local.sources.below(position, self.sublayer)
            of_position = (self.positions == position).nonzero().flatten().to(others.device)
            products[of_position, :, : at.stop - at.start] = (
                back[of_position] @ self._local.sources.vectors[at].T
            )
        products[:, :, self.n_own : -1] = back @ self._local.decoder_biases[: self.sublayer].T
        products[:, :, -1:] = others @ self._bias.transpose(1, 2)
        return products

    def parts(self, picks: Tensor) -> Tensor:
        """What sources (n_heads, n) add to the query or key: (n_heads, n, d_qk)."""
        first = self.first_sources.to(picks.device)[:, None]
        is_own = picks < self.n_own
        own = self._local.sources.vectors[(first + picks) * is_own]
        biases = self._local.decoder_biases
        written = torch.where(
            is_own[..., None], own, biases[(picks - self.n_own).clamp(0, len(biases) - 1)]
        )
        vectors = self._normed((written * self._inverse_scale) @ self._weight)
        return torch.where((picks == self.n_sources - 1)[..., None], self._bias, vectors)

    def named(self, head: int, source: int, names: _Names) -> Contributor:
        """The node that the source of a head stands for."""
        position = int(self.positions[head])
        if source < self.n_own:
            return names.of_source(int(self.first_sources[head]) + source)
        if source < self.n_sources - 1:
            return Contributor("bias_d", source - self.n_own, position, -1)
        return Contributor(self._bias_kind, self.sublayer, position, -1)

    def _normed(self, vectors: Tensor) -> Tensor:
        """Through the frozen norm and the rotation."""
        vectors = vectors if self._gain is None else vectors * self._gain
        rotary = self._lorsa.rotary
        if rotary is None:
            return vectors
        return rotary.forward(vectors.transpose(0, 1), self._at).transpose(0, 1)

    def _back(self, vectors: Tensor) -> Tensor:
        """From queries or keys (n_heads, n, d_qk) to the stream (n_heads, n, d_model)."""
        rotary = self._lorsa.rotary
        if rotary is not None:
            vectors = rotary.backward(vectors.transpose(0, 1), self._at).transpose(0, 1)
        vectors = vectors if self._gain is None else vectors * self._gain
        return vectors @ self._weight.transpose(1, 2) * self._inverse_scale


class _Heads:
    """Heads of a Lorsa at their query positions, and the key positions they attend to most."""

    def __init__(
        self, local: LocalCompleteModel, sublayer: int, heads: Tensor, positions: Tensor
    ) -> None:
        lorsa: Lorsa = local.model.lorsas[sublayer // 2]
        key_positions = local.attention[sublayer // 2].key_positions.cpu()
        self.key_positions = key_positions[heads, positions]
        self._scale = lorsa.attn_scale
        self.q = _Side(local, sublayer, heads, positions, "bias_q")
        self.k = _Side(local, sublayer, heads, self.key_positions, "bias_k")

    def marginals(self) -> tuple[Tensor, Tensor]:
        """What each source of a side adds to the score, with all of the other: (n_heads, n)."""
        of_q = self.q.against(self.k.whole)[:, 0] / self._scale
        of_k = self.k.against(self.q.whole)[:, 0] / self._scale
        return of_q, of_k

    def lists(self, topk: int) -> _Lists:
        """The largest marginals and pairs, by index among each side's sources."""
        q, k = self.q, self.k
        of_q, of_k = self.marginals()
        q_values, q_sources = _largest(of_q, topk)
        k_values, k_sources = _largest(of_k, topk)
        pick_values, picks = _largest(torch.cat([of_q, of_k], 1), topk)
        is_q = (picks < q.n_sources) & (pick_values > 0)
        is_k = (picks >= q.n_sources) & (pick_values > 0)
        q_picks, k_picks = picks * is_q, (picks - q.n_sources) * is_k
        by_q = k.against(q.parts(q_picks)) * is_q[..., None]
        by_k = q.against(k.parts(k_picks)) * is_k[..., None]
        # What is a pick of the query's side has been met with every key's source already.
        everything = torch.arange(q.n_sources, device=picks.device)
        is_pick = (q_picks[..., None] == everything) & is_q[..., None]
        by_k *= ~is_pick.any(1, keepdim=True)
        values, pair_q, pair_k = self._pairs(by_q, by_k, q_picks, k_picks, topk)
        return _Lists(
            q_values, q_sources, k_values, k_sources, values / self._scale, pair_q, pair_k
        )

    def _pairs(
        self, by_q: Tensor, by_k: Tensor, q_picks: Tensor, k_picks: Tensor, topk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The largest pairs of those with a query's pick and those with a key's."""
        q_best, q_at = _largest(by_q.flatten(1), topk)
        k_best, k_at = _largest(by_k.flatten(1), topk)
        values, at = _largest(torch.cat([q_best, k_best], 1), topk)
        n_q, n_k = self.q.n_sources, self.k.n_sources
        of_q = torch.cat([q_picks.gather(1, q_at // n_k), k_at % n_q], 1)
        of_k = torch.cat([q_at % n_k, k_picks.gather(1, k_at // n_q)], 1)
        return values, of_q.gather(1, at), of_k.gather(1, at)


def _largest(values: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The `topk` largest of (n, m) and where they are; zeros behind them when m is smaller."""
    found, indices = values.topk(min(topk, values.shape[1]))
    missing = (0, topk - found.shape[1])
    return torch.nn.functional.pad(found, missing), torch.nn.functional.pad(indices, missing)


def _named(
    local: LocalCompleteModel, batches: Sequence[tuple[_Heads, _Lists]]
) -> Sequence[QKTrace]:
    """The traces of all heads, in their order. What isn't positive is no reason to attend."""
    names = _Names(local)
    fields = zip(*(lists for _, lists in batches), strict=True)
    by_head = zip(*(torch.cat(field).tolist() for field in fields), strict=True)
    heads = [(batch, n) for batch, _ in batches for n in range(len(batch.key_positions))]
    traces = []
    for (batch, n), own in zip(heads, by_head, strict=True):
        lists = _Lists(*own)

        def q(source: int, batch: _Heads = batch, n: int = n) -> Contributor:
            return batch.q.named(n, source, names)

        def k(source: int, batch: _Heads = batch, n: int = n) -> Contributor:
            return batch.k.named(n, source, names)

        traces.append(
            QKTrace(
                key_position=int(batch.key_positions[n]),
                pairs=[
                    (q(of_q), k(of_k), value)
                    for value, of_q, of_k in zip(
                        lists.pair_values, lists.pair_q, lists.pair_k, strict=True
                    )
                    if value > 0
                ],
                q_marginal=[
                    (q(source), value)
                    for value, source in zip(lists.q_values, lists.q_sources, strict=True)
                    if value > 0
                ],
                k_marginal=[
                    (k(source), value)
                    for value, source in zip(lists.k_values, lists.k_sources, strict=True)
                    if value > 0
                ],
            )
        )
    return traces
