"""What automatic groups are worth, on the demo model: `python -m benchmarks.circuits`.

For every athlete's prompt in French ("joue au") and Spanish ("juega al") the graph is grouped as
`generate-graph` does it for `supernodes: "auto"`, and each number stands beside that of random
groups: as many, of the same sizes, of features of the same graph.

**Purity.** The demo's features have descriptions (demo/feature_examples.json.gz), which grouping
doesn't see. They give each feature classes: the word that it fires on most (all names are one
class), what it promotes most (a sport in whatever language, a name, anything else), both, and the
language in whose texts 60% of its firing is, if there is one. Purity is the share of the pairs of
features in one group that have the same class. The share of members that have their group's
commonest class is given too: it is at least a half in a group of two, whatever the group, so that
it can't be twice what chance gives.

**Faithfulness.** The collapsed graph has each group as one node, which reads the average of what
its members read, pinned features that are in no group, tokens and logits. What flows to any other
node is lost. Faithfulness is how much of each token's influence on the logits in the pruned graph
it also has in the collapsed one, summed over tokens, as a share of the whole: the sum of
min(pruned, collapsed) over the sum of pruned. Random groups have the same pinned paths beside them.
"""

import argparse
import gzip
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

import attribution
import model_loader
from demo.facts import ATHLETES, SPORTS
from demo.language_steer import twins
from graphs import supernodes
from graphs.flow import Flow
from graphs.supernodes import Output, Words
from settings import Settings

_EXAMPLES = Path(__file__).parent.parent / "demo" / "feature_examples.json.gz"
_NAMES = {word for athlete in ATHLETES for word in athlete.split()}
_SPORT_OF = {word: sport for sport, words in SPORTS.items() for word in words}
_MOSTLY = 0.6

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


def grouped_graphs() -> Iterator[GroupedGraph]:
    """The graphs of the athletes' prompts."""
    loaded = model_loader.load(Settings(_env_file=None, device="cpu"))
    descriptions = orjson.loads(gzip.decompress(_EXAMPLES.read_bytes()))["features"]
    for fact in (fact for pair in twins() for fact in pair):
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


def fires_on(description: Mapping[str, Any]) -> str:
    word = description["fires_on"].strip()
    return "a name" if word in _NAMES else word


def promotes(description: Mapping[str, Any]) -> str:
    word = description["top_logits"][0].strip()
    return "a name" if word in _NAMES else _SPORT_OF.get(word, "else")


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


# Each prints one part of the report about the same graphs.
SECTIONS: Mapping[str, Callable[[Sequence[GroupedGraph], int], None]] = {
    "Purity": print_purity,
    "Faithfulness": print_faithfulness,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200, help="random groupings of each graph")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    graphs = list(grouped_graphs())
    for title, print_section in SECTIONS.items():
        print(f"\n## {title}\n")
        print_section(graphs, args.draws)
    print(f"\n{time.process_time() - started:.0f} s of CPU, {args.draws} random draws")


if __name__ == "__main__":
    main()
