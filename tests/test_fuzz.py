"""Borderline requests of every action: an answer or an error with its code, never `internal`."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import WorkerError
from tests.demo_worker import FORWARD, ask

TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["<|bos|>", "<|bos|><|bos|>", "<|eos|>", "<|im_start|>user\nHi", "\ud800", "\0", " ", "🏀"]
    ),
    st.lists(
        st.sampled_from([" basket", "Michael", " joue", "<|eos|>", "\n", "a", "é"]), max_size=70
    ).map("".join),
)
SMALL = st.integers(-2, 70)
EDGES = st.sampled_from([0, 1, -1, 2**31, 2**63, 2**70, -(2**70), 1e308, -1e308, 5e-324, math.nan])
NUMBER = st.one_of(SMALL, st.floats(), EDGES)
UNIT = st.one_of(st.sampled_from([0, 1, 0.5, 1e-9, 0.999999]), NUMBER)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "model", ""]), "content": TEXT}
    ),
    max_size=3,
)
FEATURE = st.fixed_dictionaries(
    {"layer": st.integers(0, 4), "index": st.integers(0, 1024), "token_active_position": SMALL},
    optional={
        "steer_position": SMALL,
        "steer_generated_tokens": st.booleans(),
        "ablate": st.booleans(),
        "delta": NUMBER,
    },
)
PROMPT = {"prompt": TEXT, "messages": MESSAGES}
BODIES = st.one_of(
    st.fixed_dictionaries(
        {"action": st.just("generate-graph")},
        optional={
            **PROMPT,
            "batch_size": NUMBER,
            "max_n_logits": NUMBER,
            "desired_logit_prob": UNIT,
            "node_threshold": UNIT,
            "edge_threshold": UNIT,
            "max_feature_nodes": NUMBER,
            "attribution_targets": st.lists(TEXT, max_size=3),
            "slug_identifier": TEXT,
            "user_id": TEXT,
            "signed_url": TEXT,
        },
    ),
    st.fixed_dictionaries(
        {"action": st.just("steer"), "features": st.lists(FEATURE, min_size=1, max_size=4)},
        optional={
            **PROMPT,
            "n_tokens": st.one_of(st.integers(1, 4), NUMBER),
            "top_k": NUMBER,
            "temperature": NUMBER,
            "freq_penalty": NUMBER,
            "seed": NUMBER,
            "freeze_attention": st.booleans(),
            "steered_output_only": st.booleans(),
            "logits_format": st.sampled_from(["pairs", "objects"]),
        },
    ),
    st.fixed_dictionaries(
        {"action": st.just("forward-pass")},
        optional={**PROMPT, "max_n_logits": NUMBER, "desired_logit_prob": UNIT},
    ),
    st.fixed_dictionaries({"action": st.just("parse-chat-prompt")}, optional={"prompt": TEXT}),
)


@pytest.fixture(scope="module")
def good():
    return ask(FORWARD)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
def test_every_request_is_answered_or_refused_with_a_reason(good, body):
    try:
        output = ask(body)
    except WorkerError as error:
        assert error.code not in {"internal", "out_of_memory"}, str(error)
    else:
        json.dumps(output, allow_nan=False)
    assert ask(FORWARD) == good
