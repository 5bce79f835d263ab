"""The subgraph that a graph opens with: its features in named groups, and its strongest paths.

Groups are those of `graphs.clusters`. In circuit-tracer's page and in Neuronpedia's a group shows
those of its members that are pinned, and of all that is pinned the first 200.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphs import clusters
from graphs.flow import Check, Floats, Flow

# As many groups as a reader takes in; `intervene` takes more.
_MOST_GROUPS = 30
# What a page has room for: more can be pinned by hand.
_SHOWN_GROUPS, _SHOWN_MEMBERS, _PATHS = 12, 14, 3
# One of this many logits, those with most weight, names a group.
_NAMING_LOGITS = 32
_MOST_CHARACTERS = 40  # of a token or a label in a name
# A group says a token if this much of its influence goes to the logits at once.
_MOSTLY = 0.5


@dataclass(frozen=True)
class Output:
    """What a logit node stands for: `verb` is what a group does that pushes it."""

    verb: str
    name: str


@dataclass(frozen=True)
class Words:
    """What names of groups are made of.

    Args:
        tokens: the prompt's, as the document has them.
        first_position: of the prompt's text, behind the token that begins every prompt.
        outputs: for each logit node.
        labels: of features, by row; a feature without one is left out.
        levels_per_layer: how many of the graph's layers are one of the model's. Complete graphs
            have two: attention and MLP.
    """

    tokens: Sequence[str]
    first_position: int
    outputs: Sequence[Output]
    labels: Mapping[int, str]
    levels_per_layer: int = 1


@dataclass(frozen=True)
class Subgraph:
    """Rows of the graph that are pinned, and named groups of rows of features."""

    pinned: list[int]
    groups: list[tuple[str, list[int]]]


def find(flow: Flow, words: Words, check: Check = lambda: None) -> Subgraph:
    """Group at least half of the features that have links, and name the groups.

    The group of most influence comes first, and in a group the feature of most. Pinned are the
    strongest paths from tokens to logits, then members of the groups of most influence. With fewer
    than two features there are no groups, and without links nothing is pinned.
    """
    groups = clusters.group(flow, _MOST_GROUPS, check)
    groups = [sorted(members, key=lambda row: (-flow.influence[row], row)) for members in groups]
    groups.sort(key=lambda members: (-float(flow.influence[members].sum()), members[0]))
    names = _names(flow, groups, words, check)
    shown = [members[:_SHOWN_MEMBERS] for members in groups[:_SHOWN_GROUPS]]
    paths = flow.strongest_paths(_PATHS, words.first_position)
    pinned = dict.fromkeys(row for rows in (*paths, *shown) for row in rows)
    return Subgraph(list(pinned), list(zip(names, groups, strict=True)))


def _names(flow: Flow, groups: Sequence[Sequence[int]], words: Words, check: Check) -> list[str]:
    """A name for each group that no other has."""
    origins, pushes = _origins(flow, groups, words, check), _pushes(flow, groups, check)
    names = [
        _shared_label(members, words.labels) or _effect_name(flow, members, origin, push, words)
        for members, origin, push in zip(groups, origins, pushes, strict=True)
    ]
    counted = Counter(names)
    unique: dict[str, None] = {}
    for name, members in zip(names, groups, strict=True):
        several = f"{name} ({_layers(flow, members, words)})" if counted[name] > 1 else name
        unused, number = several, 1
        while unused in unique:
            number += 1
            unused = f"{several} {number}"
        unique[unused] = None
    return list(unique)


def _shared_label(members: Sequence[int], labels: Mapping[int, str]) -> str | None:
    """The label that more than half of the members have."""
    counted = Counter(labels[row] for row in members if row in labels)
    for label, count in counted.most_common(1):
        if 2 * count > len(members):
            return _clipped(label)
    return None


def _effect_name(
    flow: Flow, members: Sequence[int], origin: str, push: Floats, words: Words
) -> str:
    """`say " basket"` where the group writes to the logits, else `" Jordan" → " basket"`.

    What is before the last token says nothing, though attention can carry it to the logits at once.
    """
    strongest = int(push.argmax())
    against = ""
    if push[strongest] <= 0:
        strongest, against = int(push.argmin()), "not "
    output = words.outputs[strongest]
    at_the_end = flow.positions[members[0]] == len(words.tokens) - 1
    if at_the_end and _direct(flow, members) >= _MOSTLY:
        return f"{against}{output.verb} {_clipped(output.name)}"
    return f"{origin} → {against}{_clipped(output.name)}"


def _direct(flow: Flow, members: Sequence[int]) -> float:
    """The share of the members' influence that goes to the logits with no feature between."""
    links = flow.links_into(flow.logits)
    of_members = np.isin(flow.sources[links], members)
    weights = flow.logit_weights[flow.targets[links] - flow.logits.start]
    direct = float((np.abs(flow.shares[links]) * weights)[of_members].sum())
    whole = float(flow.influence[list(members)].sum())
    return direct / whole if whole else 0.0


def _origins(flow: Flow, groups: Sequence[Sequence[int]], words: Words, check: Check) -> list[str]:
    """For each group the token, quoted, that reaches it most, over all paths."""
    start = np.zeros((flow.n_nodes, len(groups)), dtype=np.float32)
    for column, members in enumerate(groups):
        start[members, column] = flow.influence[members]
    reached = flow.down(start, check)[flow.tokens]
    first = words.first_position if reached[words.first_position :].any() else 0
    positions = reached[first:].argmax(0) + first
    return [_quoted(words.tokens[position]) for position in positions.tolist()]


def _pushes(flow: Flow, groups: Sequence[Sequence[int]], check: Check) -> Floats:
    """How much each group pushes each logit (n_groups, n_logits), over all paths, with signs."""
    heaviest = np.argsort(-flow.logit_weights, kind="stable")[:_NAMING_LOGITS]
    start = np.zeros((flow.n_nodes, len(heaviest)), dtype=np.float32)
    start[flow.logits.start + heaviest, np.arange(len(heaviest))] = 1
    effects = flow.down(start, check, signed=True)
    pushes = np.zeros((len(groups), len(flow.logit_weights)), dtype=np.float32)
    for n, members in enumerate(groups):
        pushes[n, heaviest] = effects[members].sum(0)
    return pushes


def _layers(flow: Flow, members: Sequence[int], words: Words) -> str:
    """The layers of a group: `L1`, `L1-3`."""
    layers = flow.layers[list(members)] // words.levels_per_layer
    first, last = int(layers.min()), int(layers.max())
    return f"L{first}" if first == last else f"L{first}-{last}"


def _quoted(token: str) -> str:
    return f'"{_clipped(token)}"'


def _clipped(text: str) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
