"""Fields of a request that don't go together: one of them would be silently ignored.

Such a pair is refused, but where the webapp or an older client sends both in every request, or
where the documents say which one counts.
"""

from typing import Any

import pytest

from errors import InvalidInput
from schemas import parse_request

GRAPH = {"action": "generate-graph", "prompt": "a"}
STEER = {"action": "steer", "prompt": "a"}
FEATURE = {"layer": 0, "index": 0, "token_active_position": 1, "steer_position": 1, "ablate": True}
INTERVENE = {
    "action": "intervene",
    "prompt": "a",
    "groups": {"one": [{"layer": 0, "index": 0, "position": 1}]},
    "experiments": [[{"group": "one", "scale": 0}]],
}
URL = "https://store.example/key"

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "groups and a file without them": (
        {**GRAPH, "format": "pt", "supernodes": "auto"}, ["supernodes", "format", "json"],
    ),
    "headers without an upload": (
        {**GRAPH, "signed_headers": {"a": "b"}}, ["signed_headers", "signed_url"],
    ),
}  # fmt: skip
ACCEPTED: dict[str, dict[str, Any]] = {
    "groups that aren't asked for and a file": {**GRAPH, "format": "pt", "supernodes": "none"},
    # Callers may have it set for all their jobs, and an answer that isn't uploaded needs none.
    "compression and no upload": {**GRAPH, "compress": True},
    "compression and an upload": {**GRAPH, "compress": True, "signed_url": URL},
    # The webapp has these in every request, so the same body serves for the file.
    "thresholds, a name and a user for a file": {
        **GRAPH, "format": "pt", "node_threshold": 0.7, "edge_threshold": 0.8, "user_id": "a",
        "slug_identifier": "a", "signed_url": URL,
    },
    "bounds of a trace that isn't asked for": {
        **GRAPH, "enable_qk_tracing": False, "qk_top_fraction": 0.5, "qk_topk": 5,
    },
    "a number of logits beside targets": {
        **GRAPH, "max_n_logits": 10, "desired_logit_prob": 0.95, "attribution_targets": [" a"],
    },
    "a seed for the likeliest tokens": {
        **STEER, "features": [FEATURE], "temperature": 0, "seed": 1,
    },
    # As in circuit-tracer, layers that are held have their attention held.
    "layers and free attention": {
        **INTERVENE, "constrained_layers": "all", "freeze_attention": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("pair", REFUSED)
def test_a_field_that_would_be_ignored_is_refused_with_what_to_do(pair: str) -> None:
    body, words = REFUSED[pair]
    with pytest.raises(InvalidInput) as caught:
        parse_request(body)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("pair", ACCEPTED)
def test_what_callers_always_send_and_what_is_documented_is_accepted(pair: str) -> None:
    assert parse_request(ACCEPTED[pair]).action == ACCEPTED[pair]["action"]
