"""The page of two graphs beside each other, in a real browser."""

import json
from itertools import pairwise
from urllib.parse import urlencode

import pytest

from remote.offline.compare import compare
from tests.support.browser import keep_screenshot, needs_chromium, watched_page
from tests.support.complete_viewer_graphs import complete, marked_up_complete
from tests.support.demo_in_the_viewer import PROMPTS
from tests.support.demo_worker import ask
from tests.support.hostile_graphs import MARKUP, marked_up
from tests.support.large_graphs import large_graph
from tests.support.viewer_page import (
    assert_only_its_own_elements,
    boxes,
    boxes_of,
    drawn_on,
    hover,
    overlap,
)
from tests.support.viewer_server import showing

pytestmark = [pytest.mark.browser, needs_chromium]

LISTS = ("In both", "Only in A", "Only in B")
TABLE = ("table", "thead", "tbody", "tr", "th", "td")
SIZES = [(1280, 800), (1920, 1080)]

# Of lists: whether what is chosen is seen whole.
FITS = """lists => lists.map(list => {
    const style = getComputedStyle(list), canvas = document.createElement('canvas');
    const context = Object.assign(canvas.getContext('2d'), {font: style.font});
    const arrow = Math.max(20, parseFloat(style.paddingRight));
    return context.measureText(list.selectedOptions[0].text).width < list.clientWidth - arrow;
})"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    directory = tmp_path_factory.mktemp("graphs")
    for slug, prompt in PROMPTS.items():
        graph = ask({"prompt": prompt, "slug_identifier": slug, "node_threshold": 0.9})
        (directory / f"{slug}.json").write_text(json.dumps(graph))
    return [directory / f"{slug}.json" for slug in PROMPTS]


@pytest.fixture(scope="module")
def url(paths):
    with showing(paths) as address:
        yield address


def compare_graphs(page, url, **query):
    page.goto(f"{url}compare?{urlencode(query)}")
    page.locator("[data-side=B] text.node").first.wait_for()


def lines(page, name):
    """The lines of a list, which is opened."""
    page.get_by_role("tab", name=name).click()
    assert page.get_by_role("tab", name=name).get_attribute("aria-selected") == "true"
    return [
        line.locator("td").all_inner_texts() for line in page.locator(".compared tbody tr").all()
    ]


def written(feature, *sides):
    kind = " (Lorsa)" if feature.key.kind == "lorsa" else ""
    cells = [f"L{feature.key.layer}/{feature.key.index}{kind}"]
    for i in sides:
        cells += [f"{feature.graphs[i].influence:.2%}", f"{feature.graphs[i].activation:.2f}"]
    return cells


def without_words(cells):
    """A line without its label and its tokens."""
    return [cells[0], *(cell for i, cell in enumerate(cells[2:]) if i % 3 != 2)]


def names(page, side, css):
    """The features, by layer and index, of a side's nodes of a class."""
    return page.evaluate(
        """([side, css]) => d3.selectAll(`[data-side=${side}] text.node.${css}`).data()
            .map(d => `L${d.layer}/${util.cantorUnpair(d.feature)[1]}`)""",
        [side, css],
    )


