"""The worth of a set of features over graphs, with chance beside, in words and as JSON."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any

from rich.console import Console
from rich.table import Table

from remote.circuits.experiments import Ask, Measured, Options, measure
from remote.circuits.random_sets import TOLERANCE
from remote.circuits.sets import CircuitGraph, Selection
from remote.circuits.worth import Chance, Outcome, Span, completeness, necessity
from remote.errors import RowsFailed, WorkerFailure, WrongFile
from remote.terminal.text import TABLE_STYLE, end_of, line, print_named, quoted

_LONGEST_PROMPT = 48

Share = Callable[[Sequence[Span], Sequence[Outcome]], float | None]


@dataclass(frozen=True)
class Worth:
    """Completeness and necessity of a set, and those of random sets; None where there are none."""

    completeness: float | None
    necessity: float | None
    chance_of_completeness: Chance | None
    chance_of_necessity: Chance | None


@dataclass(frozen=True)
class Report:
    """`left_out` says of each graph without any feature of the set why it is not measured, and
    `failed` of each whose job failed."""

    measured: list[Measured]
    left_out: list[str]
    options: Options
    failed: list[str] = field(default_factory=list)

    def worth_in_all(self) -> Worth:
        return worth_of(self.measured)

    def raise_for_failures(self) -> None:
        """Raise RowsFailed where the job of a graph failed."""
        if self.failed:
            total = len(self.measured) + len(self.failed)
            raise RowsFailed(f"{len(self.failed)} of {total} graphs failed; it goes without them")


def measure_all(
    graphs: Iterable[CircuitGraph], selection: Selection, ask: Ask, options: Options
) -> Report:
    """Try the set in each graph that has a feature of it.

    Raises:
        WrongFile: no graph has one, or one is not of the worker's model.
        WorkerFailure: the jobs of all graphs failed; this is the first one's.
        Unreachable, and what else `ask` raises: as `measure` does.
    """
    chosen: list[tuple[CircuitGraph, frozenset[int]]] = []
    left_out: list[str] = []
    for graph in graphs:
        try:
            chosen.append((graph, selection.of(graph)))
        except WrongFile as reason:
            left_out.append(str(reason))
    if not chosen:
        others = f" (and {len(left_out) - 1} more graphs)" if len(left_out) > 1 else ""
        raise WrongFile(f"{left_out[0]}{others}" if left_out else "there is no graph")
    measured: list[Measured] = []
    failures: list[WorkerFailure] = []
    for graph, members in chosen:
        missing = selection.missing(graph)
        try:
            measured.append(measure(graph, members, ask, options, n_missing=missing))
        except WorkerFailure as failure:
            failures.append(failure)
    if not measured:
        raise failures[0]
    return Report(measured, left_out, options, [str(failure) for failure in failures])


def worth_of(measured: Sequence[Measured]) -> Worth:
    """The worth over these graphs together; the n-th random sets of all of them are one case."""
    spans = [one.span for one in measured]
    outcomes = [one.outcome for one in measured]
    drawn = [
        [random_set.outcome for random_set in of_all]
        for of_all in zip(*(one.randoms for one in measured), strict=True)
    ]

    def chance(share: Share) -> Chance | None:
        value = share(spans, outcomes)
        if value is None or not drawn:
            return None
        shares = (share(spans, of_all) for of_all in drawn)
        return Chance.beside(value, [found for found in shares if found is not None])

    return Worth(
        completeness(spans, outcomes),
        necessity(spans, outcomes),
        chance(completeness),
        chance(necessity),
    )


def print_report(console: Console, report: Report) -> None:
    """What was tried, the shares with chance beside, and what the model says in each case."""
    console.print()
    for name, words in _explained(report):
        print_named(console, f"{name:<10}", words)
    console.print()
    for number, one in enumerate(report.measured, 1):
        words = f"{number}  {_compared(one)} after {_prompt(one)}  {line(str(one.graph.path))}"
        console.print(words, soft_wrap=True)
    shares = Table("", "features", "", "set", "chance", "below", **TABLE_STYLE)
    for number, one in enumerate(report.measured, 1):
        size = f"{len(one.chosen)} of {len(one.graph.sites)}"
        _add_shares(shares, str(number), size, worth_of([one]))
    if len(report.measured) > 1:
        _add_shares(shares, "all", "", report.worth_in_all())
    console.print()
    console.print(shares)
    _print_metric(console, report)
    for reason in report.left_out:
        console.print(f"left out  {line(reason)}", soft_wrap=True)
    for reason in report.failed:
        console.print(f"failed    {line(reason)}", soft_wrap=True)


def _explained(report: Report) -> Iterable[tuple[str, str]]:
    options, measured = report.options, report.measured
    thresholds = {one.graph.metadata.node_threshold for one in measured}
    pruned = thresholds - {1.0}
    kept = ", ".join(sorted("?" if t is None else f"{t:g}" for t in thresholds))
    yield (
        "features",
        f"all that the graph has (node_threshold {kept})"
        + ("; what was pruned away stays as it is, 1 leaves nothing out" if pruned else ""),
    )
    yield "metric", _metric(report)
    ratio = _strength_range(measured)
    shared = _mean(
        [random_set.n_shared / len(one.chosen) for one in measured for random_set in one.randoms]
    )
    if options.n_random:
        equal = "number" if options.strength == "number" else f"number and {options.strength}"
        yield (
            "chance",
            f"{options.n_random} random sets of the same {equal}{ratio}, which have "
            f"{shared:.0%} of the set's own features",
        )
    n_missing = sum(one.n_missing for one in measured)
    if n_missing:
        n_named = sum(one.n_missing > 0 for one in measured)
        yield "missing", f"{n_missing} of the named features, in {n_named} of the graphs"


def _metric(report: Report) -> str:
    if report.options.metric != "logit-difference":
        return f"the {report.options.metric} of the token"
    if all(one.against for one in report.measured):
        return "the first token's logit less the other's"
    return "the token's logit less that of all others together (the logarithm of its odds)"


def _strength_range(measured: Sequence[Measured]) -> str:
    ratios = [
        random_set.strength / one.strength
        for one in measured
        for random_set in one.randoms
        if one.strength
    ]
    if not ratios:
        return ""
    outside = sum(abs(ratio - 1) > TOLERANCE + 1e-9 for ratio in ratios)
    words = f" ({min(ratios):.2f} to {max(ratios):.2f} of the set's"
    return words + (f"; {outside} of {len(ratios)} could come no nearer)" if outside else ")")


def _print_metric(console: Console, report: Report) -> None:
    columns = ("", "all features", "without the set", "the set alone", "no features")
    table = Table(*columns, **TABLE_STYLE)
    for number, one in enumerate(report.measured, 1):
        values = (one.span.full, one.outcome.removed, one.outcome.kept, one.span.empty)
        said = one.predictions
        likeliest = (said.full, said.removed, said.kept, said.empty)
        cells = (
            f"{_rounded(value)} {quoted(token.token)}"
            for value, token in zip(values, likeliest, strict=True)
        )
        table.add_row(str(number), *cells)
    console.print("\nThe metric, and the likeliest next token")
    console.print(table)


def _compared(one: Measured) -> str:
    sides = (", ".join(map(quoted, side)) for side in (one.target, one.against) if side)
    return " - ".join(sides)


def _prompt(one: Measured) -> str:
    return quoted(end_of(one.graph.metadata.prompt, _LONGEST_PROMPT))


def _add_shares(table: Table, name: str, size: str, worth: Worth) -> None:
    for words, share, chance in (
        ("completeness", worth.completeness, worth.chance_of_completeness),
        ("necessity", worth.necessity, worth.chance_of_necessity),
    ):
        beside = ["-", "-"]
        if chance is not None:
            low, high = _rounded(chance.low), _rounded(chance.high)
            beside = [
                f"{_rounded(chance.mean)} ({low} to {high})",
                f"{chance.below} of {chance.n_sets}",
            ]
        table.add_row(name, size, words, "-" if share is None else _rounded(share), *beside)
        name = size = ""


def _rounded(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}"  # without the sign of -0.0


def as_json(report: Report) -> dict[str, Any]:
    """All of it, in the form that `--json` prints."""
    options = report.options
    return {
        "metric": options.metric,
        "random_sets": {
            "count": options.n_random,
            "strength": options.strength,
            "tolerance": TOLERANCE,
            "seed": options.seed,
        },
        "held": dict(options.held),
        "graphs": [_fields(one) for one in report.measured],
        "left_out": report.left_out,
        "failed": report.failed,
        "all": _worth_fields(report.worth_in_all()),
    }


def _fields(one: Measured) -> dict[str, Any]:
    metadata = one.graph.metadata
    return {
        "file": str(one.graph.path),
        "slug": metadata.slug,
        "prompt": metadata.prompt,
        "node_threshold": metadata.node_threshold,
        "target": list(one.target),
        "against": list(one.against),
        "n_features": len(one.graph.sites),
        "set": [one.graph.sites[n].fields() for n in sorted(one.chosen)],
        "n_missing": one.n_missing,
        "metric": {**asdict(one.span), **asdict(one.outcome)},
        "next_token": asdict(one.predictions),
        "activation_alone": one.activation_alone,
        "strength": one.strength,
        **_worth_fields(worth_of([one])),
        "random_sets": [
            {
                "metric": asdict(random_set.outcome),
                "circuit_completeness": completeness([one.span], [random_set.outcome]),
                "circuit_necessity": necessity([one.span], [random_set.outcome]),
                "strength": random_set.strength,
                "n_shared": random_set.n_shared,
            }
            for random_set in one.randoms
        ],
    }


def _worth_fields(worth: Worth) -> dict[str, Any]:
    return {
        "circuit_completeness": worth.completeness,
        "circuit_necessity": worth.necessity,
        "chance": {
            "circuit_completeness": _chance_fields(worth.chance_of_completeness),
            "circuit_necessity": _chance_fields(worth.chance_of_necessity),
        },
    }


def _chance_fields(chance: Chance | None) -> dict[str, Any] | None:
    return None if chance is None else {**asdict(chance), "p_value": chance.p_value}


def _mean(numbers: Sequence[float]) -> float:
    return fsum(numbers) / len(numbers) if numbers else 0.0
