"""Features of a pruned graph that are fed alike, in groups.

Complete linkage: the two groups become one whose two farthest members are nearest to each other,
again and again. The order of merges is found along chains of nearest neighbours (Murtagh 1983),
which takes time and memory of the square of the number of features.
"""

import numpy as np

from graphs.flow import Check, Floats, Flow, Integers

# Of a graph of more than _ALL features the strongest _SHARE are linked, so that its groups have
# these, and of a graph of thousands _MOST, which takes 4 MB. Where these are less than half of the
# features, others join them.
_ALL, _SHARE, _MOST = 100, 0.6, 1_024
# Numbers that a feature is described by. In a graph of more nodes, nodes share them by chance: what
# two features have in common is then true to some 4%, and only the strongest links of each count.
_WIDTH, _STRONGEST_LINKS = 512, 64
# Features that nothing in common feeds are 1 apart. What the whole depth of the model adds, what
# each position adds, up to _NEAR of them, and what it adds that both have the least influence.
# `benchmarks/circuits.py` measures what these make of the demo model's groups.
_DEPTH, _POSITION, _NEAR, _INFLUENCE = 0.25, 0.25, 4, 0.5
_MERGES_BETWEEN_CHECKS = 256

Merge = tuple[float, int, int]


def distances(flow: Flow, features: Integers, profiles: Floats) -> Floats:
    """How far apart features are (n, n).

    Two features are near that the same nodes feed, in layers and at positions that are near.
    Features of little influence are far from all, so that groups have what matters.

    Args:
        features: rows of the graph (n,).
        profiles: what feeds each (n, width), of length 1.
    """
    layers = flow.layers[features].astype(np.float32)
    positions = flow.positions[features].astype(np.float32)
    # A share of the features, as influence itself falls off too steeply in a large graph.
    influence = flow.influence[features]
    stronger = len(features) - np.searchsorted(np.sort(influence), influence, side="right")
    lack = (stronger / max(1, len(features) - 1)).astype(np.float32)
    apart: Floats = 1 - profiles @ profiles.T
    apart += _POSITION * np.minimum(np.abs(positions[:, None] - positions), _NEAR)
    apart += _DEPTH / max(1, int(flow.layers.max(initial=0))) * np.abs(layers[:, None] - layers)
    apart += _INFLUENCE / 2 * (lack[:, None] + lack)
    return np.minimum(apart, apart.T)  # the same to the last bit: chains would go in circles


def _profiles(flow: Flow, features: Integers, n: int, check: Check) -> Floats:
    """What feeds each of the first n features over all paths, itself too, as a row of length 1."""
    n_nodes = len(flow.nodes)
    start = np.zeros((flow.n_nodes, min(n_nodes, _WIDTH)), dtype=np.float32)
    if n_nodes <= _WIDTH:
        start[flow.nodes, np.arange(n_nodes)] = 1
        fed = flow.up(start, flow.features, check)
    else:
        draw = np.random.default_rng(0)
        start[flow.nodes, draw.integers(_WIDTH, size=n_nodes)] = draw.choice((-1, 1), n_nodes)
        fed = flow.up(start, np.sort(features[:n]), check, _STRONGEST_LINKS)
    profiles = fed[features[:n]]
    lengths = np.linalg.norm(profiles, axis=1, keepdims=True)
    unit: Floats = profiles / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def merges(apart: Floats, check: Check) -> list[Merge]:
    """All merges of complete linkage, the nearest first: how far apart, and a member of each side.

    Args:
        apart: (n, n) and symmetric; it is overwritten.
    """
    n = len(apart)
    np.fill_diagonal(apart, np.inf)
    alive = np.ones(n, dtype=np.bool_)
    found: list[Merge] = []
    chain: list[int] = []
    while len(found) < n - 1:
        if not chain:
            chain.append(int(alive.argmax()))
        one = chain[-1]
        other = int(apart[one].argmin())
        if len(chain) > 1 and apart[one, chain[-2]] <= apart[one, other]:
            other = chain[-2]
        else:
            chain.append(other)
            continue
        del chain[-2:]
        one, other = min(one, other), max(one, other)
        found.append((float(apart[one, other]), one, other))
        apart[one] = apart[:, one] = np.maximum(apart[one], apart[other])
        apart[other] = apart[:, other] = np.inf
        alive[other] = False
        if len(found) % _MERGES_BETWEEN_CHECKS == 0:
            check()
    return sorted(found)


class _Groups:
    """Groups as merges make them: at first every feature is alone."""

    def __init__(self, n: int) -> None:
        self.n_grouped = 0  # features that aren't alone
        self.n_groups = 0  # of two or more
        self._group_of = list(range(n))
        self._members = [[feature] for feature in range(n)]

    def merge(self, one: int, other: int) -> None:
        """Put the groups of two features together."""
        pair = (self._group_of[one], self._group_of[other])
        small, large = sorted(pair, key=lambda group: len(self._members[group]))
        n_alone = sum(len(self._members[group]) == 1 for group in pair)
        self.n_grouped += n_alone
        self.n_groups += n_alone - 1
        for member in self._members[small]:
            self._group_of[member] = large
        self._members[large] += self._members[small]
        self._members[small] = []

    def of_two_or_more(self) -> list[list[int]]:
        return sorted(sorted(members) for members in self._members if len(members) > 1)


def group(flow: Flow, most_groups: int, check: Check) -> list[list[int]]:
    """Rows of features, two or more a group: the nearest, until groups have half of all features.

    There are none where fewer than two features have links.

    Args:
        most_groups: while there are more, merging goes on.
        check: raises when the job should stop.
    """
    features = flow.features[np.argsort(-flow.influence[flow.features], kind="stable")]
    n_half = -(-len(features) // 2)
    linked = min(len(features), max(_ALL, round(_SHARE * len(features))), _MOST)
    profiles = _profiles(flow, features, max(linked, n_half), check)
    groups = _Groups(linked)
    apart = distances(flow, features[:linked], profiles[:linked])
    for _, one, other in merges(apart, check):
        if groups.n_grouped >= min(n_half, linked) and groups.n_groups <= most_groups:
            break
        groups.merge(one, other)
    found = groups.of_two_or_more()
    if linked < n_half:
        _join(found, profiles, range(linked, n_half))
    return [sorted(features[members].tolist()) for members in found]


def _join(groups: list[list[int]], profiles: Floats, others: range) -> None:
    """Put each of the others into the group whose members on average have most in common."""
    means = np.stack([profiles[members].mean(0) for members in groups])
    nearest = (profiles[others.start : others.stop] @ means.T).argmax(1)
    for other, number in zip(others, nearest.tolist(), strict=True):
        groups[number].append(other)