def middle(page, side, name):
    return page.evaluate(
        """([side, name]) => {
            const nameOf = d => `L${d.layer}/${util.cantorUnpair(d.feature)[1]}`;
            const isIt = d => isFeature(d) && nameOf(d) === name;
            const nodes = d3.selectAll(`[data-side=${side}] text.node`).filter(isIt);
            const box = nodes.node().getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        [side, name],
    )


def test_the_lists_have_the_features_and_numbers_of_the_client_s_comparison(page, url, paths):
    comparison = compare(paths)
    compare_graphs(page, url, a="french", b="spanish")
    only_a, only_b = (
        [feature for feature in comparison.differing if feature.graphs[i]] for i in (0, 1)
    )
    wanted = {
        "In both": [written(feature, 0, 1) for feature in comparison.common],
        "Only in A": [written(feature, 0) for feature in only_a],
        "Only in B": [written(feature, 1) for feature in only_b],
    }
    for name in LISTS:
        shown = lines(page, name)
        assert sorted(map(without_words, shown)) == sorted(wanted[name])
        assert page.get_by_role("tab", name=name).inner_text() == f"{name}: {len(wanted[name])}"
    strongest = lines(page, "In both")[0]
    assert without_words(strongest) == wanted["In both"][0]
    positions = comparison.common[0].graphs[0].positions
    assert strongest[4].startswith(f"{positions[0]} “")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_shared_features_and_those_of_one_graph_are_told_apart(browser, url, paths, width, height):
    comparison = compare(paths)
    with watched_page(browser, viewport={"width": width, "height": height}) as page:
        compare_graphs(page, url, a="french", b="spanish")
        common = {f"L{feature.key.layer}/{feature.key.index}" for feature in comparison.common}
        for i, side in enumerate("AB"):
            differing = {
                f"L{f.key.layer}/{f.key.index}" for f in comparison.differing if f.graphs[i]
            }
            assert set(names(page, side, "in-both")) == common
            assert set(names(page, side, "in-one")) == differing
            box = page.locator(f"[data-side={side}]").bounding_box()
            for x, y in (middle(page, side, name) for name in common | differing):
                assert box["x"] <= x <= box["x"] + box["width"]
                assert box["y"] <= y <= box["y"] + box["height"]
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator(".compared tbody tr").first.click()
        keep_screenshot(page, f"compare-{width}")


def test_a_feature_pointed_at_in_one_is_marked_in_the_other_and_in_the_list(page, url, paths):
    name = written(compare(paths).common[0])[0]
    compare_graphs(page, url, a="french", b="spanish")
    page.mouse.move(*middle(page, "A", name), steps=3)
    page.locator("[data-side=B] .node.pointed").first.wait_for()
    assert set(names(page, "B", "pointed")) == set(names(page, "A", "pointed")) == {name}
    assert page.locator(".compared tr.pointed td").first.inner_text() == name
    page.mouse.move(5, 5)
    page.locator("[data-side=B] .node.pointed").first.wait_for(state="detached")
    page.locator(".compared tbody tr").nth(1).hover()
    assert names(page, "A", "pointed") == names(page, "B", "pointed") != []


def test_a_click_in_one_clicks_the_feature_in_the_other_and_a_second_lets_go(page, url, paths):
    name = written(compare(paths).common[0])[0]
    compare_graphs(page, url, a="french", b="spanish")
    page.mouse.click(*middle(page, "B", name))
    assert names(page, "A", "clicked") == names(page, "B", "clicked") == [name]
    assert page.locator(".compared tr.selected td").first.inner_text() == name
    page.evaluate("document.querySelectorAll('.side').forEach(side => side.id = side.dataset.side)")
    page.set_viewport_size({"width": 1100, "height": 700})
    page.locator(".side#B").wait_for(state="detached")  # it is drawn anew
    page.locator("[data-side=B] text.node").first.wait_for()
    assert names(page, "A", "clicked") == names(page, "B", "clicked") == [name]
    page.mouse.click(*middle(page, "B", name))
    assert names(page, "A", "clicked") == names(page, "B", "clicked") == []
    assert page.locator(".compared tr.selected").count() == 0


def test_a_click_on_what_only_one_has_opens_its_list_and_clears_the_other(page, url, paths):
    feature = next(feature for feature in compare(paths).differing if feature.graphs[1])
    name = written(feature)[0]
    compare_graphs(page, url, a="french", b="spanish")
    page.locator(".compared tbody tr").first.press("Enter")
    assert names(page, "A", "clicked") == names(page, "B", "clicked") != []
    page.mouse.click(*middle(page, "B", name))
    assert names(page, "A", "clicked") == []
    assert names(page, "B", "clicked") == [name]
    assert page.get_by_role("tab", name="Only in B").get_attribute("aria-selected") == "true"


def test_the_graph_s_page_leads_there_and_back_and_the_choice_changes_a_side(page, url):
    page.goto(f"{url}?slug=spanish")
    page.locator(".compare-link").click()
    page.locator("[data-side=B] text.node").first.wait_for()
    first, second = page.locator(".graph-choice").all()
    assert (first.input_value(), second.input_value()) == ("spanish", "french")
    second.select_option("spanish")
    page.get_by_role("tab", name="Only in B: 0").wait_for()
    page.get_by_role("link", name="open").first.click()
    page.locator(".subgraph").first.wait_for()
    assert page.locator(".graph-prompt-select").input_value() == "spanish"


def test_the_two_are_told_apart_without_colour(page, url):
    compare_graphs(page, url, a="french", b="spanish")
    style = """css => {
        const {fill, strokeWidth} = getComputedStyle(document.querySelector(`text.node.${css}`));
        return [d3.hsl(fill).l > 0.9, parseFloat(strokeWidth) > 1];
    }"""
    assert page.evaluate(style, "in-both") == [False, False]  # full, with a thin edge
    assert page.evaluate(style, "in-one") == [True, True]  # hollow, with a thick edge
    legend = page.locator(".legend > span").all_text_contents()
    assert legend == ["● feature in both", "● only here", "■ token, prediction", "◆ error"]


def test_the_names_at_the_axes_of_two_large_graphs_cover_nothing(page, serve):
    compare_graphs(page, serve(large_graph()))
    keep_screenshot(page, "compare-large")
    tabs, choosers = boxes_of(page, ".tabs button"), boxes_of(page, ".graph-choice")
    names = boxes_of(page, ".side .axis text, .side .prompt-token text")
    assert len(names) > 40
    assert max(name["bottom"] for name in names) <= min(tab["top"] for tab in tabs)
    assert min(name["top"] for name in names) >= max(box["bottom"] for box in choosers)
    for side in ("A", "B"):
        places = page.evaluate(
            """side => [...document.querySelectorAll(`[data-side=${side}] .prompt-token text`)]
                .filter(name => name.getClientRects().length)
                .map(name => name.getBoundingClientRect().right).sort((a, b) => a - b)""",
            side,
        )
        assert min(after - before for before, after in pairwise(places)) > 7


def test_prompts_are_whole_in_the_lists_of_graphs_beside_the_longest_legend(page, serve):
    graph = complete()
    graph["metadata"]["prompt"] = "<|bos|>Michael Jordan joue au"
    url = serve(graph)
    compare_graphs(page, url)
    assert page.locator(".graph-choice").evaluate_all(FITS) == [True, True]
    assert not overlap(*boxes_of(page, ".graph-choice"))
    [legend] = boxes_of(page, ".nav .legend")
    assert legend["bottom"] <= boxes_of(page, ".side")[0]["top"]
    page.goto(url)
    page.locator(".legends").wait_for()
    assert page.locator(".graph-prompt-select").evaluate_all(FITS) == [True]


def test_a_single_graph_has_no_link_to_compare_it_and_is_compared_with_itself(page, paths):
    with showing(paths[:1]) as url:
        page.goto(url)
        page.locator(".link-graph text.node").first.wait_for()
        page.locator(".picture-export").wait_for()
        drawn_on(page)
        assert page.locator(".compare-link").count() == 0
        compare_graphs(page, url)
        page.get_by_role("tab", name="Only in A: 0").wait_for()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scan": "gemma-2-2b"}, 'A is of "demo" with "demo/transcoders", B of "gemma-2-2b"'),
        ({"info": {"transcoder_set": "gemma"}}, 'B of "demo" with "gemma"'),
        ({"prompt_tokens": [1]}, "metadata.prompt_tokens must be a list of texts"),
    ],
)
def test_graphs_that_can_t_be_compared_are_said_in_a_sentence(page, paths, serve, changed, words):
    other = json.loads(paths[1].read_text())
    other["metadata"] |= changed
    page.goto(f"{serve(json.loads(paths[0].read_text()), other)}compare")
    page.locator(".no-graph").wait_for()
    assert words in page.locator(".no-graph").inner_text()


def test_an_mlp_s_and_an_attention_s_feature_of_one_number_are_two(page, serve):
    other = complete()
    other["nodes"] = [node for node in other["nodes"] if node["node_id"] != "1_lor_7_3"]
    other["links"] = [link for link in other["links"] if "1_lor_7_3" not in link.values()]
    compare_graphs(page, serve(complete(), other))
    assert "L1/7" in [line[0] for line in lines(page, "In both")]
    assert [line[0] for line in lines(page, "Only in A")] == ["L1/7 (Lorsa)"]


@pytest.mark.parametrize("number", [0, 2, 25])
@pytest.mark.parametrize("graph_of", [marked_up, marked_up_complete])
def test_markup_in_every_text_of_both_graphs_is_text(page, serve, number, graph_of):
    markup = MARKUP[number]
    url = serve(graph_of(markup), graph_of(markup))
    compare_graphs(page, url)
    if graph_of is marked_up:
        assert markup in page.locator(".graph-choice option").first.text_content()
    assert markup in page.locator("[data-side=A] .link-graph").text_content()
    assert markup in page.locator(".compared").text_content()
    for box in boxes(page)[:3]:
        hover(page, box)
        page.mouse.click(box["x"], box["y"])
    assert_only_its_own_elements(page, url, TABLE)
    assert page.evaluate("window.ran") is None


def test_graphs_of_one_prompt_are_told_apart_by_their_files_in_the_lists(page, serve):
    url = serve(complete(), complete())
    compare_graphs(page, url)
    shown = page.locator(".graph-choice").first.locator("option").all_text_contents()
    assert [words.split(" — ")[-1] for words in shown] == ["graph-0.json", "graph-1.json"]


def test_an_address_of_a_graph_that_is_not_there_is_said_and_any_can_be_chosen(page, serve):
    page.goto(f"{serve(complete())}compare?a=elsewhere")
    words = page.locator(".no-graph").inner_text()
    assert words == "The address is one of “elsewhere”, which is none of the graphs in the lists."
    assert page.locator(".graph-choice").count() == 2


def test_a_list_that_is_opened_by_keys_keeps_the_focus_and_marks_what_is_selected(page, url):
    compare_graphs(page, url)
    line = page.locator(".compared tbody tr").first
    line.focus()
    page.keyboard.press("Enter")
    page.locator(".compared tr.selected").wait_for()
    name = line.locator("td").first.inner_text()
    for words in ("Only in A", "In both"):
        tab = page.get_by_role("tab", name=words)
        tab.focus()
        page.keyboard.press("Enter")
        page.get_by_role("tab", name=words, selected=True).wait_for()
        assert tab.evaluate("tab => tab === document.activeElement")
    assert page.locator(".compared tr.selected td").first.inner_text() == name


def test_the_errors_of_mlp_and_attention_have_a_name_each(page, serve):
    compare_graphs(page, serve(complete()))
    names = page.locator(".legend > span").all_text_contents()
    assert {"◆ error", "◇ attention error"} <= set(names)
