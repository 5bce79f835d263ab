"""Jobs that can't be read, and odd ids, in what Runpod hands over: each is answered for itself."""

import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.job_taking import address_of, read_jobs
from tests.serving.test_fuzz import FUZZ, GOOD, malformed
from tests.support.control_plane import running_worker
from tests.support.demo_worker import FORWARD, ask, comparable

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def worker(plane, tmp_path_factory):
    with running_worker(plane, tmp_path_factory.mktemp("worker"), JOBS_AT_ONCE="4") as worker:
        yield worker
        assert worker.process.poll() is None
        assert "planted" not in worker.log()
        assert "Traceback" not in worker.log()


@pytest.fixture(scope="module")
def forward():
    return ask(FORWARD)


def new_id(odd=""):
    return f"raw-{next(NUMBERS)}{odd}"


def job(job_id, body):
    return b'{"delayTime": 5, "id": %s, "input": %s}' % (json.dumps(job_id).encode(), body)


def dumped(body):
    return json.dumps(body).encode()


def with_value(value):
    """A forward pass whose number of logits is this JSON."""
    return dumped({**FORWARD, "max_n_logits": "HERE"}).replace(b'"HERE"', value)


# Inputs, as JSON or not, that no parser takes whole or that orjson doesn't take.
UNREADABLE = {
    "an integer of 5,000 digits": with_value(b"1" * 5_000),
    "an integer of a million digits": with_value(b"-" + b"9" * 10**6),
    "an integer of 400 digits": with_value(b"1" * 400),
    "a number beyond all": with_value(b"1e999"),
    "NaN": with_value(b"NaN"),
    "minus infinity": with_value(b"-Infinity"),
    "lists in lists": with_value(b"[" * 100_000 + b"]" * 100_000),
    "objects in objects": with_value(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "lists in lists without end": with_value(b"[" * 1_000_000),
    "half of a surrogate pair": with_value(b'"planted \\ud800"'),
    "bytes that are no text": with_value(b'"planted \xff\xfe"'),
    "a word": with_value(b"planted"),
    "a control character": with_value(b'"planted \x01"'),
    "a name without a value": with_value(b'{"planted"}'),
    "an escape that is none": with_value(b'"planted \\x"'),
    "brackets in texts": with_value(b'"]}[{\\"]}" planted'),
}
WRONG = {
    "null": b"null",
    "a list": b"[1, 2]",
    "a text": b'"planted"',
    "a number": b"5",
    "a text of ten million characters": b'"' + b"p" * 10**7 + b'"',
    "lists side by side": b"[" + b"[]," * 10**6 + b"[]]",
}


KINDS = [*UNREADABLE.values(), *WRONG.values()]


@pytest.mark.parametrize("body", KINDS, ids=[*UNREADABLE, *WRONG])
def test_a_job_that_can_not_be_read_fails_and_the_others_of_its_batch_run(
    plane, worker, forward, body
):
    first, bad, last = new_id(), new_id(), new_id()
    if body.count(b"[") > body.count(b"]") + 1:  # whatever follows is within its brackets
        jobs = [job(first, dumped(FORWARD)), job(last, dumped(FORWARD)), job(bad, body)]
    else:
        jobs = [job(first, dumped(FORWARD)), job(bad, body), job(last, dumped(FORWARD))]
    plane.submit_raw(b"[" + b",".join(jobs) + b"]")
    assert plane.result(bad)["error"].startswith("invalid_input: ")
    for job_id in (first, last):
        assert plane.result(job_id) == {"output": forward}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_job_that_comes_alone_and_can_not_be_read_fails(plane, worker, body):
    job_id = new_id()
    plane.submit_raw(job(job_id, body))
    assert plane.result(job_id)["error"].startswith("invalid_input: ")


def test_a_job_that_is_larger_than_runpod_takes_fails(plane, worker, forward):
    job_id, before = new_id(), new_id()
    large = job(job_id, b'"' + b"p" * 130_000_000 + b'"')
    plane.submit_raw(b"[" + job(before, dumped(FORWARD)) + b"," + large + b"]")
    error = plane.result(job_id)["error"]
    assert error.startswith("invalid_input: the job does not end within ")
    assert plane.result(before) == {"output": forward}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"5",
        b'"planted"',
        b"[",
        b"]}]}",
        b"planted",
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"input": {}}',
        b'[null, 5, "planted", [], [[{"id": "planted"}]], {}]',
        b'[nope, {"id": 5, "input": NaN}, {"id": {"id": "planted"}, "input": NaN}]',
    ],
)
def test_an_answer_with_no_job_in_it_is_passed_over(plane, worker, forward, answer):
    known = set(plane.jobs)
    plane.submit_raw(answer)
    job_id = plane.submit(FORWARD)
    assert plane.result(job_id) == {"output": forward}
    assert set(plane.jobs) == known | {job_id}


