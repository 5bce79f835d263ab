"""The experiments of a circuit's worth on one graph: what is asked of the worker, what it says.

The worker is asked twice or more for a graph: `forward-pass` for the prompt's tokens and likeliest
continuation, and `intervene` for the experiments. Each set of features takes two of them, the set
alone set to 0 and all others set to 0; together they are all features of the graph set to 0.
Features that are not set are free: what they do is computed from what is left.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum, log, log1p
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from errors import InvalidInput
from remote.circuits.random_sets import draw
from remote.circuits.sets import CircuitGraph
from remote.circuits.worth import Outcome, Span
from remote.errors import Unreachable, WorkerFailure, WrongFile
from schemas import (
    MAX_EXPERIMENTS,
    MAX_FEATURES,
    MAX_GROUPS,
    ForwardPassResponse,
    InterveneResponse,
    InterventionOutcome,
)

Metric = Literal["logit-difference", "logit", "probability"]
Strength = Literal["activation", "influence", "number"]

T = TypeVar("T")
U = TypeVar("U")

# The output of a job, given as its input.
Ask = Callable[[dict[str, Any]], dict[str, Any]]

# The nearest that a float32 comes to 0 and to 1, so that the odds have a logarithm.
_SMALLEST_PROBABILITY, _LARGEST_PROBABILITY = 2.0**-149, 1 - 2.0**-25

# The names of the groups of a request. In the first request of a graph the chosen set is the first.
_SET, _OTHERS = "set {}", "others {}"
_CHOSEN = _SET.format(0)

# A set's two groups, and its two experiments beside the one without any feature.
_MOST_SETS = min(MAX_GROUPS // 2, (MAX_EXPERIMENTS - 1) // 2)


@dataclass(frozen=True)
class Options:
    """What is measured, beside which random sets, with what held.

    The metrics are of the `target`, which without one is the graph's first, or else the likeliest
    token:

        logit-difference: its logit less that of `against`; without tokens to compare with less
            that of all other tokens together, which makes it the logarithm of the target's odds.
        logit: its logit. Something that adds to all logits changes it, and no prediction.
        probability: its probability, which hides what happens near 0 and 1.

    Of several tokens it is the mean of the logits, and the sum of the probabilities. `held` are the
    fields of `intervene` that say what is frozen.
    """

    metric: Metric = "logit-difference"
    target: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    n_random: int = 20
    strength: Strength = "activation"
    seed: int = 0
    held: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.against and self.metric != "logit-difference":
            raise InvalidInput(
                f"a token to compare with is for the metric logit-difference, not for {self.metric}"
            )
        both = set(self.target) & set(self.against)
        if both:
            raise InvalidInput(f"{min(both)!r} is on both sides of the difference")


@dataclass(frozen=True)
class RandomSet:
    """A random set, tried. `n_shared` of its features are in the chosen set too."""

    members: frozenset[int]
    outcome: Outcome
    strength: float
    n_shared: int


@dataclass(frozen=True)
class Prediction:
    token: str
    probability: float


@dataclass(frozen=True)
class Cases(Generic[T]):
    """What is found with all features, with none, with the set alone, and without the set."""

    full: T
    empty: T
    kept: T
    removed: T

    def of_each(self, read: Callable[[T], U]) -> "Cases[U]":
        return Cases(*map(read, (self.full, self.empty, self.kept, self.removed)))


@dataclass(frozen=True)
class Measured:
    """A set of features in one graph, tried.

    `activation_alone` is the set's summed activation when it is alone, as a share of what it is.
    """

    graph: CircuitGraph
    chosen: frozenset[int]
    n_missing: int
    target: tuple[str, ...]
    against: tuple[str, ...]
    span: Span
    outcome: Outcome
    predictions: Cases[Prediction]  # the likeliest next token
    activation_alone: float
    strength: float
    randoms: list[RandomSet]


def measure(
    graph: CircuitGraph,
    chosen: frozenset[int],
    ask: Ask,
    options: Options,
    *,
    n_missing: int = 0,
) -> Measured:
    """Try a set of a graph's features, and random sets beside it.

    Raises:
        WrongFile: the graph has too many features, or is not of the worker's model.
        WorkerFailure: a job failed; the message begins with the graph's file.
        Unreachable: what came is no output of these actions.
    """
    if len(graph.sites) > MAX_FEATURES:
        raise WrongFile(
            f"{graph.path}: it has {len(graph.sites)} features, and a worker sets {MAX_FEATURES} "
            "at most; make it with a lower node_threshold or max_feature_nodes"
        )
    try:
        target, against = _question(graph, ask, options)
        strengths = _strengths(graph, options.strength)
        sets = [chosen, *_random_sets(graph, chosen, strengths, options)]
        answers = [
            answer
            for first in range(0, len(sets), _sets_at_once(graph))
            for answer in _tried(
                graph, sets[first : first + _sets_at_once(graph)], ask, [*target, *against], options
            )
        ]
    except WorkerFailure as failure:
        message = f"{graph.path}: {failure.message}"
        raise WorkerFailure(failure.code, message) from None
    except ValidationError:
        raise Unreachable(
            "the worker answered with something else than these actions' outputs; is it this "
            "version of the worker?"
        ) from None
    return _measured(graph, sets, answers, strengths, n_missing, (target, against), options)


def _question(
    graph: CircuitGraph, ask: Ask, options: Options
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tokens whose prediction is measured, and those to compare with."""
    target, against = options.target, options.against
    if not target:
        target, of_graph = _asked_of(graph)
        if options.metric == "logit-difference":
            against = against or of_graph
    job = {"action": "forward-pass", "max_n_logits": 1 + len(against), "desired_logit_prob": 1.0}
    passed = ForwardPassResponse.model_validate(ask({**job, **_prompt(graph)}))
    if passed.input_tokens != graph.metadata.prompt_tokens:
        raise WrongFile(
            f"{graph.path}: the worker reads its prompt as {len(passed.input_tokens)} other tokens "
            f"than the graph's {len(graph.metadata.prompt_tokens)}; is it of this model?"
        )
    likeliest = [logit.token for logit in passed.salient_logits if logit.token not in against]
    return target or tuple(likeliest[:1]), against


