"""circuit-tracer's viewer in a real browser: what it draws is what the graph says."""

import json
from collections import Counter
from itertools import pairwise

import pytest

from tests.support.browser import keep_screenshot, needs_chromium, watched_page
from tests.support.demo_in_the_viewer import PROMPTS
from tests.support.demo_worker import ask
from tests.support.viewer_page import click_node, clicked, open_graph
from tests.support.viewer_server import showing_graphs

pytestmark = [pytest.mark.browser, needs_chromium]

SYMBOLS = {
    "cross layer transcoder": "●",
    "mlp reconstruction error": "◆",
    "embedding": "■",
    "logit": "■",
}

COUNT_LINES = """
for (const [name, count] of [['clearRect', () => 0], ['lineTo', lines => (lines ?? 0) + 1]]) {
    const original = CanvasRenderingContext2D.prototype[name];
    CanvasRenderingContext2D.prototype[name] = function (...given) {
        this.lines = count(this.lines);
        return original.apply(this, given);
    };
}
"""

CLICKED = "2_157_4"
PINNED = (
    *("E_1165_1", "E_719_2", "E_383_3", "E_379_4", "0_110_4", "1_120_4", "1_373_4"),
    *("2_157_4", "2_125_4", "3_338_4", "3_214_4", "5_484_4"),
)
GROUPS = (
    ("Michael Jordan", "E_1165_1", "E_719_2"),
    ("joue au", "E_383_3", "E_379_4"),
    ("a sport, in French", "1_120_4", "1_373_4"),
    ("say a sport", "2_125_4", "3_214_4"),
    ("say basket", "2_157_4", "3_338_4"),
)


@pytest.fixture(scope="module")
def graphs():
    """A graph document of the demo model for each of PROMPTS, errors among its nodes."""
    wanted = {"action": "generate-graph", "max_n_logits": 5, "desired_logit_prob": 0.999}
    return {
        slug: ask({**wanted, "prompt": prompt, "slug_identifier": slug, "node_threshold": 0.9})
        for slug, prompt in PROMPTS.items()
    }


@pytest.fixture(scope="module")
def url(graphs, tmp_path_factory):
    with showing_graphs(tmp_path_factory.mktemp("graphs"), *graphs.values()) as address:
        yield address


@pytest.fixture
def page(browser):
    with watched_page(
        browser, viewport={"width": 1280, "height": 760}, device_scale_factor=1.5
    ) as opened:
        opened.add_init_script(COUNT_LINES)
        yield opened


def nodes(page):
    return page.locator(".link-graph text.node")


def drawn_links(page):
    """How many lines there are on each canvas that has any."""
    return page.evaluate(
        """[...document.querySelectorAll('.link-graph canvas')]
            .map(canvas => canvas.getContext('2d').lines).filter(lines => lines)"""
    )


def rows(page, side):
    return page.locator(f".node-connections .features.{side} .feature-row")


@pytest.mark.parametrize("slug", PROMPTS)
def test_every_node_of_the_graph_is_drawn_as_its_kind(page, url, graphs, slug):
    open_graph(page, url, slug=slug)
    wanted = [SYMBOLS[node["feature_type"]] for node in graphs[slug]["nodes"]]
    assert "◆" in wanted
    assert Counter(nodes(page).all_text_contents()) == Counter(wanted)


def test_tokens_and_predictions_stand_at_the_axes(page, url, graphs):
    open_graph(page, url, slug="french")
    tokens = page.locator(".prompt-token text").all_text_contents()
    assert tokens == graphs["french"]["metadata"]["prompt_tokens"]
    drawn = page.locator(".link-graph svg").first.text_content()
    for token in (" basket", " volley", " au", " tennis", " handball"):
        assert token.strip() in drawn


