"""What the worker's log tells of a job, and what it must not."""

import json

import pytest

import logs
from errors import WorkerError
from tests.support.demo_worker import FORWARD, GRAPH, PARSE, ask, forget_graphs

SECRET_WORDS = "Zanzibar saffron"
STEER = {
    "action": "steer",
    "features": [{"layer": 1, "index": 5, "token_active_position": 1, "steer_position": 1}],
}
BODIES = [
    {**GRAPH, "prompt": SECRET_WORDS},
    {**FORWARD, "prompt": SECRET_WORDS},
    {**PARSE, "prompt": SECRET_WORDS},
    {**STEER, "prompt": SECRET_WORDS, "n_tokens": 2},
]


@pytest.fixture
def written(capsys):
    """Set the logs up and give what they have written since, in lines."""

    def lines(*, as_json):
        logs.set_up("INFO", as_json=as_json)

        def read():
            return capsys.readouterr().err.splitlines()

        return read

    return lines


def test_a_graph_is_one_json_line_with_its_sizes_and_stage_timings(written):
    forget_graphs()
    ask(GRAPH)  # the model is loaded and says so
    forget_graphs()
    read = written(as_json=True)
    graph = ask(GRAPH)
    [line] = map(json.loads, read())
    assert line["message"] == "job done"
    assert line["level"] == "INFO"
    assert line["action"] == "generate-graph"
    assert line["tokens"] == len(graph["metadata"]["prompt_tokens"])
    assert line["nodes"] == len(graph["nodes"])
    assert line["links"] == len(graph["links"])
    assert line["active_features"] > 0
    assert set(line["timings_ms"]) == {"tokenise", "attribute", "prune", "encode"}


def test_a_refused_job_is_one_line_with_its_code(written):
    read = written(as_json=True)
    with pytest.raises(WorkerError):
        ask({**FORWARD, "max_n_logits": 10**6})
    [line] = map(json.loads, read())
    assert line["message"] == "job failed: invalid_input"
    assert line["action"] == "forward-pass"


@pytest.mark.parametrize("as_json", [True, False])
def test_no_prompt_and_no_signed_query_is_logged(written, as_json):
    read = written(as_json=as_json)
    for body in BODIES:
        for bad in ({}, {"deadline": 1}, {"model_id": SECRET_WORDS}, {SECRET_WORDS: 1}):
            try:
                ask({**body, **bad})
            except WorkerError:
                continue
    with pytest.raises(WorkerError):
        ask({**GRAPH, "signed_url": "http://127.0.0.1/key?X-Amz-Signature=feed"})
    lines = read()
    assert len(lines) > len(BODIES)
    for word in (*SECRET_WORDS.split(), "feed", "Signature"):
        assert not [line for line in lines if word.lower() in line.lower()]


def test_a_local_line_is_readable(written):
    ask(FORWARD)
    read = written(as_json=False)
    ask(FORWARD)
    [line] = read()
    assert "INFO actions.answer: job done" in line
    assert "action=forward-pass" in line
    assert "tokens=5" in line
