"""What the viewer's server asks a worker for the page, and whom it lets ask."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from client import Client, main
from remote.viewer_worker import worker_of
from tests.support.demo_worker import ask
from tests.support.held_jobs import held_after, n_failed, until_hung_up
from tests.support.http_server import SECRET, get, serving
from tests.support.polling import until
from tests.support.programs import ROOT
from tests.support.traced_demo import complete_graph, serving_complete_demo
from tests.support.viewer_server import showing, showing_graphs
from viewer.worker_door import TOKEN_HEADER, Worker

PROMPT = "Michael Jordan joue au"
FRENCH = {"layer": 2, "index": 157, "position": 4, "kind": "transcoder"}
SPANISH = {"layer": 2, "index": 146, "position": 4, "kind": "transcoder"}
ANSWER = {"layer": 3, "index": 338, "position": 4, "kind": "transcoder"}


@pytest.fixture(scope="module")
def worker():
    with serving(secret=SECRET) as server, Client.to_url(server.url, SECRET) as client:
        yield worker_of(client)


@pytest.fixture(scope="module")
def url(french_file, worker):
    with showing([french_file], worker=worker) as address:
        yield address


@pytest.fixture(scope="module")
def activations(french):
    return {
        node["node_id"]: node["activation"]
        for node in french["nodes"]
        if node["feature_type"] == "cross layer transcoder"
    }


def row(label, *features, **change):
    return {"label": label, "features": list(features), **change}


def headers_of(url):
    token = requests.get(f"{url}worker.json", timeout=60).json()["token"]
    return {"Origin": url.rstrip("/"), TOKEN_HEADER: token or ""}


def post(url, action, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name: value for name, value in (headers_of(url) | headers).items() if value}
    return requests.post(f"{url}worker/{action}", data=content, headers=headers, timeout=60)


def events(response):
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def output(url, action, rows, **more):
    last = events(post(url, action, {"graph": "french", "rows": rows, **more}))[-1]
    assert list(last) == ["output"], last
    return last["output"]


def test_an_intervention_is_the_worker_s_own_on_the_graph_s_prompt(url):
    rows = [row("French", FRENCH, scale=0), row("Spanish", SPANISH, value=10.8), row("say", ANSWER)]
    answer = output(url, "intervene", rows)
    groups = {"French": [FRENCH], "Spanish": [SPANISH], "say": [ANSWER]}
    changes = [{"group": "French", "scale": 0}, {"group": "Spanish", "value": 10.8}]
    wanted = ask({"action": "intervene", "prompt": PROMPT, "groups": groups,
                  "experiments": [changes], "top_k": 10})  # fmt: skip
    assert answer["baseline"] == wanted["baseline"]["top"]
    assert answer["changed"] == wanted["experiments"][0]["top"]
    assert answer["shares"] == list(wanted["experiments"][0]["groups"].values())
    assert answer["changed"][0]["token"] == " baloncesto"


def test_a_steer_gives_both_continuations_of_the_graph_s_prompt(url, activations):
    french = FRENCH | {"activation": activations["2_157_4"]}
    spanish = SPANISH | {"activation": 0.0}
    rows = [row("French", french, scale=0), row("Spanish", spanish, value=10.8)]
    answer = output(url, "steer", rows, n_tokens=2)
    assert answer == {
        "prompt": PROMPT,
        "default": " basket.",
        "steered": " baloncesto.",
        "ignored": 0,
    }


def test_a_scale_of_a_steer_starts_from_the_graph_s_activation(url, activations):
    feature = FRENCH | {"activation": activations["2_157_4"]}
    answer = output(url, "steer", [row("French", feature, scale=-8)], n_tokens=1)
    place = {"token_active_position": 4, "steer_position": 4, "layer": 2, "index": 157}
    wanted = ask({"action": "steer", "prompt": PROMPT, "n_tokens": 1,
                  "features": [place | {"delta": -9 * activations["2_157_4"]}]})  # fmt: skip
    assert answer["steered"] == wanted["STEERED_GENERATION"].removeprefix(PROMPT)


def test_what_the_leading_token_s_position_ignores_is_counted(url):
    first = FRENCH | {"position": 0}
    assert output(url, "steer", [row("first", first, scale=0)], n_tokens=1)["ignored"] == 1


def test_a_feature_of_attention_is_steered_by_its_kind(tmp_path):
    with (
        serving_complete_demo() as settings,
        serving(model_id="demo", transcoder_set="demo-crm") as server,
        Client.to_url(server.url) as client,
    ):
        graph = complete_graph(PROMPT, settings, slug_identifier="french")
        path = tmp_path / "complete.json"
        path.write_text(json.dumps(graph))
        [node] = [node for node in graph["nodes"] if node["node_id"] == "1_lor_105_4"]
        lorsa = {"layer": 1, "index": 105, "position": 4, "kind": "lorsa"}
        place = {"token_active_position": 4, "steer_position": 4}
        delta = -21 * node["activation"]
        feature = {"layer": 1, "index": 105, "kind": "lorsa", **place, "delta": delta}
        job = {"action": "steer", "prompt": PROMPT, "n_tokens": 3, "features": [feature]}
        wanted = ask(job, settings)["STEERED_GENERATION"]
        with showing([path], worker=worker_of(client)) as url:
            feature = lorsa | {"activation": node["activation"]}
            answer = output(url, "steer", [row("x", feature, scale=-20)], n_tokens=3)
    assert answer["prompt"] + answer["steered"] == wanted
    assert answer["steered"] != answer["default"]


def test_rows_of_one_label_and_of_none_are_told_apart(url):
    rows = [row("a", FRENCH, scale=0), row("a", SPANISH), row("", ANSWER), row(" ", ANSWER)]
    assert len(output(url, "intervene", rows)["shares"]) == 4


def test_what_the_worker_refuses_is_its_sentence(url):
    beyond = FRENCH | {"index": 10**6}
    [*states, last] = events(
        post(url, "intervene", {"graph": "french", "rows": [row("x", beyond, scale=0)]})
    )
    assert all(list(state) == ["state"] for state in states)
    assert last["error"].startswith("invalid_input: groups.x[0].index is 1000000")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scan": "gemma-2-2b"}, "model_not_loaded: model_id 'gemma-2-2b' is not served here"),
        ({"info": {"transcoder_set": "demo-crm"}}, "the graph's features are of 'demo-crm', and"),
        ({"prompt": "Michael Jordan"}, "reads the graph's prompt as other tokens (3, the graph"),
        ({"prompt_tokens": ["<|bos|>", "Mike", " Jordan", " joue", " au"]}, "as other tokens (5"),
    ],
)
def test_another_model_set_or_tokens_than_the_graph_s_are_said(
    french, worker, tmp_path, changed, words
):
    other = french | {"metadata": french["metadata"] | changed}
    with showing_graphs(tmp_path, other, worker=worker) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        assert words in events(post(url, "intervene", body))[-1]["error"]


def test_a_worker_that_is_gone_is_a_sentence(french_file):
    with serving() as server:
        client = Client.to_url(server.url)
    with client, showing([french_file], worker=worker_of(client)) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        assert (
            "nothing takes connections there" in events(post(url, "intervene", body))[-1]["error"]
        )


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {TOKEN_HEADER: None},
        {TOKEN_HEADER: "guessed"},
        {TOKEN_HEADER: "é"},
    ],
)
def test_another_page_and_a_program_without_the_token_may_not_ask(french_file, headers):
    asked = []
    worker = Worker("w", lambda *given: asked.append(given), lambda: asked.append("set"))
    with showing([french_file], worker=worker) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        encoded = {name: value and value.encode() for name, value in headers.items()}
        response = post(url, "intervene", body, **encoded)
        assert response.status_code == 403
        assert response.json()["error"]
    assert asked == []


def test_a_name_that_another_site_gave_this_machine_is_refused(url):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/worker.json", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"[]", "the body"),
        ({"graph": "french", "rows": []}, "rows"),
        ({"graph": "french", "rows": [row("x", FRENCH)]}, "nothing is changed"),
        ({"graph": "french", "rows": [row("x", scale=0)]}, "rows.0.features"),
        ({"graph": "french", "rows": [row("x", FRENCH, scale=0)] * 51}, "rows"),
        ({"graph": "french", "rows": [row("x", FRENCH, scale="0")]}, "rows.0.scale"),
        (
            {"graph": "french", "rows": [row("x", FRENCH | {"layer": -1})]},
            "rows.0.features.0.layer",
        ),
        ({"graph": "french", "rows": [row("x", FRENCH, scale=0)], "prompt": "x"}, "prompt"),
        ({"graph": "french", "rows": [row("x", FRENCH, scale=0)], "n_tokens": 0}, "n_tokens"),
        ({"graph": "french", "rows": [row("x", FRENCH, scale=2)]}, "no activation of L2/157"),
    ],
)
def test_a_question_that_is_none_is_refused_by_its_field(url, body, words):
    response = post(url, "steer", body)
    assert response.status_code == 422
    assert words in response.json()["error"]


def test_other_actions_and_graphs_are_not_found_and_a_large_question_is_refused(url):
    body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
    assert post(url, "generate-graph", body).status_code == 404
    assert post(url, "steer", body | {"graph": "other"}).status_code == 404
    assert post(url, "steer", b" " * 4_000_001).status_code == 413
    assert requests.get(f"{url}worker/steer", timeout=60).status_code == 404


TOKEN = {"token": "a", "token_id": 1, "probability": 0.5}
OUTCOME = {"top": [TOKEN], "targets": [], "groups": {"x": 0.0}}
STEERED = {"DEFAULT_GENERATION": "a", "STEERED_GENERATION": "b"}
ENTRIES: list[list[Any]] = [
    [{}],
    [{"token": "a", "top_logits": []}],
    [["a"]],
    [[1, 2]],
    [[[], [1]]],
    [1],
]


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("intervene", {}),
        ("intervene", {"baseline": OUTCOME, "experiments": []}),
        ("intervene", {"baseline": OUTCOME, "experiments": [OUTCOME] * 2}),
        *(
            ("steer", {**STEERED, "DEFAULT_LOGITS_BY_TOKEN": e, "STEERED_LOGITS_BY_TOKEN": e})
            for e in ENTRIES
        ),
    ],
)
def test_a_worker_that_answers_with_something_else_is_a_sentence(
    french, french_file, caplog, action, answer
):
    forward = {
        "prompt": PROMPT,
        "input_tokens": french["metadata"]["prompt_tokens"],
        "salient_logits": [],
        "total_salient_tokens": 0,
        "cumulative_probability": 0.0,
    }
    worker = Worker(
        "w", lambda job, *_: forward if job["action"] == "forward-pass" else answer, lambda: None
    )
    with showing([french_file], worker=worker) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        last = events(post(url, action, body))[-1]
    assert last == {"error": "w answered with something else than was asked for"}
    assert not caplog.records


@pytest.mark.parametrize("change", [{"scale": 1e308}, {"value": 1e308}])
def test_a_value_beyond_all_finite_numbers_is_refused(url, change):
    feature = FRENCH | {"activation": -1e308}
    response = post(url, "steer", {"graph": "french", "rows": [row("x", feature, **change)]})
    assert response.status_code == 422
    assert "L2/157 at position 4" in response.json()["error"]


def test_without_a_worker_the_page_is_told_how_to_connect_one(french_file):
    with showing([french_file]) as url:
        assert requests.get(f"{url}worker.json", timeout=60).json() == {"name": None, "token": None}
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        response = post(url, "steer", body)
        assert response.status_code == 409
        assert "--worker, --url or --endpoint" in response.json()["error"]


def waiting_worker(began, ended):
    """A worker whose jobs last until they are stopped."""

    def run(job, report, stopped):
        began.append(job["action"])
        stopped.wait(60)
        ended.append(job["action"])
        return {}

    return Worker("waiting", run, lambda: None)


def test_a_page_that_goes_away_stops_its_job_and_meanwhile_a_second_question_waits(french_file):
    began, ended = [], []
    with showing([french_file], worker=waiting_worker(began, ended)) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        content = json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/worker/intervene", body=content, headers=headers_of(url))
        until(lambda: began)
        assert "still at work" in events(post(url, "intervene", body))[-1]["error"]
        connection.close()
        until(lambda: ended)
    assert began == ended == ["forward-pass"]


def test_a_question_after_one_that_was_cancelled_waits_for_its_end(french_file, monkeypatch):
    monkeypatch.setattr("viewer.worker_door._STOPPING_S", 60.0)
    began, told, may_end = [], [], threading.Event()

    def run(job, _report, stopped):
        began.append(job["action"])
        told.append(stopped.wait(60))
        assert may_end.wait(60)
        return {}

    with showing([french_file], worker=Worker("slow to stop", run, lambda: None)) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        headers, asked = headers_of(url), {"json": body, "stream": True, "timeout": 60}
        with requests.post(f"{url}worker/intervene", headers=headers, **asked):
            until(lambda: began)
        with requests.post(f"{url}worker/intervene", headers=headers, **asked) as second:
            may_end.set()
            assert b"comparing the worker" in next(second.iter_lines())
    assert began == ["forward-pass"] * 2


def test_the_viewer_s_end_stops_the_job_that_runs(french_file):
    began, ended = [], []
    with showing([french_file], worker=waiting_worker(began, ended)) as url:
        body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
        asking = threading.Thread(target=lambda: quietly(post, url, "intervene", body))
        asking.start()
        until(lambda: began)
    asking.join()
    assert ended == began


def quietly(function, *given):
    """Call a function whose connection is closed in the middle."""
    with contextlib.suppress(requests.RequestException):
        function(*given)


def test_a_job_is_cancelled_on_the_worker_when_the_page_goes_away(french_file, demo_block):
    body = {"graph": "french", "rows": [row("x", FRENCH, scale=0)]}
    with (
        serving() as server,
        Client.to_url(server.url) as client,
        showing([french_file], worker=worker_of(client)) as url,
    ):
        post(url, "intervene", body)  # by now the worker's model is known to be the graph's
        with held_after(0, demo_block):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            content = json.dumps(body).encode()
            connection.request("POST", "/worker/intervene", body=content, headers=headers_of(url))
            until(lambda: get(server, "/check-busy").json()["busy"])
            connection.close()
            until_hung_up(server)
        assert n_failed(server) == 1


def test_a_viewer_that_is_to_ask_a_worker_that_isn_t_there_says_so(french_file, capsys):
    with serving() as server:
        gone = server.url
    assert main(["view", str(french_file), "--no-browser", "--url", gone]) == 3
    assert "nothing takes connections there" in capsys.readouterr().err


def test_the_program_names_its_worker_and_ends_cleanly_at_ctrl_c(french_file):
    program = [sys.executable, "client.py", "view", str(french_file), "--no-browser", "--url"]
    with (
        serving() as server,
        subprocess.Popen(
            [*program, server.url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running,
    ):
        url = running.stdout.readline().split(" at ")[1].split()[0]
        described = requests.get(f"{url}worker.json", timeout=60).json()
        assert described["name"] == server.url.removeprefix("http://")
        assert output(url, "intervene", [row("French", FRENCH, scale=0)])["shares"] == [0.0]
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 0
        assert running.stderr.read() == ""