ODD_NAMES = ["self", "__class__", "__dict__", "__init__", "__hash__", "input ", "", "webhook"]


@pytest.mark.parametrize("value", [b"null", b"5", b'"planted"', b'{"a": [1]}'])
def test_other_names_in_a_job_change_nothing(plane, worker, forward, value):
    job_id = new_id()
    odd = b", ".join(b"%s: %s" % (dumped(name), value) for name in ODD_NAMES)
    plane.submit_raw(b"[{%s, %s]" % (odd, job(job_id, dumped(FORWARD))[1:]))
    assert plane.result(job_id) == {"output": forward}


@pytest.mark.parametrize(
    "odd",
    [
        "\n",
        "\r\nX-Injected: 1",
        "?gpu=1",
        "#part",
        "/",
        "/../raw-1",
        "/..",
        "%2F..%2Fraw-1",
        "%",
        "%00",
        "\x00",
        "\x1b[2J",
        " ",
        ",raw-1",
        "$ID",
        "é🏀",
        '"',
        "\\",
        "x" * 1_900,
    ],
)
def test_a_job_of_an_odd_id_is_answered_at_its_own_address(plane, worker, forward, odd):
    job_id, known = new_id(odd), set(plane.jobs)
    plane.submit_raw(job(job_id, dumped(FORWARD)))
    assert plane.result(job_id) == {"output": forward}
    assert set(plane.jobs) == known | {job_id}
    assert plane.strays == []
    plane.stop(job_id)  # it is over: a stop of it is heard and does no harm
    assert plane.result(plane.submit(FORWARD)) == {"output": forward}


BAD_IDS = ["", ".", "..", "x" * 2_001, "é" * 400, "\ud800", 5, None, True, 1.5, ["planted"], {}]


@pytest.mark.parametrize("bad", BAD_IDS, ids=[str(ascii(bad))[:12] for bad in BAD_IDS])
def test_a_job_whose_id_can_be_no_address_is_posted_nowhere(plane, worker, forward, bad):
    known = set(plane.jobs)
    good = new_id()
    for body in (dumped(FORWARD), UNREADABLE["NaN"]):
        plane.submit_raw(b"[" + job(bad, body) + b"," + job(good + "x", b"NaN") + b"]")
        assert plane.result(good + "x")["error"].startswith("invalid_input: ")
    plane.submit_raw(job(good, dumped(FORWARD)))
    assert plane.result(good) == {"output": forward}
    assert set(plane.jobs) == known | {good, good + "x"}
    assert plane.strays == []


@given(st.text(), st.text())
def test_no_two_ids_have_one_address_and_none_leads_out_of_its_place(one, other):
    addresses = [address_of(one), address_of(other)]
    assert one == other or None in addresses or addresses[0] != addresses[1]
    for address in addresses:
        assert address is None or not set(address) & set("/?#\\\n\r ,")
        assert address not in {"", ".", ".."}


def test_the_last_of_two_ids_counts_whether_the_job_can_be_read_or_not():
    for value in (b"1", b"NaN", b"nope"):
        raw = b'{"id": "first", "\\u0069d": "last", "input": {"id": "within"}, "x": %s}' % value
        assert [job["id"] for job in read_jobs(raw)] == ["last"]


def test_an_answer_that_is_cut_off_gives_the_jobs_before_the_cut():
    raw = b'[{"id": "a", "input": {}}, {"id": "b", "input": "a ] } text \\"'
    for text in (raw, raw[:-1]):
        whole, cut = read_jobs(text, is_whole=False)
        assert whole == {"id": "a", "input": {}}
        assert (cut["id"], cut["unreadable"][:14]) == ("b", "invalid_input:")


# Whole answers of any kind


