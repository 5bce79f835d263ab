"""Neuronpedia's labels and examples in the viewer, in a real browser, and the link to its page."""

import json

import pytest

from tests.support.browser import keep_screenshot, needs_chromium
from tests.support.complete_viewer_graphs import complete
from tests.support.demo_worker import ask
from tests.support.hostile_graphs import MARKUP
from tests.support.neuronpedia import MODEL, SOURCE_SET, labels_from, neuronpedia
from tests.support.viewer_page import (
    assert_only_its_own_elements,
    boxes,
    drawn_on,
    hover,
    open_graph,
)

pytestmark = [pytest.mark.browser, needs_chromium]

CLICKED = "2_157_4"
NAMES = """d3.selectAll('.link-graph text.node').data()
    .filter(node => isFeature(node)).map(node => [node.node_id, node.ppClerp])"""


@pytest.fixture
def site():
    with neuronpedia() as running:
        yield running


@pytest.fixture(scope="module")
def graph():
    """A graph of a model that Neuronpedia knows: the demo's, under that name."""
    document = ask({"prompt": "Michael Jordan joue au", "slug_identifier": "named"})
    document["metadata"]["scan"] = MODEL
    document["metadata"]["feature_details"] = {"neuronpedia_source_set": SOURCE_SET}
    return document


@pytest.fixture
def show(page, serve, site, tmp_path):
    """Serve a graph with Neuronpedia's labels, open the page on it, and give the address."""

    def open_it(graph, *, asks=True, **query):
        url = serve(graph, descriptions=labels_from(site.url, tmp_path) if asks else None)
        open_graph(page, url, **query)
        return url

    return open_it


def features(graph):
    return [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]


def explain(site, nodes, words=lambda layer, index: f"explained {layer}/{index}"):
    for node in nodes:
        layer, index, _ = node["node_id"].split("_")
        site.add(f"{layer}-{SOURCE_SET}", int(index), words(layer, index))


def named(page, count):
    """The names of features, once this many are explained."""
    page.wait_for_function(
        f"count => {NAMES}.filter(([_, name]) => name.startsWith('explained')).length == count",
        arg=count,
    )
    return dict(page.evaluate(NAMES))


def test_every_feature_gets_its_label_and_the_clicked_one_its_examples(page, site, graph, show):
    explain(site, features(graph))
    show(graph, clickedId=CLICKED, pinnedIds=f"{CLICKED},1_120_4")
    names = named(page, len(features(graph)))
    assert names[CLICKED] == "explained 2/157"
    panel = page.locator(".feature-detail")
    panel.get_by_text("Explained as “explained 2/157”.").wait_for()
    assert panel.locator(".pp-clerp").inner_text() == "explained 2/157"
    assert "The capital of Texas" in panel.locator(".ctx-container").last.inner_text()
    assert panel.get_by_text("Austin").count() == 1
    rows = page.locator(".node-connections .feature-row .label").all_inner_texts()
    assert [row for row in rows if row.startswith("explained")]
    assert "explained 1/120" in page.locator(".subgraph").inner_text()
    keep_screenshot(page, "labels")


@pytest.mark.parametrize(
    ("asks", "words"),
    [(True, "See it on Neuronpedia"), (False, "https://www.neuronpedia.org/gemma-2-2b/")],
)
def test_the_panel_links_to_the_feature_s_page(page, site, graph, show, asks, words):
    explain(site, features(graph))
    show(graph, asks=asks, clickedId=CLICKED)
    link = page.locator(".feature-detail .quantile-title a")
    link.wait_for()
    assert link.inner_text().startswith(words)
    address = f"https://www.neuronpedia.org/{MODEL}/2-{SOURCE_SET}/157"
    assert link.get_attribute("href") == address
    assert "noopener" in link.get_attribute("rel")
    with (
        page.context.expect_event("request", lambda request: request.url == address),
        page.context.expect_page(),
    ):
        link.click()
    assert page.url.startswith("http://127.0.0.1:")


def test_nothing_is_asked_without_the_option(page, site, graph, show):
    explain(site, features(graph))
    show(graph, asks=False, clickedId=CLICKED)
    page.get_by_text("No examples of this feature here.").wait_for()
    assert dict(page.evaluate(NAMES))[CLICKED] == "feature 157"
    assert site.asked == []


