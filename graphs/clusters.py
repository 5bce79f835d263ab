"""Features of a pruned graph that read and write alike, in groups.

Average linkage: the two groups whose members are least apart on average become one, again and
again. The order of merges is found along chains of nearest neighbours (Murtagh 1983), which takes
time and memory of the square of the number of features.
"""

import numpy as np

from graphs.flow import Floats, Flow, Integers

# Numbers that a feature's reads and writes are described by. A larger graph's nodes share them, by
# chance: what two features have in common is then true to some 3%.
_WIDTH = 1_024
_ROWS_AT_ONCE = 256
# Features that have nothing in common are 1 apart, and those that are farther than _NEAR positions
# apart have nothing in common. What the whole depth of the model adds, what each position adds, up
# to _NEAR, and what it adds that neither matters. `benchmarks/circuits.py` measures what these make
# of the demo model's groups.
_DEPTH, _POSITION, _NEAR, _INFLUENCE = 0.25, 0.25, 4, 0.75

Merge = tuple[float, int, int]


def distances(flow: Flow, features: Integers) -> Floats:
    """How far apart features are (n, n).

    Two features are near that get the same shares of their inputs from the same nodes, and give
    the same shares to the same nodes (a node counts by its influence), in layers and at positions
    that are near. A feature of little influence is far from all, so that groups have what matters.

    Args:
        features: rows of the graph (n,), sorted by position.
    """
    profiles, n = _profiles(flow, features), len(features)
    layers, positions = flow.layers[features], flow.positions[features]
    depth = _DEPTH / max(1, int(flow.layers.max(initial=0)))
    influence = flow.influence[features]
    lack = 1 - influence / max(influence.max(initial=0), np.finfo(np.float32).tiny)
    apart = np.empty((n, n), dtype=np.float32)
    for start in range(0, n, _ROWS_AT_ONCE):
        rows, rest = slice(start, min(start + _ROWS_AT_ONCE, n)), slice(start, n)
        steps = np.abs(positions[rows, None] - positions[rest])
        near = int(np.count_nonzero((steps <= _NEAR).any(0)))  # these come first
        common = profiles[rows] @ profiles[start : start + near].T
        block = 1 + np.minimum(_POSITION * steps, _POSITION * _NEAR)
        block[:, :near] -= np.where(steps[:, :near] <= _NEAR, common, 0)
        block += depth * np.abs(layers[rows, None] - layers[rest])
        block += _INFLUENCE / 2 * (lack[rows, None] + lack[rest])
        apart[rows, rest] = block
        apart[rest, rows] = apart[rows, rest].T  # to the last bit: chains would go in circles
    return apart


def _profiles(flow: Flow, features: Integers) -> Floats:
    """What each feature reads and writes, as a row (n, width) of length 1."""
    number = np.full(flow.n_nodes, -1)
    number[features] = np.arange(len(features))
    reads, writes = number[flow.targets] >= 0, number[flow.sources] >= 0
    rows = np.concatenate([number[flow.targets[reads]], number[flow.sources[writes]]])
    columns = np.concatenate([flow.sources[reads], flow.n_nodes + flow.targets[writes]])
    matters = np.sqrt(flow.influence[flow.targets[writes]])
    values = np.concatenate([flow.shares[reads], flow.shares[writes] * matters])
    width = 2 * flow.n_nodes
    if width > _WIDTH:
        draw = np.random.default_rng(0)
        bucket, sign = draw.integers(_WIDTH, size=width), draw.choice((-1, 1), size=width)
        columns, values, width = bucket[columns], values * sign[columns], _WIDTH
    cells = np.bincount(rows * width + columns, values, minlength=len(features) * width)
    profiles = cells.reshape(len(features), width).astype(np.float32)
    lengths = np.linalg.norm(profiles, axis=1, keepdims=True)
    unit: Floats = profiles / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def merges(apart: Floats) -> list[Merge]:
    """All merges of average linkage, the nearest first: how far apart, and a member of each side.

    Args:
        apart: (n, n) and symmetric; it is overwritten.
    """
    n = len(apart)
    np.fill_diagonal(apart, np.inf)
    sizes, alive = np.ones(n, dtype=np.float32), np.ones(n, dtype=np.bool_)
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
        mean = sizes[one] * apart[one] + sizes[other] * apart[other]
        mean /= sizes[one] + sizes[other]
        mean[one] = np.inf
        apart[one] = apart[:, one] = mean
        apart[other] = apart[:, other] = np.inf
        sizes[one] += sizes[other]
        alive[other] = False
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


def group(flow: Flow, most_groups: int) -> list[list[int]]:
    """Rows of features, two or more a group: the nearest, until groups have half of all features.

    There are none where fewer than two features have links.

    Args:
        most_groups: while there are more, merging goes on.
    """
    features = flow.features[np.argsort(flow.positions[flow.features], kind="stable")]
    groups = _Groups(len(features))
    for _, one, other in merges(distances(flow, features)):
        if 2 * groups.n_grouped >= len(features) and groups.n_groups <= most_groups:
            break
        groups.merge(one, other)
    return [sorted(features[members].tolist()) for members in groups.of_two_or_more()]
