"""How much the page does for a large graph: what it draws, and not all that the graph has.

Work is counted, not timed.
"""

import pytest

from tests.support.browser import needs_chromium
from tests.support.large_graphs import large_graph
from tests.support.viewer_page import boxes, hover

pytestmark = [pytest.mark.browser, needs_chromium]

# How often a length is asked for after something was written: each time, the browser lays out.
COUNT_LAYOUTS = """
window.layouts = 0;
let isWritten = false;
const {setAttribute} = Element.prototype;
Element.prototype.setAttribute = function (...given) {
    isWritten = true;
    return setAttribute.apply(this, given);
};
const {getComputedTextLength} = SVGTextContentElement.prototype;
SVGTextContentElement.prototype.getComputedTextLength = function () {
    window.layouts += isWritten;
    isWritten = false;
    return getComputedTextLength.apply(this);
};
"""
# How many items of lists `filter` looks at.
COUNT_ITEMS = """
window.items = 0;
const {filter} = Array.prototype;
Array.prototype.filter = function (...given) {
    window.items += this.length;
    return filter.apply(this, given);
};
"""
COUNT_CLASSES = """
window.classes = 0;
for (const name of ['add', 'remove']) {
    const write = DOMTokenList.prototype[name];
    DOMTokenList.prototype[name] = function (...given) {
        window.classes += 1;
        return write.apply(this, given);
    };
}
"""
COUNT_COPIES = """
window.copies = 0;
const {structuredClone} = window;
window.structuredClone = value => {
    window.copies += 'nodes' in value;
    return structuredClone(value);
};
"""


@pytest.fixture(scope="module")
def large():
    return large_graph()


def counted(page, name, act):
    page.evaluate(f"window.{name} = 0")
    act()
    return page.evaluate(f"window.{name}")


def feature_box(page):
    """Where a feature with links in both directions is drawn, apart from others."""
    return boxes(page)[300]


def compare_two(page, url, query=""):
    page.goto(f"{url}compare{query}")
    page.locator("[data-side=B] text.node").first.wait_for()


def test_the_graph_is_laid_out_once_for_the_names_at_its_axis_however_many(page, show, large):
    page.add_init_script(COUNT_LAYOUTS)
    show(large)
    assert page.evaluate("window.layouts") == 1


def test_a_click_and_a_pin_look_at_the_links_of_their_nodes_and_not_at_all(page, show, large):
    page.add_init_script(COUNT_ITEMS)
    show(large)
    box = feature_box(page)
    click = counted(page, "items", lambda: page.mouse.click(box["x"], box["y"]))
    assert page.locator(".link-graph .node.clicked").count() == 1
    page.keyboard.down("Control")
    pin = counted(page, "items", lambda: page.mouse.click(box["x"], box["y"]))
    page.keyboard.up("Control")
    page.locator(".supernode-container").wait_for()
    assert len(large["links"]) > 10_000
    assert click < len(large["links"])
    assert pin < len(large["links"])


def test_a_link_has_no_texts_that_nothing_reads(page, show, large):
    show(large)
    link = page.evaluate(
        "Object.keys(d3.select('.link-graph text.node.clicked').datum().sourceLinks[0])"
    )
    assert "pctInputColor" in link
    assert not {"linkId", "pathStr"}.intersection(link)


def test_pointing_at_a_feature_marks_it_and_touches_no_other_of_both_graphs(page, serve, large):
    page.add_init_script(COUNT_CLASSES)
    compare_two(page, serve(large, large | {"metadata": large["metadata"] | {"slug": "other"}}))
    box = feature_box(page)
    classes = counted(page, "classes", lambda: hover(page, box))
    assert page.locator("text.node.pointed").count() == 2
    assert classes < 200  # of some 1,300 nodes and 500 lines
    page.mouse.move(5, 5)
    page.locator("text.node.pointed").first.wait_for(state="detached")


def test_two_graphs_are_compared_without_a_copy_and_one_with_itself_with_one(page, serve, large):
    page.add_init_script(COUNT_COPIES)
    url = serve(large, large | {"metadata": large["metadata"] | {"slug": "other"}})
    compare_two(page, url)
    assert page.evaluate("window.copies") == 0
    compare_two(page, url, "?a=other&b=other")
    assert page.evaluate("window.copies") == 1


def test_a_window_of_another_size_colours_no_link_anew(page, serve, large):
    compare_two(page, serve(large))
    page.evaluate(
        """() => {
            window.colours = 0;
            const colour = d3.interpolatePRGn;
            d3.interpolatePRGn = share => { window.colours += 1; return colour(share); };
        }"""
    )
    drawn = page.locator("[data-side=B] .link-graph").element_handle()
    page.set_viewport_size({"width": 1100, "height": 700})
    drawn.wait_for_element_state("hidden")
    page.locator("[data-side=B] text.node").first.wait_for()
    assert page.evaluate("window.colours") == 0
