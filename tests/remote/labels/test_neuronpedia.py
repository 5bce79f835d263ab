"""What is asked of Neuronpedia, and what is made of its answers: sound, odd and hostile ones."""

import gzip
import json
import time

import pytest

from remote.errors import Unreachable, WrongTarget
from remote.labels import neuronpedia as asking
from remote.labels.neuronpedia import AT_ONCE, Neuronpedia
from tests.support.neuronpedia import MODEL, PATIENCE, feature, neuronpedia
from tests.support.programs import free_port
from tests.support.raw_server import (
    RawServer,
    answer,
    answer_a_byte_at_a_time,
    close_without_an_answer,
    never_answer,
    talk_nonsense,
)
from viewer.descriptions import FeatureId

SOURCE = "5-gemmascope-transcoder-16k"
AUSTIN = FeatureId(MODEL, SOURCE, 123)


@pytest.fixture
def site():
    with neuronpedia() as running:
        yield running


def describe(url, *features, key=None, within_s=5.0):
    asked = Neuronpedia(url, key, PATIENCE)
    try:
        return asked.describe(features or [AUSTIN], time.monotonic() + within_s)
    finally:
        asked.close()


def described(site, *explanations, **fields):
    """What is made of a feature that the site has."""
    site.add(SOURCE, 123, *explanations, **fields)
    return describe(site.url)[AUSTIN]


def refused(*script):
    """The sentence that comes of a server that follows this script."""
    with RawServer(list(script)) as server:
        port = server.port
        with pytest.raises(Unreachable) as caught:
            describe(f"http://127.0.0.1:{port}")
    return str(caught.value).replace(str(port), "PORT")


def test_it_is_asked_as_its_own_graph_page_asks(site):
    described(site, "capitals of states")
    assert site.asked == [[{"modelId": MODEL, "layer": SOURCE, "index": 123, "maxActsToReturn": 5}]]


def test_a_feature_s_explanations_examples_and_tokens_are_kept(site):
    found = described(site, "capitals  of\nstates", "Austin", " ")
    assert found.label == "capitals of states"
    assert found.explanations == ["capitals of states", "Austin"]
    [example] = found.examples
    assert example.tokens == [" The", " capital", " of", " Texas"]
    assert example.activations == [0, 1.5, 0, 9.25]
    assert example.peak == 3
    assert found.promoted == [" Austin", " Texas"]
    assert found.suppressed == [" Entdecken", "handa"]
    assert (found.frequency, found.largest) == (0.0015, 12.5)
    assert found.histogram == [40, 20, 4]


def test_features_that_it_has_not_are_none_and_the_others_come_in_any_order(site):
    others = [FeatureId(MODEL, SOURCE, index) for index in (7, 8, 9)]
    site.add(SOURCE, 9, "nine")
    site.add(SOURCE, 7, "seven")
    found = describe(site.url, *others)
    assert [found[one] and found[one].label for one in others] == ["seven", None, "nine"]


def test_a_feature_that_was_not_asked_for_is_not_taken_for_another(site):
    site.features[MODEL, SOURCE, "123"] = feature(SOURCE, 124, "another")
    assert describe(site.url) == {AUSTIN: None}


def test_the_key_goes_into_its_header_and_into_no_message(site):
    describe(site.url, key="np-secret")
    describe(site.url)
    assert site.keys == ["np-secret", None]
    with (
        RawServer([answer(401, b'{"error": "no such key"}')]) as server,
        pytest.raises(Unreachable, match="refuses the request") as caught,
    ):
        describe(f"http://127.0.0.1:{server.port}", key="np-secret")
    assert b"x-api-key: np-secret" in server.requests[0].head
    assert "np-secret" not in str(caught.value)


def test_long_texts_are_cut_to_what_surrounds_the_peak(site):
    values = [0.0] * 1000
    values[700] = 2.0
    tokens = [f"▁{'x' * 500}{i}" for i in range(1000)]
    name = {"modelId": MODEL, "layer": SOURCE, "index": "123"}
    long = {**name, "tokens": tokens, "values": values}
    found = described(
        site, "a" * 10_000, *"bcdef", activations=[long] * 5, pos_str=["y" * 999] * 999
    )
    assert len(found.label) == 300
    assert len(found.explanations) == 3
    assert all(len(one.tokens) == 101 and one.peak == 50 for one in found.examples)
    assert max(len(token) for one in found.examples for token in one.tokens) == 50
    assert [len(token) for token in found.promoted] == [50] * 10


