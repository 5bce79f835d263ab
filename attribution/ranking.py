"""Which features to expand next: those with most influence on the logits, as far as is known.

Ameisen et al. 2025, *Circuit Tracing*, "Node Influence": with rows of absolute edges normalised to
sum to one, a node's influence is the sum over all paths from it to the logits. A path goes only
through nodes whose rows are computed, so the square block between these gives their influence, and
one product with the rows then gives that of every source.
"""

from __future__ import annotations

import torch

from attribution.influence import add_influence_, row_norms


class Ranking:
    """Influence of every active feature, kept up as rows come in.

    `rows` (n_max, n_sources) float32 is the attribution matrix, filled from the top by its owner;
    beside it are kept only each row's norm and the block between rows, (n_max, n_max) float32.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        logit_probabilities: torch.Tensor,
        n_active: int,
        n_layers: int,
    ) -> None:
        self._rows, n_max = rows, len(rows)
        self._logit_probabilities = logit_probabilities.to(rows)
        self._norms = rows.new_ones(n_max)
        self._between = rows.new_zeros(n_max, n_max)  # normalised; [target, source], by row
        self._n = 0
        self._n_logits = len(logit_probabilities)
        self._n_active = n_active
        self._n_layers = n_layers

    def influence(self, nodes: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
        """Take in the rows added since the last call and return features' influence (n_active,).

        Args:
            nodes: for each row so far but the logits', which come first, its active feature.
            reach: for each of these how many features come before its layer, on the CPU.
        """
        reach = torch.cat([torch.full((self._n_logits,), self._n_active), reach])
        self._take_in(nodes.to(self._rows.device), reach)
        weights = self._row_influence(reach) / self._norms[: self._n]
        influence = self._rows.new_zeros(self._n_active)
        add_influence_(influence, self._rows[: self._n, : self._n_active], weights, reach)
        return influence

    def _take_in(self, nodes: torch.Tensor, reach: torch.Tensor) -> None:
        old, new, n_logits = self._n, self._n_logits + len(nodes), self._n_logits
        from_features, others = self._rows[old:new].tensor_split([self._n_active], 1)
        norms = row_norms(from_features, reach[old:]) + row_norms(others)
        self._norms[old:new] = norms.clamp(min=1e-8)
        norms, first = self._norms[:new, None], max(old, n_logits)
        known, added = nodes[: first - n_logits], nodes[first - n_logits :]
        self._between[:new, first:new] = self._rows[:new, added].abs() / norms
        if len(known):
            self._between[old:new, n_logits:old] = self._rows[old:new, known].abs() / norms[old:]
        self._n = new

    def _row_influence(self, reach: torch.Tensor) -> torch.Tensor:
        """Influence of each row's own node, a logit's being its probability."""
        between = self._between[: self._n, : self._n]
        own = between.new_zeros(self._n)
        own[: self._n_logits] = self._logit_probabilities
        if own.device.type == "cpu":
            return self._layer_by_layer(own, between, reach)
        # On a GPU a product of all is faster than its parts. Each takes paths one step further, and
        # a path visits each layer at most once.
        total = own
        for _ in range(min(self._n_layers, self._n) + 1):
            total = torch.addmv(own, between.T, total)
        return total

    def _layer_by_layer(
        self, total: torch.Tensor, between: torch.Tensor, reach: torch.Tensor
    ) -> torch.Tensor:
        """Carry influence down in one pass: a layer's is complete once those above are done."""
        for logit_or_layer in self._by_layer(reach):
            total.addmv_(between[logit_or_layer].T, total[logit_or_layer])
        return total

    def _by_layer(self, reach: torch.Tensor) -> list[torch.Tensor]:
        """The rows of the logits, then those of each layer from the top."""
        features = reach[self._n_logits :]
        order = features.argsort(descending=True, stable=True)
        sizes = features[order].unique_consecutive(return_counts=True)[1].tolist()
        return [torch.arange(self._n_logits), *(order + self._n_logits).split(sizes)]
