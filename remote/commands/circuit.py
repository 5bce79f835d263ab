"""`client.py circuit`: graphs in, what a set of their features is worth out."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from rich.console import Console

from errors import InvalidInput
from remote.batch.folder import graph_files
from remote.circuits.experiments import Ask, Options
from remote.circuits.report import Report, as_json, measure_all, print_report
from remote.circuits.sets import CircuitGraph, NamedFeature, Selection
from remote.commands.connecting import connect
from remote.terminal.display import Display
from remote.terminal.json_output import print_json


def run(args: Namespace, out: Console, err: Console) -> None:
    """Measure the set that the arguments name, and print what it is worth."""
    with connect(args) as client, Display(err) as display:
        report = _measured(
            args, lambda job: client.run(job, display, args.timeout), client.transcoders
        )
    if args.json:
        print_json(as_json(report))
    else:
        print_report(out, report)
    report.raise_for_failures()


def _measured(args: Namespace, ask: Ask, worker_s_set: Callable[[], str | None]) -> Report:
    """Try the set that the arguments name in each of the graphs.

    Args:
        worker_s_set: the name of the set that the worker has, where it says so.

    Raises:
        WrongFile: a file is no graph, none has a feature of the set, or one is not of the worker's
            model or set.
        InvalidInput: options don't go together.
        WorkerFailure, Unreachable, and what `ask` raises: a job failed or gave nothing usable.
    """
    held: dict[str, Any] = {
        "constrained_layers": args.constrained_layers,
        "freeze_attention": args.freeze_attention,
    }
    options = Options(
        metric=args.metric,
        target=tuple(args.target or ()),
        against=tuple(args.against or ()),
        n_random=args.random,
        strength=args.strength,
        seed=args.seed,
        held=tuple((name, value) for name, value in held.items() if value is not None),
    )
    selection = _selection(args)
    graphs = [CircuitGraph.read(file) for path in args.graphs for file in graph_files(path)]
    other = None if args.set_of is None else CircuitGraph.read(args.set_of)
    first = other or graphs[0]
    for graph in graphs:
        graph.origin.check_same(first.origin)
    first.origin.check_worker(worker_s_set())
    if other is not None:
        selection = _everywhere(other, selection)
    return measure_all(graphs, selection, ask, options)


def _selection(args: Namespace) -> Selection:
    given = {
        "--features": args.features,
        "--group": args.groups,
        "--strongest": args.strongest,
    }
    named = [option for option, value in given.items() if value]
    if len(named) > 1:
        raise InvalidInput(f"{' and '.join(named)} each choose a set; give one of them")
    return Selection(args.features or (), args.groups or (), args.strongest)


def _everywhere(other: CircuitGraph, selection: Selection) -> Selection:
    """The set's features in this graph, wherever they are in another."""
    keys = sorted({other.sites[n].key for n in selection.of(other)})
    return Selection([NamedFeature(key, None) for key in keys])
