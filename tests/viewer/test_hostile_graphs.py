"""No text of a graph becomes markup in the viewer, and each is shown as it is written."""

import json

import pytest

from tests.support.browser import keep_screenshot, needs_chromium
from tests.support.hostile_graphs import MARKUP, marked_up, renamed
from tests.support.viewer_page import assert_only_its_own_elements, boxes, hover, open_graph
from tests.support.viewer_server import showing_graphs

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a page with a graph for each of MARKUP, under graph-N."""
    with showing_graphs(tmp_path_factory.mktemp("hostile"), *map(marked_up, MARKUP)) as address:
        yield address


def names(page, url):
    """The graphs' names in this server's addresses, in the order of MARKUP."""
    listing = page.request.get(f"{url}data/graph-metadata.json").json()
    return [graph["slug"] for graph in listing["graphs"]]


def show_number(page, url, number, **query):
    open_graph(page, url, **{"slug": names(page, url)[number], **query})


@pytest.mark.parametrize("number", range(len(MARKUP)))
def test_markup_in_every_text_of_a_graph_is_shown_as_text_wherever_it_is_shown(page, url, number):
    markup, tooltip = MARKUP[number], page.locator(".tooltip")
    show_number(page, url, number)
    option = f'.graph-prompt-select option[value="{names(page, url)[number]}"]'
    shown = page.locator(option).text_content()
    assert shown == f"{markup} {markup} — {markup}"
    tokens = page.locator(".prompt-token text").all_text_contents()
    assert tokens == [f"{markup}{i}" for i in range(4)]
    for box in boxes(page):
        hover(page, box)
        assert markup in tooltip.text_content()
        assert_only_its_own_elements(page, url)
        with page.expect_event("console"):  # the page prints each node that is clicked
            page.mouse.click(box["x"], box["y"])
        assert markup in page.locator(".node-connections").text_content()
        assert markup in page.locator(".feature-detail").text_content()
        assert_only_its_own_elements(page, url)
    assert page.locator(".supernode-container").count() == 3
    assert markup in page.locator(".subgraph").text_content()
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("number", [0, 2, 20, 25])
def test_with_the_meta_key_every_field_of_a_node_is_shown_as_text(page, url, number):
    show_number(page, url, number)
    page.keyboard.down("Meta")
    hover(page, boxes(page)[0])
    page.keyboard.up("Meta")
    shown = page.locator(".tooltip > div").all_text_contents()
    assert f"{MARKUP[number]}: {MARKUP[number]}" in shown
    assert "influence: 0.300000" in shown
    assert_only_its_own_elements(page, url)


@pytest.mark.parametrize("number", [0, 25])
def test_markup_of_a_label_of_a_group_and_of_the_address_is_text(page, url, number):
    markup = MARKUP[number]
    group = [f"group {markup}", "0_3_1", "1_7_2"]
    clerps = [["7", f"label {markup}"]]
    show_number(page, url, number, supernodes=json.dumps([group]), clerps=json.dumps(clerps),
         clickedId="1_7_2")  # fmt: skip
    page.locator(".subgraph").get_by_text(f"group {markup}", exact=True).wait_for()
    assert f"label {markup}" in page.locator(".feature-detail .pp-clerp").text_content()
    page.locator(".edit-clerp-button").click()
    page.locator(".clerp-edit input").fill(f"typed {markup}")
    page.keyboard.press("Tab")
    page.locator(".feature-detail .pp-clerp").get_by_text(f"typed {markup}").wait_for()
    for box in boxes(page):
        hover(page, box)
        assert_only_its_own_elements(page, url)
    keep_screenshot(page, f"markup-{number}")


def test_ids_of_nodes_that_are_markup_are_ids(page, show):
    url = show(renamed(marked_up(MARKUP[2]), MARKUP))
    for box in boxes(page):
        page.mouse.click(box["x"], box["y"])
        hover(page, box)
        assert_only_its_own_elements(page, url)


def test_the_browser_itself_refuses_text_as_markup_should_a_script_try_it(browser, url):
    context = browser.new_context()
    page = context.new_page()
    show_number(page, url, 0)
    for program in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        "document.write('<b>x</b>')",
        "document.createRange().createContextualFragment('<b>x</b>')",
        "trustedTypes.createPolicy('another', {createHTML: text => text})",
        "trustedTypes.createPolicy('viewer', {createHTML: text => text})",
    ):
        tried = f"() => {{ try {{ {program} }} catch (error) {{ return error.name }} }}"
        assert page.evaluate(tried) == "TypeError"
    context.close()
