"""What automatically chosen sets of features are worth, beside as strong ones drawn at random.

    OMP_NUM_THREADS=1 python -m benchmarks.circuit_worth
    python -m benchmarks.circuit_worth --prompts 10 --strength influence --node-threshold 0.8
    python -m benchmarks.circuit_worth --transcoder-set demo-crm

The demo's prompts about athletes in French and Spanish, each graph with all its active features
unless `--node-threshold` says otherwise. The sets are the features of most influence. Numbers are
those of `client.py circuit` over all prompts together: the completeness and the necessity of the
sets, and of 20 random sets for each with as many features and as much summed activation.
"""

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import orjson

import model_loader
from actions.answer import answer
from delivery import Spooled
from demo.language_steer import twins
from remote.circuit_experiments import Ask, Measured, Options, Strength, measure
from remote.circuit_report import Worth, worth_of
from remote.circuit_sets import CircuitGraph, Selection
from remote.circuit_worth import Chance
from settings import Settings

# A set of features in each of some graphs, as places in the graph's `sites`.
Circuits = Sequence[tuple[CircuitGraph, frozenset[int]]]

STRONGEST = (4, 8, 16, 32)


@dataclass(frozen=True)
class Row:
    """One way to choose sets, over all graphs."""

    name: str
    measured: list[Measured]

    @property
    def worth(self) -> Worth:
        return worth_of(self.measured)


def rows(circuits: Mapping[str, Circuits], ask: Ask, options: Options) -> Iterator[Row]:
    """Try the sets of each way to choose them, which are named."""
    for name, chosen in circuits.items():
        measured = [measure(graph, members, ask, options) for graph, members in chosen]
        yield Row(name, measured)


def print_table(found: Iterable[Row]) -> None:
    print("| set | features | completeness | at random | necessity | at random |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in found:
        n_chosen = mean(len(one.chosen) for one in row.measured)
        n_all = mean(len(one.graph.sites) for one in row.measured)
        worth = row.worth
        print(
            f"| {row.name} | {n_chosen:.0f} of {n_all:.0f} "
            f"| {_share(worth.completeness)} | {_chance(worth.chance_of_completeness)} "
            f"| {_share(worth.necessity)} | {_chance(worth.chance_of_necessity)} |",
            flush=True,
        )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"


def _chance(chance: Chance | None) -> str:
    if chance is None:
        return "-"
    return f"{chance.mean:.2f} ({chance.low:.2f} to {chance.high:.2f})"


def worker(transcoder_set: str | None = None) -> Ask:
    """The demo's worker, in this process; `demo-crm` is its complete set."""
    settings = Settings(_env_file=None, device="cpu", transcoder_set=transcoder_set)
    loaded = model_loader.load(settings)

    def ask(job: dict[str, Any]) -> dict[str, Any]:
        response = answer(job, loaded, settings)
        if isinstance(response, Spooled):
            with response:
                return dict(orjson.loads(b"".join(response.chunks())))
        return response.model_dump(mode="json")

    return ask


def graphs_of(prompts: Iterable[str], ask: Ask, **fields: object) -> list[CircuitGraph]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        graphs = []
        for prompt in prompts:
            document = ask({"action": "generate-graph", "prompt": prompt, **fields})
            path.write_bytes(orjson.dumps(document))
            graphs.append(CircuitGraph.read(path))
        return graphs


def automatic(prompts: Sequence[str], ask: Ask) -> Mapping[str, Circuits]:
    """What `supernodes: "auto"` finds in the pruned graph of each prompt, as sets of the features
    that are active on it: the groups, these and the pinned paths, and all that pruning kept."""
    pruned = graphs_of(prompts, ask, supernodes="auto")
    whole = graphs_of(prompts, ask, node_threshold=1)
    found: dict[str, list[tuple[CircuitGraph, frozenset[int]]]] = {}
    for own, graph in zip(pruned, whole, strict=True):
        number = {site: n for n, site in enumerate(graph.sites)}
        sets = {
            "groups": frozenset().union(*own.groups.values()),
            "groups and paths": own.subgraph(),
            "all that pruning kept": frozenset(range(len(own.sites))),
        }
        for name, members in sets.items():
            chosen = frozenset(number[own.sites[n]] for n in members)
            found.setdefault(name, []).append((graph, chosen))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=31, help="of each language, up to 31")
    parser.add_argument("--node-threshold", type=float, default=1.0)
    parser.add_argument("--strength", choices=get_args(Strength), default="activation")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--transcoder-set", help="demo-crm has features of attention too")
    args = parser.parse_args()
    ask = worker(args.transcoder_set)
    prompts = [fact.prompt for pair in twins()[: args.prompts] for fact in pair]
    graphs = graphs_of(prompts, ask, node_threshold=args.node_threshold)
    circuits = {
        f"the strongest {count}": [
            (graph, Selection(strongest=count).of(graph)) for graph in graphs
        ]
        for count in STRONGEST
    }
    print(f"{len(graphs)} graphs, random sets alike in {args.strength}\n")
    print_table(rows(circuits, ask, Options(n_random=args.random, strength=args.strength)))


if __name__ == "__main__":
    main()
