"""Random sets of features that are as many and as strong as a chosen set."""

import random
from collections.abc import Sequence, Set

# How far the summed strength of a random set may be from the chosen set's, as a share of it.
TOLERANCE = 0.05
# Exchanges that are tried for each feature of the graph, and at most in all.
_TRIES_A_FEATURE = 40
_MOST_TRIES = 20_000


def draw(
    strengths: Sequence[float], chosen: Set[int], count: int, rng: random.Random
) -> list[frozenset[int]]:
    """Draw `count` sets, each independently of the others, from all features of a graph.

    A set begins as any of as many features as the chosen set has. Then one or two of its features
    are exchanged for others, again and again. An exchange holds if the summed strength ends within
    TOLERANCE of the chosen set's, or else no farther from it than before. So sets within the
    tolerance are all equally likely. Where none was found, a set is as near as it came.
    A random set may share features with the chosen one.

    Args:
        strengths: of each feature of the graph.
        chosen: positions in `strengths`, at least one.
    """
    wanted = sum(strengths[n] for n in chosen)
    return [_drawn(strengths, len(chosen), wanted, rng) for _ in range(count)]


def _drawn(
    strengths: Sequence[float], size: int, wanted: float, rng: random.Random
) -> frozenset[int]:
    order = list(range(len(strengths)))
    rng.shuffle(order)
    members, others = order[:size], order[size:]
    if not others:
        return frozenset(members)
    total = sum(strengths[n] for n in members)
    most = min(len(members), len(others), 2)
    for _ in range(min(_TRIES_A_FEATURE * len(strengths), _MOST_TRIES)):
        n_exchanged = rng.randint(1, most)
        leaving = rng.sample(range(len(members)), n_exchanged)
        coming = rng.sample(range(len(others)), n_exchanged)
        changed = total + sum(
            strengths[others[new]] - strengths[members[old]]
            for old, new in zip(leaving, coming, strict=True)
        )
        if abs(changed - wanted) <= max(abs(total - wanted), TOLERANCE * wanted):
            total = changed
            for old, new in zip(leaving, coming, strict=True):
                members[old], others[new] = others[new], members[old]
    return frozenset(members)
