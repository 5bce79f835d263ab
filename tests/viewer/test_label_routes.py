"""What the viewer's server says of real models' features, and whom it lets ask for it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import requests

from graphs.nodes import cantor_pairing
from tests.support.neuronpedia import LORSA_SET, SOURCE_SET, labels_from, neuronpedia
from tests.support.programs import ROOT
from tests.support.viewer_server import showing
from viewer.feature_panels import LORSA_LAYERS

METADATA = {
    "slug": "paris",
    "scan": "gemma-2-2b",
    "prompt": "La capitale",
    "prompt_tokens": ["La", " capitale"],
    "feature_details": {
        "neuronpedia_source_set": SOURCE_SET,
        "neuronpedia_lorsa_source_set": LORSA_SET,
    },
}
MLP = cantor_pairing(5, 123)
ATTENTION = cantor_pairing(LORSA_LAYERS + 5, 123)
PAGE = "https://www.neuronpedia.org/gemma-2-2b/5-gemmascope-transcoder-16k/123"


@pytest.fixture
def site():
    with neuronpedia() as running:
        running.add(f"5-{SOURCE_SET}", 123, "capitals", "Austin")
        yield running


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"metadata": METADATA, "qParams": {}, "nodes": [], "links": []}))
    return path


@pytest.fixture
def url(site, graph, tmp_path):
    with showing([graph], labels_from(site.url, tmp_path)) as address:
        yield f"{address}features_of/paris"


def ask(url, numbers, **headers):
    return requests.post(f"{url}/labels", json=numbers, headers=headers, timeout=60)


def test_labels_come_for_the_numbers_that_have_one(site, url):
    site.add(f"5-{LORSA_SET}", 123, "looks back")
    site.add(f"5-{SOURCE_SET}", 9)
    answer = ask(
        url, [MLP, ATTENTION, cantor_pairing(5, 9), cantor_pairing(6, 1), cantor_pairing(20_000, 1)]
    )
    labels = {str(MLP): "capitals", str(ATTENTION): "looks back"}
    assert answer.json() == {"labels": labels, "problem": None}


def test_a_panel_has_explanations_examples_and_the_page(site, url):
    panel = requests.get(f"{url}/{MLP}.json", timeout=60).json()
    [group] = panel["examples_quantiles"]
    assert group["quantile_name"] == "Explained as “capitals”; “Austin”."
    assert group["examples"][0]["tokens"] == [" The", " capital", " of", " Texas"]
    assert group["examples"][0]["train_token_ind"] == 3
    assert panel["top_logits"] == [" Austin", " Texas"]
    assert (panel["act_min"], panel["act_max"]) == (0, 12.5)
    assert (panel["histogram"], panel["activation_frequency"]) == ([40, 20, 4], 0.0015)
    assert panel["page"] == PAGE
    ask(url, [MLP])
    assert len(site.asked) == 1  # a panel and its label are one request


def test_a_feature_that_is_not_there_and_one_without_explanation_are_told_apart(site, url):
    site.add(f"5-{SOURCE_SET}", 9, activations=[], maxActApprox=None)
    numbers = (cantor_pairing(5, 9), cantor_pairing(5, 10))
    panels = [requests.get(f"{url}/{number}.json", timeout=60).json() for number in numbers]
    titles = [panel["examples_quantiles"][0]["quantile_name"] for panel in panels]
    assert titles[0] == (
        "Neuronpedia has no explanation of this feature. It has no examples of it."
    )
    assert titles[1].startswith("No examples of this feature here: Neuronpedia has no such feature")


def test_without_a_network_the_panel_and_the_labels_say_why(site, url):
    site.answers = 0
    answer = ask(url, [MLP]).json()
    assert answer["labels"] == {}
    assert "gave no usable answer" in answer["problem"]
    panel = requests.get(f"{url}/{MLP}.json", timeout=60).json()
    title = panel["examples_quantiles"][0]["quantile_name"]
    assert answer["problem"] in title
    assert title.endswith(PAGE)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{}", 400), (b"[-1]", 400), (b'["1"]', 400), (b"[true]", 400), (b"[1.5]", 400),
     (json.dumps([1] * 51).encode(), 400), (b" " * 10_001, 413)],
)  # fmt: skip
def test_what_is_no_short_list_of_numbers_is_refused(site, url, body, status):
    assert requests.post(f"{url}/labels", data=body, timeout=60).status_code == status
    assert site.asked == []


@pytest.mark.parametrize("origin", ["cross-site", "same-site"])
def test_another_site_s_page_can_not_make_this_server_ask(site, url, origin):
    headers = {"Sec-Fetch-Site": origin}
    assert ask(url, [MLP], **headers).status_code == 403
    panel = requests.get(f"{url}/{MLP}.json", headers=headers, timeout=60)
    assert panel.status_code == 403
    assert site.asked == []


def test_the_page_asks_only_where_labels_are_asked_for_and_somewhere_described(graph, tmp_path):
    def asks(path, descriptions):
        with showing([path], descriptions) as address:
            index = requests.get(f"{address}features_of/paris.json", timeout=60).json()
            status = ask(f"{address}features_of/paris", [MLP]).status_code
        return [kind["asks"] for kind in index.values()], status

    assert asks(graph, None) == ([False, False], 404)
    labels = labels_from("http://127.0.0.1:9", tmp_path)
    assert asks(graph, labels) == ([True, True], 200)
    details = {"neuronpedia_source_set": SOURCE_SET}
    transcoders = {**METADATA, "feature_details": details}
    document = {"metadata": transcoders, "qParams": {}, "nodes": [], "links": []}
    graph.write_text(json.dumps(document))
    assert asks(graph, labels) == ([True, False], 200)
    demo = {**METADATA, "scan": "demo", "info": {"transcoder_set": "demo/transcoders"}}
    graph.write_text(json.dumps({**document, "metadata": demo}))
    assert asks(graph, labels)[0] == [False, False]


def test_the_program_asks_with_the_option_alone_and_says_once_what_goes_wrong(
    site, graph, tmp_path
):
    def asked(*options):
        """The labels that `client.py view` gives, and what it says besides."""
        command = [sys.executable, "client.py", "view", str(graph), "--no-browser", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "NEURONPEDIA_URL": site.url, "XDG_CACHE_HOME": str(tmp_path)}
        with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as running:
            address = running.stdout.readline().split(" at ")[1].split()[0]
            answers = [ask(f"{address}features_of/paris", [number]) for number in (MLP, MLP + 1)]
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=60) == 0
            return [answer.status_code for answer in answers], running.stderr.read()

    assert asked("--port", "0") == ([404, 404], "")
    assert asked("--port", "0", "--labels") == ([200, 200], "")
    assert (tmp_path / "attribution-client" / "labels-1.sqlite").exists()
    site.answers = 0
    (tmp_path / "attribution-client" / "labels-1.sqlite").unlink()
    statuses, said = asked("--port", "0", "--labels")
    assert statuses == [200, 200]
    assert said.startswith("labels: 127.0.0.1:")
    assert said.count("\n") == 1
