"""Graph documents that something is wrong with, each the same for the same number."""

import gzip
import json
import random
from functools import partial

from tests.support.complete_viewer_graphs import complete, marked_up_complete
from tests.support.hostile_graphs import MARKUP, marked_up, sound

_DEEP = "[" * 5_000 + "]" * 5_000
_ODD: tuple[object, ...] = (
    *(None, True, 0, -1, 1, 7, 10**6, 2**53, 10**30, 0.5, -0.5, 1e308, 5e-324),
    *("", " ", "E", "0", "1e9", "-1", "x y z", "a" * 5_000, "\ud83d", "\0", "\x1b[2J", "‮", "\n"),
    *([], {}, [[]], [{}], [None], {"a": 1}, ["x"], [["x", "0_3_1"]], "__proto__", "constructor"),
    *("(p=", '"', "Output", "logit", "embedding", "cross layer transcoder", "unexplored node"),
    *("mlp reconstruction error", ["cross layer transcoder"], "supernode-0", "null", "undefined"),
)
_RAW = (
    b"", b"null", b"[]", b"{}", b"not json", b"\x1f\x8b", b"\xff\xfe", b"\xef\xbb\xbf{}",
    b'{"metadata": NaN}', b'{"metadata": ' + _DEEP.encode() + b"}", _DEEP.encode(),
    b'{"metadata": {"slug": ' + b"9" * 5_000 + b"}}",
)  # fmt: skip


def odd_graph(number: int) -> bytes:
    """The bytes of a file: changed in one to three places, cut, gzipped or no document at all."""
    chance = random.Random(number)
    if chance.random() < 0.05:
        return chance.choice(_RAW)
    markup = chance.choice(MARKUP)
    kinds = (
        sound,
        complete,
        *(partial(f, markup) for f in (marked_up, marked_up_complete, _grouped)),
    )
    graph = chance.choice(kinds)()
    for _ in range(chance.randint(1, 3)):
        _change(graph, chance)
    if chance.random() < 0.1:
        graph = dict(reversed(graph.items()))  # the metadata come last
    content = json.dumps(graph).encode()
    if chance.random() < 0.1:
        content = chance.choice(_SPELLINGS)(content, chance)
    if chance.random() < 0.1:
        content = gzip.compress(content, mtime=0)
        if chance.random() < 0.5:
            content = content[: chance.randrange(len(content))]
    return content


def _grouped(markup):
    """A graph that opens with groups: of odd names, of features that it has and hasn't, and of the
    same ones twice."""
    graph = sound()
    ids = [node["node_id"] for node in graph["nodes"]]
    names = (markup, "a" * 10_000, "\x1b[2J\u202e", "", "same", "same", "__proto__")
    graph["qParams"] |= {
        "pinnedIds": [*ids, *ids, "9_9_9"],
        "supernodes": [
            [name, ids[n % 3], ids[(n + 1) % 3], "9_9_9"] for n, name in enumerate(names)
        ],
    }
    return graph


_SPELLINGS = (
    lambda content, chance: content[: chance.randrange(len(content))],
    lambda content, _: content.replace(b"0.3", b"NaN"),
    lambda content, _: content.replace(b"0.8", b"1e999"),
    lambda content, _: content.replace(b'"weight": 1.0', b'"weight": -Infinity'),
    lambda content, _: content.replace(b'"ctx_idx": 3', b'"ctx_idx": ' + b"9" * 400),
    lambda content, _: content.replace(b"Anonymous", b"\xff\xfe"),
    lambda content, _: content + b"\n{}",
)


def _change(graph, chance):
    """Put something odd into one place of the document, or take the place away."""
    place = graph
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.15:
            break
        place = inner
    act = chance.random()
    if act < 0.2:
        del place[key]
    elif act < 0.3 and isinstance(place, list):
        place.append(inner)
    elif act < 0.4:
        place[key] = [inner]
    else:
        place[key] = chance.choice(_ODD)
