"""What automatic groups are worth, on the demo model: `python -m benchmarks.circuits`.

The graphs of three sets of prompts are grouped as `generate-graph` does it for
`supernodes: "auto"`, and each number stands beside that of random groups: as many, of the same
sizes, of features of the same graph. How features are grouped, and the weights, were chosen by the
tables of the first two sets. The third is held out.

**Purity.** The demo's features have descriptions (demo/feature_examples.json.gz), which grouping
doesn't see. They give each feature classes: the word that it fires on most (all names are one
class), what it promotes most (a thing of the facts in whatever language, a name, anything else),
both, and the language in whose texts 60% of its firing is, if there is one. Purity is the share of
the pairs of features in one group that have the same class. The share of members that have their
group's commonest class is given too: it is at least a half in a group of two, whatever the group,
so that it can't be twice what chance gives.

**Faithfulness.** The collapsed graph has each group as one node, which reads the average of what
its members read, pinned features that are in no group, tokens and logits. What flows to any other
node is lost. Faithfulness is how much of each token's influence on the logits in the pruned graph
it also has in the collapsed one, summed over tokens, as a share of the whole: the sum of
min(pruned, collapsed) over the sum of pruned. Random groups have the same pinned paths beside them.

**Worth.** Of the groups, of these with the pinned paths, and of all that pruning kept, as sets
among all active features of the first set's prompts: see `benchmarks.circuit_worth`. With the
demo's set of transcoders, and with its complete one, which has features of attention.
"""

import argparse
import gzip
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

import attribution
import model_loader
from benchmarks import circuit_worth
from demo.corpus import Fact, all_facts
from demo.facts import (
    ATHLETES,
    CAPITALS,
    COLOURS,
    LANGUAGES,
    NUMBERS,
    OPPOSITES,
    SPORTS,
    WEEKDAYS,
)
from demo.language_steer import twins
from graphs import supernodes
from graphs.flow import Flow
from graphs.supernodes import Output, Words
from remote.circuits.experiments import Options
from settings import Settings

_EXAMPLES = Path(__file__).parent.parent / "demo" / "feature_examples.json.gz"
_NAMES = {word for athlete in ATHLETES for word in athlete.split()}
_MOSTLY = 0.6
_WORTH_RANDOM = 10  # sets beside each one whose worth is measured

Groups = Sequence[Sequence[int]]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupedGraph:
    """A pruned graph, its groups, the features of its pinned paths, and features' descriptions."""

    flow: Flow
    groups: Groups
    on_paths: Sequence[int]
    descriptions: Mapping[int, Mapping[str, Any]]  # by row

    def random_groups(self, draw: np.random.Generator) -> Groups:
        """As many groups of the same sizes, of any features of the graph."""
        sizes = [len(members) for members in self.groups]
        chosen = draw.permutation(self.flow.features)[: sum(sizes)]
        ends = np.cumsum(sizes).tolist()
        starts = [0, *ends[:-1]]
        return [chosen[a:b].tolist() for a, b in zip(starts, ends, strict=True)]


def prompt_sets() -> dict[str, list[Fact]]:
    """Facts by what their graphs were used for."""

    def about(*subjects: str) -> list[Fact]:
        return [fact for fact in all_facts() if fact.subject in subjects]

    return {
        "athletes, used for choosing": [fact for pair in twins() for fact in pair],
        "capitals and opposites, used for choosing": about("capital", "opposite"),
        "colours, numbers and weekdays, held out": about("colour", "number", "weekday"),
    }


def grouped_graphs(facts: Iterable[Fact]) -> Iterator[GroupedGraph]:
    """The graphs of these facts' prompts."""
    loaded = model_loader.load(Settings(_env_file=None, device="cpu"))
    descriptions = orjson.loads(gzip.decompress(_EXAMPLES.read_bytes()))["features"]
    for fact in facts:
        ids = loaded.tokenizer(fact.prompt).input_ids
        graph = attribution.attribute(
            torch.tensor(ids),
            loaded.model,
            max_n_logits=10,
            desired_logit_prob=0.95,
            batch_size=48,
            max_feature_nodes=10_000,
            update_interval=4,
        )
        flow = Flow.of(attribution.prune(graph))
        outputs = [Output("say", target.token_str) for target in graph.logit_targets]
        words = Words(loaded.token_text.strings(ids), 1, outputs, labels={})
        subgraph = supernodes.find(flow, words)
        groups = [members for _, members in subgraph.groups]
        in_groups = {row for members in groups for row in members}
        places = graph.active_features[graph.selected_features].tolist()
        yield GroupedGraph(
            flow,
            groups,
            [row for row in subgraph.pinned if row < flow.n_features and row not in in_groups],
            {n: descriptions[f"{layer}_{index}"] for n, (layer, _, index) in enumerate(places)},
        )


def _things() -> Iterator[tuple[str, str]]:
    """Words of the facts, each with what it stands for in whatever language."""
    for sport, words in SPORTS.items():
        yield from ((word, sport) for word in words)
    for row in (*CAPITALS, *OPPOSITES, *COLOURS):
        for side, thing in enumerate(row[0]):
            # The last word, without what French and Spanish put before it: "de l'Espagne".
            yield from ((pair[side].split()[-1].split("'")[-1], thing) for pair in row)
    for words_of in (NUMBERS, WEEKDAYS):
        for words in zip(*(words_of[language] for language in LANGUAGES), strict=True):
            yield from ((word, words[0]) for word in words)


_THING_OF = dict(reversed(list(_things())))  # a word of two things stands for the first


def fires_on(description: Mapping[str, Any]) -> str:
    word = description["fires_on"].strip()
    return "a name" if word in _NAMES else word


def promotes(description: Mapping[str, Any]) -> str:
    word = description["top_logits"][0].strip()
    return "a name" if word in _NAMES else _THING_OF.get(word, "else")