def dumped_if_light(body):
    """A body as JSON; the heavy ones, which test_fuzz has, would take the time of many others."""
    try:
        raw = dumped(body)
    except RecursionError:
        return dumped(FORWARD)
    return raw if len(raw) < 100_000 else dumped(FORWARD)


@st.composite
def raw_jobs(draw):
    """A job as bytes, and its id where it has one that can be answered."""
    body = draw(
        st.one_of(
            st.sampled_from(GOOD).map(dumped),
            malformed().map(dumped_if_light),
            st.sampled_from([body for body in KINDS if len(body) < 10**6]),
        )
    )
    odd = draw(st.sampled_from(["", "", "\n", "/../raw-1", "?#", "%2F", "é🏀", ",raw-1", "\x00"]))
    given_id = draw(st.sampled_from(BAD_IDS)) if draw(st.integers(0, 3)) == 0 else new_id(odd)
    extra = b"".join(
        b"%s: %s, " % (dumped(name), draw(st.sampled_from([b"null", b'"x"', b"NaN", b"[{}]"])))
        for name in draw(st.lists(st.sampled_from(ODD_NAMES), max_size=2))
    )
    raw = b"{" + extra + job(given_id, body)[1:]
    return raw, given_id if address_of(given_id) is not None else None


JUNK_BEFORE = st.sampled_from([b"", b"null,", b"5,", b'"]",', b"[[]],", b"nope,", b"{},"])


@st.composite
def raw_answers(draw):
    """An answer as bytes, and the ids of the jobs that must have a result."""
    jobs = draw(st.lists(raw_jobs(), min_size=1, max_size=4))
    # What doesn't close its brackets takes all that comes after it in.
    jobs.sort(key=lambda job: job[0].count(b"[") - job[0].count(b"]") > 1)
    while len(jobs) > 1 and jobs[-2][0].count(b"[") - jobs[-2][0].count(b"]") > 1:
        jobs.pop()
    if len(jobs) == 1 and draw(st.booleans()):
        raw = jobs[0][0]
    else:
        raw = b"[" + b",".join(draw(JUNK_BEFORE) + raw for raw, _ in jobs) + b"]"
    if draw(st.integers(0, 9)) == 0:  # cut within the last brackets: the last job has no end
        raw = raw.rstrip(b"]}")
    return draw(st.sampled_from([b"", b" \n", b"\xef\xbb\xbf"])) + raw, [
        job_id for _, job_id in jobs if job_id is not None
    ]


def assert_each_answered_once_and_not_internal(plane, worker, answers):
    known = set(plane.jobs)
    for raw, _ in answers:
        plane.submit_raw(raw)
    last = plane.submit(FORWARD)
    assert plane.result(last)["output"]
    ids = [job_id for _, job_ids in answers for job_id in job_ids]
    for job_id in ids:
        result = plane.result(job_id)
        assert set(result) in ({"output"}, {"error"})
        assert not result.get("error", "").startswith(("internal", "out_of_memory"))
        assert not plane.jobs[job_id].after_result
    assert set(plane.jobs) == known | {last, *ids}
    assert plane.strays == []
    assert worker.process.poll() is None
    for job_id in [last, *ids]:  # this process's memory isn't the worker's
        plane.jobs.pop(job_id)


@settings(FUZZ, max_examples=10)
@given(answers=st.lists(raw_answers(), min_size=10, max_size=10))
def test_a_hundred_raw_answers_are_answered_each_job_once(plane, worker, answers):
    assert_each_answered_once_and_not_internal(plane, worker, answers)


def resident_bytes(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
def test_two_thousand_raw_answers_are_answered_each_job_once_and_leave_no_memory(tmp_path, plane):
    seen = []
    with running_worker(plane, tmp_path, JOBS_AT_ONCE="4", GRAPH_CACHE_BYTES="0") as worker:
        before = {
            str(body): comparable(plane.result(plane.submit(body))["output"]) for body in GOOD
        }

        @settings(FUZZ, max_examples=200)
        @given(answers=st.lists(raw_answers(), min_size=10, max_size=10))
        def send(answers):
            assert_each_answered_once_and_not_internal(plane, worker, answers)
            seen.append(resident_bytes(worker.process.pid))

        send()
        half = len(seen) // 2
        assert max(seen[half:]) < 1.05 * max(seen[:half])
        for body in GOOD:
            answered = comparable(plane.result(plane.submit(body))["output"])
            assert answered == before[str(body)]
