"""Descriptions on disk: how long they are kept, how many, and what a damaged file costs."""

import sqlite3
import threading

import pytest

from remote.labels.cache import KEPT_S, KEPT_WITHOUT_EXPLANATION_S, LabelCache
from tests.support.polling import LONGEST_S
from viewer.descriptions import Description, Example, FeatureId

SERVER = "https://www.neuronpedia.org"
FULL = Description(
    explanations=["capitals"],
    examples=[Example(tokens=["a", "ü\n"], activations=[0.5, 1e-9])],
    promoted=[" Austin"],
    frequency=0.25,
    histogram=[1, 2],
)


def feature(index=1, model="gemma-2-2b"):
    return FeatureId(model, "5-gemmascope-transcoder-16k", index)


class Clock:
    now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(tmp_path, clock):
    return LabelCache(tmp_path / "new" / "labels.sqlite", clock=clock)


def test_what_was_put_comes_back_for_this_server_and_feature_alone(cache):
    cache.put(SERVER, {feature(1): FULL, feature(2): None})
    asked = [feature(3), feature(2), feature(1), feature(1, model="gpt2-small")]
    assert cache.get(SERVER, asked) == {feature(1): FULL, feature(2): None}
    assert cache.get("http://localhost:3000", asked) == {}


@pytest.mark.parametrize(
    ("description", "kept_s"),
    [
        (FULL, KEPT_S),
        (Description(promoted=["a"]), KEPT_WITHOUT_EXPLANATION_S),
        (None, KEPT_WITHOUT_EXPLANATION_S),
    ],
)
def test_an_explanation_is_kept_longer_than_that_there_is_none(cache, clock, description, kept_s):
    cache.put(SERVER, {feature(): description})
    clock.now += kept_s - 1
    assert cache.get(SERVER, [feature()]) == {feature(): description}
    clock.now += 1
    assert cache.get(SERVER, [feature()]) == {}
    cache.put(SERVER, {feature(): description})
    assert cache.get(SERVER, [feature()]) == {feature(): description}


def test_what_comes_from_a_clock_that_was_wrong_is_not_kept_for_ever(cache, clock):
    cache.put(SERVER, {feature(): FULL})
    clock.now -= 60
    assert cache.get(SERVER, [feature()]) == {}


def test_the_oldest_go_when_there_is_too_much_and_the_file_shrinks(tmp_path, clock):
    cache = LabelCache(tmp_path / "labels.sqlite", most_bytes=200_000, clock=clock)
    long = Description(explanations=["x" * 1000])
    for first in range(0, 1000, 50):
        clock.now += 1
        cache.put(SERVER, {feature(i): long for i in range(first, first + 50)})
    kept = [one.index for one in cache.get(SERVER, [feature(i) for i in range(1000)])]
    assert kept == list(range(kept[0], 1000))
    assert 100 < len(kept) < 200
    assert cache.path.stat().st_size < 400_000


def test_what_is_no_database_is_begun_anew(cache):
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"nonsense" * 1000)
    assert cache.get(SERVER, [feature()]) == {}
    cache.put(SERVER, {feature(): FULL})
    assert cache.get(SERVER, [feature()]) == {feature(): FULL}


@pytest.mark.parametrize("content", ["{", "[]", '{"promoted": 1}', b"\xff", 7])
def test_a_row_that_is_odd_is_as_none(cache, content):
    cache.put(SERVER, {feature(1): FULL, feature(2): FULL})
    with sqlite3.connect(cache.path) as database:
        database.execute("UPDATE descriptions SET content = ? WHERE feature = 1", [content])
    database.close()
    assert cache.get(SERVER, [feature(1), feature(2)]) == {feature(2): FULL}


def test_a_folder_that_can_not_be_written_costs_nothing_but_the_cache(tmp_path):
    (tmp_path / "file").write_text("")
    cache = LabelCache(tmp_path / "file" / "labels.sqlite")
    cache.put(SERVER, {feature(): FULL})
    assert cache.get(SERVER, [feature()]) == {}


def test_threads_write_at_the_same_time(cache, monkeypatch):
    monkeypatch.setattr("remote.labels.cache._WAIT_S", LONGEST_S)  # a slow disk costs labels

    def write(number):
        for index in range(10):
            cache.put(SERVER, {feature(10 * number + index): FULL})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache.get(SERVER, [feature(i) for i in range(40)])) == 40