def test_each_clicked_node_shows_its_links_and_no_others(page, url, graphs):
    graph = graphs["french"]
    into = Counter(link["target"] for link in graph["links"])
    out_of = Counter(link["source"] for link in graph["links"])
    open_graph(page, url, slug="french")
    for node in graph["nodes"]:
        if clicked(page) != [node["node_id"]]:  # the page opens with the likeliest token clicked
            click_node(page, node["node_id"])
        assert clicked(page) == [node["node_id"]]
        sides = into[node["node_id"]], out_of[node["node_id"]]
        assert (rows(page, "input").count(), rows(page, "output").count()) == sides
        assert drawn_links(page) == ([sum(sides)] * 2 if any(sides) else [])  # colour on black
    assert into.total() == out_of.total() == len(graph["links"])


def test_the_page_opens_with_the_likeliest_token_clicked_and_a_click_lets_go(page, url):
    open_graph(page, url, slug="french")
    assert clicked(page) == ["5_484_4"]
    click_node(page, "5_484_4")
    assert clicked(page) == []
    assert drawn_links(page) == []


def test_a_clicked_feature_s_panel_says_what_it_fires_on(page, url, graphs):
    open_graph(page, url, slug="french")
    click_node(page, CLICKED)
    panel = page.locator(".feature-detail")
    panel.get_by_text("Fires in 44 of the corpus's 744 texts: sport in French 37").wait_for()
    [node] = [node for node in graphs["french"]["nodes"] if node["node_id"] == CLICKED]
    assert f"Act: {node['activation']:.2f}" in panel.locator(".feature-title").inner_text()
    assert panel.locator(".pp-clerp").inner_text() == "le → basket"
    assert "basket" in panel.locator(".feature-example-logits").inner_text()
    assert panel.locator(".text-wrapper").first.inner_text().endswith(" le basket.")


def test_the_lines_of_an_example_cover_one_another_nowhere(page, url):
    """Those of a chat."""
    open_graph(page, url, slug="french")
    click_node(page, "3_208_4")
    page.locator(".ctx-container").get_by_text("im_start").first.wait_for()
    tokens = page.evaluate(
        """[...document.querySelectorAll('.ctx-container')].map(example =>
            [...example.querySelectorAll('.token')].flatMap(token => [...token.getClientRects()])
                .filter(box => box.width).map(({top, bottom}) => [top, bottom]))"""
    )
    lines = [sorted({tuple(map(round, box)) for box in example}) for example in tokens]
    assert max(map(len, lines)) > 2
    assert all(one[1] <= other[0] for example in lines for one, other in pairwise(example))


def test_the_selector_changes_the_graph(page, url, graphs):
    open_graph(page, url)
    chooser = page.locator(".graph-prompt-select")
    assert chooser.locator("option").count() == len(graphs)
    assert nodes(page).count() == len(graphs["french"]["nodes"])
    chooser.select_option("spanish")
    page.get_by_text("baloncesto", exact=True).first.wait_for()
    assert nodes(page).count() == len(graphs["spanish"]["nodes"])
    assert page.title().endswith(graphs["spanish"]["metadata"]["prompt"])


def test_a_lower_pruning_threshold_shows_fewer_nodes(page, url, graphs):
    open_graph(page, url, slug="french", pruningThreshold=0.5)
    wanted = [
        node for node in graphs["french"]["nodes"]
        if node["feature_type"] in {"embedding", "logit"} or node["influence"] <= 0.5
    ]  # fmt: skip
    assert nodes(page).count() == len(wanted) < len(graphs["french"]["nodes"])


def test_pins_are_kept_in_the_address_and_no_save_is_offered(page, url, graphs):
    wanted = {node["node_id"] for node in graphs["french"]["nodes"]}
    assert wanted.issuperset(PINNED), "the demo model has changed: choose the picture's nodes anew"
    open_graph(
        page,
        url,
        slug="french",
        clickedId=CLICKED,
        pinnedIds=",".join(PINNED),
        supernodes=json.dumps(GROUPS),
    )
    page.get_by_text("Fires in 44").wait_for()
    subgraph = page.locator(".subgraph")
    for label, *_ in GROUPS:
        subgraph.get_by_text(label, exact=True).wait_for()
    assert subgraph.locator(".member-circle").count() == len(PINNED)
    assert subgraph.locator("path.link-path").count() > len(GROUPS)
    assert not page.locator(".save-button").is_visible()


