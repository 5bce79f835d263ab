"""Which features to expand next: those with most influence on the logits, as far as is known.

Ameisen et al. 2025, *Circuit Tracing*, "Node Influence": with rows of absolute edges normalised to
sum to one, a node's influence is the sum over all paths from it to the logits. Only rows already
computed take part, so the square block between those nodes holds all that repeats: it is solved
for the influence of each row, and one product with the rows gives every source's.
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
        n_max, n_logits = len(rows), len(logit_probabilities)
        self._rows = rows
        self._logit_probabilities = logit_probabilities.to(rows)
        self._norms = rows.new_ones(n_max)
        self._between = rows.new_zeros(n_max, n_max)  # normalised; [target, source], by row
        # The source that each row's node is; logits are no source.
        self._nodes = torch.full((n_max,), -1, device=rows.device)
        self._n = 0
        self._n_logits = n_logits
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
        weights = self._row_influence() / self._norms[: self._n]
        influence = self._rows.new_zeros(self._n_active)
        add_influence_(influence, self._rows[: self._n, : self._n_active], weights, reach)
        return influence

    def _take_in(self, nodes: torch.Tensor, reach: torch.Tensor) -> None:
        old, new = self._n, self._n_logits + len(nodes)
        self._nodes[self._n_logits : new] = nodes
        from_features, others = self._rows[old:new].tensor_split([self._n_active], 1)
        norms = row_norms(from_features, reach[old:]) + row_norms(others)
        self._norms[old:new] = norms.clamp(min=1e-8)
        added, first = self._nodes[max(old, self._n_logits) : new], max(old, self._n_logits)
        norms = self._norms[:new, None]
        self._between[:new, first:new] = self._rows[:new, added].abs() / norms
        if old > self._n_logits:
            known = self._nodes[self._n_logits : old]
            self._between[old:new, self._n_logits : old] = (
                self._rows[old:new, known].abs() / norms[old:]
            )
        self._n = new

    def _row_influence(self) -> torch.Tensor:
        """Influence of each row's own node, a logit's being its probability."""
        between = self._between[: self._n, : self._n]
        arriving = between.new_zeros(self._n)
        arriving[: self._n_logits] = self._logit_probabilities
        total = arriving.clone()
        for _ in range(self._n_layers + 1):  # a path visits each layer at most once
            arriving = arriving @ between
            total += arriving
            # A GPU is not asked: to wait for its answer takes longer than the products.
            if total.device.type == "cpu" and not arriving.any():
                break
        return total
