"""Keys that are typed into a text field of the viewer are the field's, and the page's elsewhere."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.browser import needs_chromium
from tests.support.hostile_graphs import sound
from tests.support.viewer_page import open_graph
from tests.support.viewer_server import showing_graphs

pytestmark = [pytest.mark.browser, needs_chromium]

PINNED = "0_3_1,1_7_2,1_12_3"
GROUP = ["a group", "0_3_1", "1_7_2"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    graph = sound()
    graph["qParams"]["pinnedIds"] = PINNED.split(",")
    with showing_graphs(tmp_path_factory.mktemp("graphs"), graph, graph) as address:
        yield address


def show_pinned(page, url, **query):
    open_graph(page, url, pinnedIds=PINNED, **query)


def groups(page):
    return json.loads(parse_qs(urlsplit(page.url).query)["supernodes"][0])


@pytest.mark.parametrize("name", ["gagging Gg", "say a Spanish sport's name", "g"])
def test_a_group_gets_the_name_that_is_typed_whatever_letters_it_has(page, url, name):
    show_pinned(page, url, supernodes=json.dumps([GROUP]))
    page.locator(".node-text-container span").get_by_text("a group", exact=True).click()
    page.keyboard.press("Control+A")
    page.keyboard.type(name)
    assert page.locator(".temp-edit").input_value() == name
    page.keyboard.press("Enter")
    page.locator(".subgraph").get_by_text(name, exact=True).wait_for()
    assert groups(page) == [[name, *GROUP[1:]]]
    assert "is-grouping" not in page.locator(".subgraph").get_attribute("class")


def test_a_label_is_typed_without_grouping_and_escape_leaves_what_is_clicked(page, url):
    show_pinned(page, url, clickedId="1_7_2")
    page.locator(".edit-clerp-button").click()
    field = page.locator(".clerp-edit input")
    field.press("g")
    page.keyboard.down("g")
    assert "is-grouping" not in page.locator(".subgraph").get_attribute("class")
    page.keyboard.up("g")
    field.press("Escape")
    assert field.input_value() == "gg"
    assert page.locator(".link-graph .node.clicked").count() == 1


def test_grouping_ends_with_the_key_though_a_field_has_the_focus_by_then(page, url):
    show_pinned(page, url, clickedId="1_7_2")
    page.locator(".edit-clerp-button").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.down("g")
    assert "is-grouping" in page.locator(".subgraph").get_attribute("class")
    page.locator(".clerp-edit input").evaluate("field => field.focus()")
    page.keyboard.down("g")  # it repeats while it is held
    page.keyboard.up("g")
    assert "is-grouping" not in page.locator(".subgraph").get_attribute("class")


def test_a_graph_that_was_left_hears_no_keys(page, url):
    show_pinned(page, url)
    page.locator(".graph-prompt-select").select_option("small-2")
    page.locator(".link-graph text.node").first.wait_for()
    listeners = "d3.select('body').on('keydown.groupingsmall')"
    page.wait_for_function(f"() => !{listeners}")
    page.keyboard.down("g")
    for node in page.locator(".supernode-container").all()[:2]:
        node.click(position={"x": 3, "y": 30})
    page.keyboard.up("g")
    assert page.locator(".supernode-container").count() == 2
    assert len(groups(page)) == 1
