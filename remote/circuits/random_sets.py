"""Random sets of features that are as many and as strong as a chosen set."""

import math
import random
from collections.abc import Sequence, Set

# How far the summed strength of a random set may be from the chosen set's, as a share of it.
TOLERANCE = 0.05
# Exchanges that are tried from one beginning: for each feature of the graph, and in all.
_TRIES_A_FEATURE = 10
_FEWEST_TRIES, _MOST_TRIES = 1_000, 40_000
_MOST_BEGINNINGS = 10  # with no more than _MOST_TRIES from all of them


def draw(
    strengths: Sequence[float], chosen: Set[int], count: int, rng: random.Random
) -> list[frozenset[int]]:
    """Draw `count` sets, each independently of the others, from all features of a graph.

    A set begins as any of as many features as the chosen set has. Then one or two of its features
    are exchanged for others, again and again. An exchange holds if the summed strength ends within
    TOLERANCE of the chosen set's, or else no farther from it than before. So sets within the
    tolerance are all equally likely. Where exchanges don't come so near, others are made from
    another beginning. Where none was found, the set is the nearest one.
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
    n_tries = min(max(_TRIES_A_FEATURE * len(strengths), _FEWEST_TRIES), _MOST_TRIES)
    nearest: list[int] = []
    least = math.inf
    for _ in range(min(_MOST_BEGINNINGS, _MOST_TRIES // n_tries)):
        found = _exchanged(strengths, size, wanted, n_tries, rng)
        distance = abs(math.fsum(strengths[n] for n in found) - wanted)
        if distance < least:
            nearest, least = found, distance
        if least <= TOLERANCE * wanted:
            break
    return frozenset(nearest)


def _exchanged(
    strengths: Sequence[float], size: int, wanted: float, n_tries: int, rng: random.Random
) -> list[int]:
    """Any of the sets of this size, after exchanges that bring it near what is wanted."""
    order = list(range(len(strengths)))
    rng.shuffle(order)
    inside, outside = order[:size], order[size:]
    if not outside:
        return inside
    total, near = sum(strengths[n] for n in inside), TOLERANCE * wanted
    for _ in range(n_tries):
        places = [(_any_of(inside, rng), _any_of(outside, rng)) for _ in range(_how_many(rng))]
        if len(places) == 2 and (places[0][0] == places[1][0] or places[0][1] == places[1][1]):
            continue
        changed = total
        for old, new in places:
            changed += strengths[outside[new]] - strengths[inside[old]]
        if abs(changed - wanted) <= max(abs(total - wanted), near):
            total = changed
            for old, new in places:
                inside[old], outside[new] = outside[new], inside[old]
    return inside


def _any_of(members: Sequence[int], rng: random.Random) -> int:
    return int(rng.random() * len(members))  # much faster than randrange


def _how_many(rng: random.Random) -> int:
    return 1 if rng.random() < 0.5 else 2
