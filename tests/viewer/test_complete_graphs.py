"""Complete graphs in the viewer, in a real browser: attention's features, errors and traces."""

from collections import Counter

import pytest

from tests.support.browser import keep_screenshot, needs_chromium
from tests.support.complete_viewer_graphs import complete, marked_up_complete
from tests.support.hostile_graphs import MARKUP, sound
from tests.support.traced_demo import complete_graph, serving_complete_demo
from tests.support.viewer_page import assert_only_its_own_elements, boxes, clicked, hover

pytestmark = [pytest.mark.browser, needs_chromium]

SYMBOLS = {
    "cross layer transcoder": "●",
    "lorsa": "▲",
    "mlp reconstruction error": "◆",
    "lorsa error": "◇",
    "embedding": "■",
    "logit": "■",
}
LISTS = ("top_q_marginal_contributors", "top_k_marginal_contributors", "pair_wise_contributors")
HOVERED = """d3.selectAll('.link-graph circle')
    .filter(function() { return this.style.display !== 'none' }).data().map(d => d.node_id)"""
PAGE = "https://www.neuronpedia.org/gemma-2-2b/1-"


@pytest.fixture(scope="module")
def demo():
    with serving_complete_demo() as settings:
        return complete_graph("Michael Jordan joue au", settings)


def entries(page, name):
    rows = page.locator(f".qk-list[data-list={name}] .qk-row")
    return [row.inner_text().split("\n") for row in rows.all()]


def test_every_node_is_drawn_as_its_kind_attention_s_apart_from_the_mlp_s(page, show, demo):
    show(demo)
    wanted = Counter(SYMBOLS[node["feature_type"]] for node in demo["nodes"])
    assert set(wanted) == {*SYMBOLS.values()}
    assert Counter(page.locator(".link-graph text.node").all_text_contents()) == wanted


def test_the_legend_names_the_shapes_that_are_there(page, show):
    show(complete())
    assert page.locator(".legend > span").all_text_contents() == [
        "● MLP feature",
        "▲ attention feature (Lorsa)",
        "◆ MLP error",
        "◇ attention error",
        "■ token, prediction",
    ]
    show(sound())
    legend = page.locator(".legend").inner_text()
    assert "MLP feature" in legend
    assert "attention" not in legend


def test_a_traced_feature_s_panel_and_lists_are_as_in_the_graph(page, show, demo):
    show(demo, clickedId="1_lor_105_4", pinnedIds="1_lor_105_4,E_1165_1,2_cro_157_4,5_484_4")
    panel = page.locator(".feature-detail")
    panel.get_by_text("Reads “Michael” most. Fires in 7 of the corpus's 744 texts").wait_for()
    [node] = [node for node in demo["nodes"] if node["node_id"] == "1_lor_105_4"]
    title = panel.locator(".feature-title").inner_text().replace("\xa0", " ")
    assert title.startswith("Feature L1/105")
    assert f"Act: {node['activation']:.2f}" in title
    assert panel.locator(".pp-clerp").inner_text() == "Michael ⇢ au → basket"
    assert page.locator(".node-connections .header-top-row text").inner_text() == "L1/105"
    tracing = page.locator(".qk-tracing")
    assert "Why it looks from 4 “ au” to 1 “Michael”" in tracing.inner_text()
    for name in LISTS:
        wanted = node["qk_tracing_results"][name]
        shown = entries(page, name)
        assert [row[-1] for row in shown] == [f"{entry[-1]:+.2f}" for entry in wanted]
    assert entries(page, LISTS[1])[0][0] == "● L0/221 Stephen → Ngapeth"
    assert page.locator(".subgraph .member-circle.lorsa").count() == 1
    keep_screenshot(page, "complete-graph")


def test_a_contributor_in_the_graph_is_selected_by_a_click_and_another_is_named(page, show):
    show(complete(), clickedId="1_lor_7_3")
    assert entries(page, LISTS[0]) == [["● L0/3 feature 3", "+2.00"],
                                       ["+ L0 L0 Bias (lorsa_bQ)", "+1.00"]]  # fmt: skip
    outside = page.locator(".qk-outside")
    assert outside.all_text_contents() == [
        "+ L0 L0 Bias (lorsa_bQ)",
        "▲ L0/8 feature 8",
        "+ L0 L0 Bias (lorsa_bQ)",
    ]
    page.get_by_role("button", name="L0/3 feature 3").first.click()
    assert clicked(page) == ["0_cro_3_3"]
    assert page.locator(".qk-tracing").count() == 0


def test_a_contributor_below_the_pruning_threshold_is_named_and_not_offered(page, show):
    show(complete(), clickedId="1_lor_7_3", pruningThreshold=0.5)
    assert page.get_by_role("button", name="L0/3").count() == 0
    assert page.locator(".qk-outside").first.text_content() == "● L0/3 feature 3"


def test_a_transcoder_s_and_a_lorsa_s_feature_of_one_number_are_two(page, show):
    graph = complete()
    assert graph["nodes"][1]["feature"] == graph["nodes"][2]["feature"]
    for node_id, source_set in (("1_cro_7_3", "gemmascope"), ("1_lor_7_3", "lorsa-8x")):
        show(graph, clickedId=node_id)
        page.get_by_text(f"With the internet: {PAGE}{source_set}/7").wait_for()
        link = page.locator(".feature-title a")
        assert link.inner_text() == "L1/7"
        assert link.get_attribute("href") == f"{PAGE}{source_set}/7"
    ids = page.evaluate("d3.selectAll('.link-graph text.node').data().map(d => d.featureId)")
    assert len({*ids}) == len(ids) == len(graph["nodes"])