def test_the_strongest_are_asked_for_first_and_a_failure_is_one_sentence(page, site, graph, show):
    nodes = features(graph)
    explain(site, nodes)
    site.answers = 0
    show(graph)
    note = page.locator(".no-labels")
    note.wait_for()
    said = note.inner_text()
    assert said.startswith("No labels: 127.0.0.1:")
    assert said.endswith("gave no usable answer: 500: Unknown Error.")
    threshold = graph["metadata"]["node_threshold"]
    influence = {}  # cumulative, as the page has it: the strongest feature's is the lowest
    for node in sorted(nodes, key=lambda node: -node["influence"]):
        influence["_".join(node["node_id"].split("_")[:2])] = min(node["influence"], threshold)
    asked = [f"{one['layer'].partition('-')[0]}_{one['index']}" for one in site.asked[0]]
    assert sorted(asked) == sorted(influence)
    assert [influence[name] for name in asked] == sorted(influence.values())


def test_a_label_of_the_user_s_or_the_graph_s_own_stays(page, site, graph, show):
    document = json.loads(json.dumps(graph))
    for node in document["nodes"]:
        if node["node_id"] == "1_120_4":
            node["clerp"] = "my own"
    explain(site, features(graph))
    show(document, clickedId=CLICKED)
    names = named(page, len(features(graph)) - 1)
    assert names["1_120_4"] == "my own"
    panel = page.locator(".feature-detail")
    panel.locator(".edit-clerp-button").click()
    panel.locator(".clerp-edit input").fill("renamed")
    panel.locator(".clerp-edit input").press("Enter")
    page.wait_for_function(f"() => {NAMES}.some(([_, name]) => name == 'renamed')")


def test_attention_s_features_have_labels_of_their_own_set(page, site, show):
    document = complete()
    source_set = document["metadata"]["feature_details"]["neuronpedia_source_set"]
    site.add(f"1-{source_set}", 7, "explained as the MLP's")
    site.add("1-lorsa-8x", 7, "explained as attention's")
    show(document, clickedId="1_lor_7_3")
    names = named(page, 2)
    assert names["1_lor_7_3"] == "explained as attention's"
    assert names["1_cro_7_3"] == "explained as the MLP's"
    page.get_by_text("Explained as “explained as attention's”.").wait_for()


@pytest.mark.parametrize("markup", MARKUP[2::6])
def test_markup_in_what_neuronpedia_says_is_shown_as_text(page, site, graph, show, markup):
    tokens = [f"▁{markup}"[:50], "b"]
    name = {"modelId": MODEL, "layer": f"2-{SOURCE_SET}", "index": "157"}
    example = {**name, "tokens": tokens, "values": [2.0, 0.5]}
    for node in features(graph):
        layer, index, _ = node["node_id"].split("_")
        texts = {"activations": [example], "pos_str": [markup], "neg_str": [markup]}
        site.add(f"{layer}-{SOURCE_SET}", int(index), markup, f"explained {markup}", **texts)
    url = show(graph, clickedId=CLICKED, pinnedIds=CLICKED)
    shown = " ".join(markup.split())
    page.wait_for_function(f"wanted => {NAMES}.every(([_, name]) => name == wanted)", arg=shown)
    panel = page.locator(".feature-detail")
    panel.locator(".ctx-container .token").first.wait_for()
    assert f"Explained as “{shown}”; “explained {shown}”." in panel.inner_text()
    assert panel.locator(".ctx-container span.token").last.text_content() == "b"
    hover(page, boxes(page)[0])
    assert_only_its_own_elements(page, url)
    assert page.evaluate("window.ran") is None


def test_labels_wait_until_a_name_is_written(page, site, graph, show):
    """Drawing the panel again would take the name away."""
    explain(site, features(graph))
    holds = []
    page.route("**/labels", lambda route: holds.append(route))
    show(graph, clickedId=CLICKED)
    panel = page.locator(".feature-detail")
    panel.locator(".edit-clerp-button").click()
    panel.locator(".clerp-edit input").press_sequentially("ren")
    with page.expect_response("**/labels") as answered:
        holds[0].continue_()
    answered.value.finished()
    drawn_on(page)
    panel.locator(".clerp-edit input").press_sequentially("amed")
    assert panel.locator(".clerp-edit input").input_value() == "renamed"
    panel.locator(".clerp-edit input").press("Enter")
    names = named(page, len(features(graph)) - 1)
    assert names[CLICKED] == "renamed"