def test_examples_come_strongest_first_and_uneven_ones_end_with_the_shorter_list(site):
    name = {"modelId": MODEL, "layer": SOURCE, "index": "123"}
    uneven = {**name, "tokens": ["a", "b", "c"], "values": [1.0, 2.0]}
    strong = {**name, "tokens": ["d"], "values": [3.0, 9.0]}
    empty = {**name, "tokens": [], "values": [1.0]}
    found = described(site, activations=[uneven, empty, strong])
    assert [one.tokens for one in found.examples] == [["d"], ["a", "b"]]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'"text"',
        b"{}",
        b"[1]",
        b'[{"modelId": "gemma-2-2b"}]',
        json.dumps([feature(SOURCE, 123, explanations="text")]).encode(),
        json.dumps([feature(SOURCE, 123, pos_str=[{"a": 1}])]).encode(),
        json.dumps([feature(SOURCE, 123, frac_nonzero="many")]).encode(),
        b"[" * 100_000,
        b'[{"modelId": "\\ud800", "layer": "", "index": ""}]',
        json.dumps([feature(SOURCE, 123)]).encode().replace(b"0.0015", b"1e999"),
        json.dumps([feature(SOURCE, 123)]).encode().replace(b"0.0015", b"NaN"),
    ],
    ids=["html", "text", "object", "number", "nameless", "explanations", "tokens", "frequency",
         "nested", "surrogate", "infinite", "nan"],
)  # fmt: skip
def test_an_answer_of_another_form_is_one_sentence(body):
    assert refused(answer(200, body)) == "127.0.0.1:PORT: its answer is no list of features"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (answer(404, b'{"error": "Not found"}'), "127.0.0.1:PORT answered 404: Not found"),
        (answer(302, Location="http://127.0.0.1:9/"), "127.0.0.1:PORT answered 302"),
        (answer(308, Location="http://127.0.0.1:9/"), "127.0.0.1:PORT answered 308"),
        (answer(403, b"<html>"), "127.0.0.1:PORT refuses the request (403)"),
        (answer(500), "gave no usable answer"),
        (answer(429, b'{"error": "Rate limit exceeded"}'), "was busy: 429: Rate limit exceeded"),
        (answer(429, Retry_After="3600"), "was busy: 429"),
        (close_without_an_answer, "the connection was lost"),
        (talk_nonsense, "gave no usable answer"),
        (answer(200, gzip.compress(bytes(100_000_000), 1), Content_Encoding="gzip"), "more than"),
        (answer(200, b" " * 30_000_000), "more than 20000000 bytes"),
        (answer(200, b"[]", Content_Encoding="br"), "which was not asked for"),
    ],
    ids=["404", "302", "308", "403", "500", "429", "later", "reset", "nonsense", "bomb", "huge",
         "brotli"],
)  # fmt: skip
def test_what_else_a_server_may_answer_is_one_sentence_too(act, words):
    assert words in refused(act)


@pytest.mark.parametrize("act", [never_answer, answer_a_byte_at_a_time])
def test_a_server_that_takes_for_ever_is_left(act, monkeypatch):
    monkeypatch.setattr(asking, "_READ_TIMEOUT_S", 0.2)
    with RawServer([act]) as server, pytest.raises(Unreachable, match=r"no answer|too slowly|lost"):
        describe(f"http://127.0.0.1:{server.port}", within_s=0.5)


def test_where_nothing_listens_the_sentence_says_so():
    with pytest.raises(Unreachable, match="nothing takes connections there"):
        describe(f"http://127.0.0.1:{free_port()}")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(WrongTarget, match=r"no http\(s\) URL"):
        Neuronpedia("ftp://x")


def test_as_many_features_as_are_asked_at_once_fit_into_an_answer():
    """A large feature of Neuronpedia's has five examples of 1,024 tokens."""
    name = {"modelId": MODEL, "layer": SOURCE, "index": "123"}
    long = {**name, "tokens": ["▁tokens"] * 1024, "values": [0.123456789] * 1024}
    size = len(json.dumps(feature(SOURCE, 123, "a" * 500, activations=[long] * 5)))
    assert size * AT_ONCE < 20_000_000