def both(description: Mapping[str, Any]) -> tuple[str, str]:
    return fires_on(description), promotes(description)


def language(description: Mapping[str, Any]) -> str:
    texts: Counter[str] = Counter()
    for group, count in description["groups"]:
        texts[group.removesuffix(", chat").split(" in ")[1]] += count
    name, count = texts.most_common(1)[0]
    return name if count >= _MOSTLY * texts.total() else "several"


CLASSES: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "fires on and promotes": both,
    "fires on": fires_on,
    "promotes": promotes,
    "language": language,
}


@dataclass(frozen=True)
class Purity:
    pairs: float
    commonest: float


def purity(graphs: Sequence[GroupedGraph], groups_of: Sequence[Groups], name: str) -> Purity:
    """That of these groups, all of them together."""
    same = n_pairs = commonest = n_members = 0.0
    for graph, groups in zip(graphs, groups_of, strict=True):
        for members in groups:
            counts = Counter(CLASSES[name](graph.descriptions[int(row)]) for row in members)
            same += sum(count * (count - 1) / 2 for count in counts.values())
            n_pairs += len(members) * (len(members) - 1) / 2
            commonest += max(counts.values())
            n_members += len(members)
    return Purity(same / n_pairs, commonest / n_members)


def faithfulness(graphs: Sequence[GroupedGraph], groups_of: Sequence[Groups]) -> float:
    """The mean over graphs."""
    found = []
    for graph, groups in zip(graphs, groups_of, strict=True):
        true = graph.flow.influence[graph.flow.tokens]
        found.append(np.minimum(true, _collapsed(graph, groups)).sum() / true.sum())
    return float(np.mean(found))


def _collapsed(graph: GroupedGraph, groups: Groups) -> Array:
    """Each token's influence on the logits in the collapsed graph."""
    flow = graph.flow
    shares = np.zeros((flow.n_nodes, flow.n_nodes))
    shares[flow.targets, flow.sources] = np.abs(flow.shares)
    in_groups = {int(row) for members in groups for row in members}
    alone = [row for row in graph.on_paths if row not in in_groups]
    ends = list(range(flow.tokens.start, flow.n_nodes))
    nodes = [*groups, *([row] for row in (*alone, *ends))]
    belongs = np.zeros((len(nodes), flow.n_nodes))
    for n, members in enumerate(nodes):
        belongs[n, list(members)] = 1
    links = belongs / belongs.sum(1, keepdims=True) @ shares @ belongs.T
    start = np.zeros(len(nodes))
    start[-len(flow.logit_weights) :] = flow.logit_weights
    reached = np.linalg.solve(np.eye(len(nodes)) - links.T, start)
    return reached[len(nodes) - len(ends) : len(nodes) - len(flow.logit_weights)]


def print_purity(graphs: Sequence[GroupedGraph], n_draws: int) -> None:
    own = [graph.groups for graph in graphs]
    sizes = Counter(len(members) for groups in own for members in groups)
    listed = ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items()))
    grouped = sum(size * count for size, count in sizes.items())
    n_features = sum(len(graph.flow.features) for graph in graphs)
    print(f"{len(graphs)} graphs, {grouped} of {n_features} features in groups: {listed}\n")
    draw = np.random.default_rng(0)
    drawn = [[graph.random_groups(draw) for graph in graphs] for _ in range(n_draws)]
    print("| class | pairs alike | chance | times | commonest | chance | times |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in CLASSES:
        real = purity(graphs, own, name)
        random = [purity(graphs, groups, name) for groups in drawn]
        pairs = float(np.mean([one.pairs for one in random]))
        commonest = float(np.mean([one.commonest for one in random]))
        print(
            f"| {name} | {real.pairs:.1%} | {pairs:.1%} | {real.pairs / pairs:.2f} "
            f"| {real.commonest:.1%} | {commonest:.1%} | {real.commonest / commonest:.2f} |"
        )


def print_faithfulness(graphs: Sequence[GroupedGraph], n_draws: int) -> None:
    own = faithfulness(graphs, [graph.groups for graph in graphs])
    draw = np.random.default_rng(0)
    random = [
        faithfulness(graphs, [graph.random_groups(draw) for graph in graphs])
        for _ in range(n_draws)
    ]
    print("| faithfulness of the collapsed graph | chance | times |")
    print("| ---: | ---: | ---: |")
    print(f"| {own:.1%} | {np.mean(random):.1%} | {own / np.mean(random):.2f} |")


def print_worth(n_prompts: int, transcoder_set: str | None) -> None:
    ask = circuit_worth.worker(transcoder_set)
    prompts = [fact.prompt for pair in twins()[:n_prompts] for fact in pair]
    circuits = circuit_worth.automatic(prompts, ask)
    print(f"{len(prompts)} graphs, {_WORTH_RANDOM} random sets for each\n")
    options = Options(n_random=_WORTH_RANDOM)
    circuit_worth.print_table(circuit_worth.rows(circuits, ask, options))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=50, help="random groupings of each graph")
    parser.add_argument(
        "--prompts", type=int, default=10, help="of each language, whose circuits' worth is tried"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    for title, facts in prompt_sets().items():
        graphs = list(grouped_graphs(facts))
        print(f"\n## Purity: {title}\n")
        print_purity(graphs, args.draws)
        print(f"\n## Faithfulness: {title}\n")
        print_faithfulness(graphs, args.draws)
    for transcoder_set in (None, "demo-crm"):
        print(f"\n## Worth: {transcoder_set or 'demo'}\n")
        print_worth(args.prompts, transcoder_set)
    print(f"\n{time.process_time() - started:.0f} s of CPU, {args.draws} random draws")


if __name__ == "__main__":
    main()