def test_a_label_given_to_one_is_not_the_other_s(page, show):
    show(complete(), clickedId="1_lor_7_3")
    page.locator(".edit-clerp-button").click()
    page.locator(".clerp-edit input").fill("reads the noun")
    page.keyboard.press("Tab")
    page.locator(".feature-detail .pp-clerp").get_by_text("reads the noun").wait_for()
    page.reload()
    page.locator(".link-graph text.node").first.wait_for()
    labels = page.evaluate(
        "Object.fromEntries(d3.selectAll('.link-graph text.node').data()"
        ".map(d => [d.node_id, d.ppClerp]))"
    )
    assert labels["1_lor_7_3"] == "reads the noun"
    assert labels["1_cro_7_3"] == "feature 7"


def test_the_errors_of_mlp_and_attention_at_one_place_are_two(page, show):
    show(complete(), clickedId="1_error_attn_3")
    assert clicked(page) == ["1_error_attn_3"]
    assert page.locator(".feature-detail .feature-title").inner_text() == 'Err: attn " est"'
    order = page.evaluate("d3.selectAll('.link-graph text.node').data().map(d => d.node_id)")
    for node_id in ("1_error_attn_3", "1_error_mlp_3"):
        hover(page, boxes(page)[order.index(node_id)])
        assert page.evaluate(HOVERED) == [node_id]


@pytest.mark.parametrize("number", [0, 2, 20, 25, 29])
def test_markup_in_traces_and_their_nodes_is_text(page, show, number):
    markup = MARKUP[number]
    url = show(marked_up_complete(markup), clickedId="1_lor_7_3")
    tracing = page.locator(".qk-tracing").text_content()
    assert f"from 3 “{markup}3” to 1 “{markup}1”" in tracing
    assert f"{markup} nowhere" in tracing
    assert f"L0/3 {markup}" in tracing
    assert f"L0 {markup}" in tracing
    for box in boxes(page):
        hover(page, box)
        page.mouse.click(box["x"], box["y"])
        assert_only_its_own_elements(page, url)
    assert page.evaluate("window.ran") is None


def _lorsa(graph):
    return graph["nodes"][2]


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda graph: _lorsa(graph).update(feature=None),
         "nodes[2].feature must be a number of layer and index, and is null"),
        (lambda graph: _lorsa(graph).update(qk_tracing_results=[]),
         "nodes[2].qk_tracing_results must be an object, and is []"),
        (lambda graph: _lorsa(graph)["qk_tracing_results"].pop(LISTS[0]),
         "nodes[2].qk_tracing_results.top_q_marginal_contributors must be pairs of an id and a "
         "number, and is absent"),
        (lambda graph: _lorsa(graph)["qk_tracing_results"].update({LISTS[2]: [["a", 1]]}),
         'pair_wise_contributors must be triples of two ids and a number, and is [["a",1]]'),
        (lambda graph: graph.update(qk_only_nodes=[]),
         "qk_only_nodes must be an object, and is []"),
        (lambda graph: graph["qk_only_nodes"].update(x=None),
         'qk_only_nodes["x"] must be an object, and is null'),
        (lambda graph: graph["qk_only_nodes"]["0_lor_8_1"].update(ctx_idx=4),
         'qk_only_nodes["0_lor_8_1"].ctx_idx must be a position below 4, and is 4'),
        (lambda graph: graph["qk_only_nodes"]["0_lor_8_1"].update(feature=-1),
         'qk_only_nodes["0_lor_8_1"].feature must be a number of layer and index, and is -1'),
    ],
)  # fmt: skip
def test_a_trace_that_can_t_be_drawn_is_named(page, show, break_it, sentence):
    graph = complete()
    break_it(graph)
    show(graph)
    assert sentence in page.locator("p.no-graph").text_content()


def test_of_a_long_list_the_first_hundred_are_shown_and_the_rest_counted(page, show):
    graph = complete()
    _lorsa(graph)["qk_tracing_results"][LISTS[0]] = [["0_cro_3_3", float(i)] for i in range(5000)]
    show(graph, clickedId="1_lor_7_3")
    assert len(entries(page, LISTS[0])) == 100
    assert page.locator(".qk-more").all_text_contents() == ["and 4900 more"]


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString"])
def test_names_that_mean_something_in_a_script_are_names(page, show, name):
    graph = complete()
    graph["nodes"].append(
        graph["nodes"][3] | {"node_id": name, "feature_type": name, "clerp": "odd"}
    )
    _lorsa(graph)["qk_tracing_results"][LISTS[0]] = [[name, 1.0], ["toString", 0.5]]
    url = show(graph, clickedId="1_lor_7_3")
    assert len(entries(page, LISTS[0])) == 2
    assert_only_its_own_elements(page, url)


def test_a_graph_that_is_drawn_again_with_another_threshold_keeps_its_features(page, show, demo):
    show(demo, clickedId="1_lor_105_4")
    words = "Reads “Michael” most. Fires in 7 of the corpus's 744 texts"
    page.locator(".feature-detail").get_by_text(words).wait_for()
    page.evaluate("document.querySelector('.feature-detail').remove()")
    page.locator(".slider-container input").press("ArrowLeft")  # draws all of it anew
    page.locator(".feature-detail").get_by_text(words).wait_for()