def test_automatic_groups_and_a_feature_are_seen_together(page, show):
    """The README's picture."""
    job = {"action": "generate-graph", "prompt": PROMPTS["french"], "slug_identifier": "auto"}
    graph = ask({**job, "max_n_logits": 5, "desired_logit_prob": 0.999, "supernodes": "auto"})
    show(graph, clickedId=CLICKED)
    page.get_by_text("Fires in 44").wait_for()
    subgraph = page.locator(".subgraph")
    for label, *_ in graph["qParams"]["supernodes"]:
        subgraph.get_by_text(label, exact=True).wait_for()
    page.mouse.move(5, 5)
    page.locator(".tooltip-hidden").wait_for(state="attached")
    keep_screenshot(page, "graph")


def test_a_ctrl_click_pins_g_groups_and_a_reload_keeps_both(page, url):
    open_graph(page, url, slug="spanish", clickedId="2_146_4")
    subgraph = page.locator(".subgraph")
    page.keyboard.down("Control")
    for node_id in ("2_146_4", "5_486_4"):
        click_node(page, node_id)
    page.keyboard.up("Control")
    assert subgraph.locator(".supernode-container").count() == 2
    page.keyboard.down("g")
    for circles in subgraph.locator(".supernode-container").all():
        circles.click(position={"x": 3, "y": 30})
    page.keyboard.up("g")
    assert subgraph.locator(".supernode-container").count() == 1
    page.reload()
    nodes(page).first.wait_for()
    assert subgraph.locator(".supernode-container").count() == 1
    assert subgraph.locator(".member-circle").count() == 2


def test_a_label_given_to_a_feature_is_kept(page, url):
    open_graph(page, url, slug="spanish", clickedId="2_146_4")
    page.locator(".edit-clerp-button").click()
    page.locator(".clerp-edit input").fill("say baloncesto")
    page.keyboard.press("Tab")
    label = page.locator(".node-connections .feature-title")
    label.get_by_text("say baloncesto").wait_for()
    address = page.url
    page.evaluate("localStorage.clear()")
    page.goto("about:blank")
    page.goto(address)
    label.get_by_text("say baloncesto").wait_for()


@pytest.fixture(scope="module")
def another_models(graphs, tmp_path_factory):
    """The French graph as a graph of Gemma's would be, with a token that is a script."""
    graph = json.loads(json.dumps(graphs["french"]))
    graph["metadata"] |= {
        "scan": "gemma-2-2b",
        "feature_details": {"neuronpedia_source_set": "gemmascope-transcoder-16k"},
    }
    graph["nodes"][-1]["clerp"] = 'Output "<img src=x onerror=window.ran=1>" (p=0.001)'
    with showing_graphs(tmp_path_factory.mktemp("gemma"), graph) as address:
        yield address


def test_another_model_s_panel_points_to_neuronpedia_and_asks_it_nothing(page, another_models):
    open_graph(page, another_models)
    click_node(page, CLICKED)
    address = "https://www.neuronpedia.org/gemma-2-2b/2-gemmascope-transcoder-16k/157"
    page.get_by_text(f"No examples of this feature here. With the internet: {address}").wait_for()
    link = page.locator(".feature-title a")
    assert link.inner_text() == "L2/157"
    assert link.get_attribute("href") == address
    keep_screenshot(page, "another-model")


def test_a_token_that_is_a_script_is_shown_and_does_not_run(page, another_models, graphs):
    open_graph(page, another_models)
    last = graphs["french"]["nodes"][-1]["node_id"]
    page.evaluate("id => utilCg.showTooltip({}, {ppClerp: d3.selectAll('.link-graph text.node')"
                  ".filter(d => d.node_id === id).datum().clerp})", last)  # fmt: skip
    tooltip = page.locator(".tooltip")
    assert tooltip.text_content() == 'Output "<img src=x onerror=window.ran=1>" (p=0.001)'
    assert tooltip.locator("*").count() == 0
    assert page.evaluate("window.ran") is None
