"""What a set of features is worth to a prediction, and what sets drawn at random are.

A metric of the prediction is measured with every feature of a graph (`full`), with all of them set
to 0 (`empty`), with all but the set's at 0 (`kept`) and with the set's alone at 0 (`removed`):

    completeness = (kept - empty) / (full - empty)
    necessity    = (full - removed) / (full - empty)

Completeness is what Marks et al. (2024) call the faithfulness of a circuit, with features set to 0
instead of their mean. Necessity is 1 less the faithfulness of the other features, which they look
at to see whether a circuit is complete. Over several prompts each number is the mean over these,
as in their paper, so that a prompt counts by how much hangs on its features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Self

# Logits that differ by less, and shares, are the same within the rounding of a model's numbers.
_SMALLEST_SPAN = 1e-4
_SAME_SHARE = 1e-4


@dataclass(frozen=True)
class Span:
    """The metric on a prompt as it is, and with all features of its graph set to 0."""

    full: float
    empty: float


@dataclass(frozen=True)
class Outcome:
    """The metric with a set of features kept alone, and with it removed."""

    kept: float
    removed: float


@dataclass(frozen=True)
class Chance:
    """A share that random sets have, beside that of the chosen set.

    `below` of the `n_sets` random sets have less than the chosen one.
    """

    mean: float
    low: float
    high: float
    below: int
    n_sets: int

    @classmethod
    def beside(cls, value: float, randoms: Sequence[float]) -> Self:
        below = sum(other < value - _SAME_SHARE for other in randoms)
        mean = fsum(randoms) / len(randoms)
        return cls(mean, min(randoms), max(randoms), below, len(randoms))

    @property
    def p_value(self) -> float:
        """The chance that a set drawn like the random ones has as much, by the permutation test."""
        return (1 + self.n_sets - self.below) / (1 + self.n_sets)


def completeness(spans: Sequence[Span], outcomes: Sequence[Outcome]) -> float | None:
    """How much of what the features do the set alone does: 1 is all of it, 0 nothing.

    None where the features change nothing, so that there is no share of it.
    """
    gained = fsum(outcome.kept - span.empty for span, outcome in zip(spans, outcomes, strict=True))
    return _share(gained, spans)


def necessity(spans: Sequence[Span], outcomes: Sequence[Outcome]) -> float | None:
    """How much of what the features do is lost without the set: 1 is all of it, 0 nothing."""
    lost = fsum(span.full - outcome.removed for span, outcome in zip(spans, outcomes, strict=True))
    return _share(lost, spans)


def _share(part: float, spans: Sequence[Span]) -> float | None:
    whole = fsum(span.full - span.empty for span in spans)
    return None if abs(whole) < _SMALLEST_SPAN * len(spans) else part / whole
