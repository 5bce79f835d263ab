"""How influence flows through a pruned graph: from the logits down along its links.

As in `attribution.influence`, a link hands on the share that it has of its target's inputs. Only
links that pruning kept count here, so the shares of a target's links add up to one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from attribution import PrunedGraph

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Check = Callable[[], None]  # raises when the job should stop

_ROWS_AT_ONCE = 256  # 10 MB of a graph of 10,000 nodes


@dataclass(frozen=True)
class Flow:
    """A pruned graph's links. Nodes are rows of the graph: features, errors, tokens, logits.

    Features are sorted by layer, and only read from lower layers.
    """

    n_nodes: int
    tokens: slice
    layers: Integers  # (n_features,); of a complete graph, sublayers
    positions: Integers  # (n_features,)
    logit_weights: Floats  # (n_logits,) their probabilities
    targets: Integers  # (n_links,), ascending
    sources: Integers  # (n_links,)
    shares: Floats  # (n_links,) of the target's inputs, with the link's sign

    @classmethod
    def of(cls, pruned: "PrunedGraph") -> "Flow":
        graph = pruned.graph
        places = graph.active_features.cpu()[graph.selected_features.cpu()].numpy()
        n_nodes, n_logits = len(pruned.node_mask), len(graph.logit_targets)
        targets, sources = pruned.edge_targets.cpu().numpy(), pruned.edge_sources.cpu().numpy()
        weights = _finite(pruned.edge_weights)
        return cls(
            n_nodes,
            slice(n_nodes - n_logits - graph.n_pos, n_nodes - n_logits),
            places[:, 0],
            places[:, 1],
            _finite(graph.logit_probabilities),
            targets,
            sources,
            _shares(targets, weights, n_nodes),
        )

    @property
    def n_features(self) -> int:
        return len(self.layers)

    @property
    def logits(self) -> slice:
        return slice(self.tokens.stop, self.n_nodes)

    @cached_property
    def nodes(self) -> Integers:
        """The nodes that have a link, ascending."""
        with_links = np.zeros(self.n_nodes, dtype=np.bool_)
        with_links[self.targets] = True
        with_links[self.sources] = True
        return np.flatnonzero(with_links)

    @cached_property
    def features(self) -> Integers:
        """The features that have a link, ascending."""
        return self.nodes[self.nodes < self.n_features]

    @cached_property
    def influence(self) -> Floats:
        """The influence of each node (n_nodes,) on the logits, over all paths."""
        there = np.zeros(self.n_nodes, dtype=np.float32)
        there[self.logits] = self.logit_weights
        for row in self._readers[::-1]:
            links = self.links_into(slice(row, row + 1))
            there[self.sources[links]] += np.abs(self.shares[links]) * there[row]
        return there

    def down(self, start: Floats, check: Check, *, signed: bool = False) -> Floats:
        """Let what is at the nodes flow to all that they read from, (n_nodes, n_columns).

        Args:
            start: (n_nodes, n_columns), what is at each node before any of it flows.
            check: raises when the job should stop.
            signed: links of negative weight turn what flows into its negative.
        """
        there = start.copy()
        for rows in self._blocks_from_the_top():
            check()
            links = self.links_into(rows)
            shares = self.shares[links] if signed else np.abs(self.shares[links])
            block = np.zeros((rows.stop - rows.start, self.n_nodes), dtype=np.float32)
            block[self.targets[links] - rows.start, self.sources[links]] = shares
            there += block.T @ there[rows]
        return there

    def up(
        self, start: Floats, rows: Integers, check: Check, most_links: int | None = None
    ) -> Floats:
        """Let what is at the nodes flow to these rows of features, (n_nodes, n_columns).

        Links of negative weight turn what flows through them into its negative.

        Args:
            start: (n_nodes, n_columns), what is at each node before any of it flows.
            rows: ascending; others hand on what they start with.
            check: raises when the job should stop.
            most_links: of each row, those that have most of its inputs; without it, all.
        """
        there = start.copy()
        for n, row in enumerate(rows.tolist()):
            links = self.links_into(slice(row, row + 1))
            sources, shares = self.sources[links], self.shares[links]
            if most_links is not None and len(shares) > most_links:
                strongest = np.argpartition(np.abs(shares), -most_links)[-most_links:]
                sources, shares = sources[strongest], shares[strongest]
            there[row] += shares @ there[sources]
            if n % _ROWS_AT_ONCE == 0:
                check()
        return there

    def _blocks_from_the_top(self) -> Iterator[slice]:
        """Yield all rows that have links, so that a row comes before what it reads from."""
        starts = [0, *(np.flatnonzero(np.diff(self.layers)) + 1).tolist()]
        layers = zip(starts, [*starts[1:], self.n_features], strict=True)
        for start, end in [(self.logits.start, self.n_nodes), *reversed(list(layers))]:
            for first in range(start, end, _ROWS_AT_ONCE):
                yield slice(first, min(first + _ROWS_AT_ONCE, end))

    def links_into(self, rows: slice) -> slice:
        """The links whose targets are these rows."""
        return slice(int(self._firsts[rows.start]), int(self._firsts[rows.stop]))

    @cached_property
    def _firsts(self) -> Integers:
        """The first link into each row, then the number of links: (n_nodes + 1,)."""
        return np.searchsorted(self.targets, np.arange(self.n_nodes + 1))

    @cached_property
    def _readers(self) -> list[int]:
        """The rows that links lead into, ascending: a row comes after what it reads from."""
        return np.flatnonzero(np.diff(self._firsts)).tolist()

    def strongest_paths(self, n_paths: int, first_position: int) -> list[list[int]]:
        """The strongest path to a logit from each of the tokens where these are strongest.

        A path is as strong as the product of its links' shares, times the logit's weight. It goes
        from a token through features to a logit. The strongest comes first.

        Args:
            first_position: tokens before it, as the one that begins every prompt, are left out
                unless there are no others.
        """
        strength = np.zeros(self.n_nodes, dtype=np.float32)
        strength[self.logits] = self.logit_weights
        following = np.zeros(self.n_nodes, dtype=np.int64)
        for row in self._readers[::-1]:
            links = self.links_into(slice(row, row + 1))
            sources, through = self.sources[links], np.abs(self.shares[links]) * strength[row]
            stronger = through >= strength[sources]  # of equal ones the lowest row's
            if row >= self.logits.start:
                # From a token straight to a logit: nothing to read, and often the strongest.
                stronger &= sources < self.tokens.start
            strength[sources[stronger]] = through[stronger]
            following[sources[stronger]] = row
        starts = np.arange(self.tokens.start, self.tokens.stop)
        if strength[starts[first_position:]].any():
            starts = starts[first_position:]
        order = np.argsort(-strength[starts], kind="stable")[:n_paths]
        return [self._path(start, following) for start in starts[order].tolist() if strength[start]]

    def _path(self, start: int, following: Integers) -> list[int]:
        path = [start]
        while path[-1] < self.logits.start:
            path.append(int(following[path[-1]]))
        return path


def _finite(values: "Tensor") -> Floats:
    """The values as an array, with 0 for those that JSON doesn't have.

    A graph with such values is refused later, when it is written.
    """
    array: Floats = values.float().cpu().numpy()
    return array if np.isfinite(array).all() else np.nan_to_num(array, posinf=0, neginf=0)


def _shares(targets: Integers, weights: Floats, n_nodes: int) -> Floats:
    """The share of each link in the absolute weights of all links into its target."""
    if not len(targets):
        return weights
    firsts = np.searchsorted(targets, np.arange(n_nodes + 1))
    n_links = np.diff(firsts)
    norms = np.zeros(n_nodes, dtype=np.float32)
    norms[n_links > 0] = np.add.reduceat(np.abs(weights), firsts[:-1][n_links > 0])
    shares: Floats = weights / np.repeat(np.maximum(norms, np.finfo(np.float32).tiny), n_links)
    return shares