def _asked_of(graph: CircuitGraph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tokens of the graph's first target, where it was made for some; a feature has none."""
    targets = graph.metadata.attribution_targets
    first = targets[0] if isinstance(targets, list) and targets else None
    if isinstance(first, str):
        return (first,), ()
    if isinstance(first, dict) and "plus" in first:
        plus, minus = (first.get(side) or [] for side in ("plus", "minus"))
        if all(isinstance(token, str) for token in [*plus, *minus]):
            return tuple(plus), tuple(minus)
    return (), ()


def _prompt(graph: CircuitGraph) -> dict[str, Any]:
    metadata = graph.metadata
    return {"prompt": metadata.prompt, **({"model_id": metadata.scan} if metadata.scan else {})}


def _strengths(graph: CircuitGraph, strength: Strength) -> list[float]:
    if strength == "number":
        return [0.0] * len(graph.places)
    return [abs(getattr(place, strength)) for place in graph.places]


def _random_sets(
    graph: CircuitGraph, chosen: frozenset[int], strengths: Sequence[float], options: Options
) -> list[frozenset[int]]:
    # A graph's sets are the same whichever graphs are measured with it.
    rng = random.Random(f"{options.seed} {graph.metadata.prompt}")
    return draw(strengths, chosen, options.n_random, rng)


def _sets_at_once(graph: CircuitGraph) -> int:
    """How many sets one request holds: each takes all features of the graph."""
    return min(_MOST_SETS, MAX_FEATURES // len(graph.sites))


def _tried(
    graph: CircuitGraph,
    sets: Sequence[frozenset[int]],
    ask: Ask,
    targets: Sequence[str],
    options: Options,
) -> Iterator[Cases[InterventionOutcome]]:
    everything = range(len(graph.sites))
    groups: dict[str, list[dict[str, Any]]] = {}
    experiments: list[list[str]] = []
    for number, members in enumerate(sets):
        halves = {
            _SET.format(number): [n for n in everything if n in members],
            _OTHERS.format(number): [n for n in everything if n not in members],
        }
        groups |= {
            name: [graph.sites[n].fields() for n in half] for name, half in halves.items() if half
        }
        experiments += [[name] for name in halves]
    experiments.append([_CHOSEN, _OTHERS.format(0)])
    job = {
        "action": "intervene",
        "groups": groups,
        "experiments": [
            [{"group": name, "value": 0.0} for name in names if name in groups]
            for names in experiments
        ],
        "targets": list(dict.fromkeys(targets)),
        "top_k": 1,
        **dict(options.held),
    }
    response = InterveneResponse.model_validate(ask({**job, **_prompt(graph)}))
    *tried, empty = _checked(response, len(experiments), len(job["targets"]))
    for number in range(len(sets)):
        removed, kept = tried[2 * number : 2 * number + 2]
        yield Cases(response.baseline, empty, kept, removed)


def _checked(
    response: InterveneResponse, n_experiments: int, n_targets: int
) -> list[InterventionOutcome]:
    rows = [response.baseline, *response.experiments]
    if len(rows) != 1 + n_experiments or any(
        len(row.targets) != n_targets or not row.top for row in rows
    ):
        raise Unreachable("the worker answered for other experiments than it was asked for")
    return response.experiments


def _measured(
    graph: CircuitGraph,
    sets: Sequence[frozenset[int]],
    answers: Sequence[Cases[InterventionOutcome]],
    strengths: Sequence[float],
    n_missing: int,
    question: tuple[tuple[str, ...], tuple[str, ...]],
    options: Options,
) -> Measured:
    chosen, first = sets[0], answers[0]
    if first.full.groups.get(_CHOSEN) is None:
        raise WrongFile(
            f"{graph.path}: none of the set's features is active on this worker; it has other "
            "transcoders than the graph"
        )
    target, against = question

    def value(row: InterventionOutcome) -> float:
        return _value(row, target, against, options.metric)

    outcomes = [Outcome(value(answer.kept), value(answer.removed)) for answer in answers]
    return Measured(
        graph,
        chosen,
        n_missing,
        target,
        against,
        Span(value(first.full), value(first.empty)),
        outcomes[0],
        first.of_each(_likeliest),
        first.kept.groups.get(_CHOSEN) or 0.0,
        fsum(strengths[n] for n in chosen),
        [
            RandomSet(members, outcome, fsum(strengths[n] for n in members), len(members & chosen))
            for members, outcome in zip(sets[1:], outcomes[1:], strict=True)
        ],
    )


def _value(
    row: InterventionOutcome, target: Sequence[str], against: Sequence[str], metric: Metric
) -> float:
    """The metric of one experiment. `row.targets` has the tokens in the order that was asked."""
    reported = dict(zip(dict.fromkeys([*target, *against]), row.targets, strict=True))
    probability = fsum(reported[token].probability for token in target)
    if metric == "probability":
        return probability
    if metric == "logit":
        return _mean_logit(reported, target)
    if not against:
        return _log_odds(probability)
    return _mean_logit(reported, target) - _mean_logit(reported, against)


def _mean_logit(reported: dict[str, Any], tokens: Sequence[str]) -> float:
    return fsum(reported[token].logit for token in tokens) / len(tokens)


def _log_odds(probability: float) -> float:
    """The logit less that of all other tokens together, of a probability in float32."""
    bounded = min(max(probability, _SMALLEST_PROBABILITY), _LARGEST_PROBABILITY)
    return log(bounded) - log1p(-bounded)


def _likeliest(row: InterventionOutcome) -> Prediction:
    return Prediction(row.top[0].token, row.top[0].probability)
