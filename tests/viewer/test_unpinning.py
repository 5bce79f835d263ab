"""What a graph's file pins can be let go at once, and comes back when the page begins anew."""

import pytest

from tests.support.browser import keep_screenshot, needs_chromium
from tests.support.hostile_graphs import sound
from tests.support.viewer_page import hint
from tests.support.viewer_server import showing_graphs

pytestmark = [pytest.mark.browser, needs_chromium]

PINNED = ["0_3_1", "1_7_2", "3_5_3"]
GROUP = ["both", "0_3_1", "1_7_2"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    first, second = sound(), sound()
    first["qParams"] |= {"pinnedIds": PINNED, "supernodes": [GROUP]}
    second["metadata"]["slug"] = "second"
    with showing_graphs(tmp_path_factory.mktemp("graphs"), first, second) as address:
        yield address


@pytest.fixture
def page(page, url):
    page.goto(url)
    page.locator(".supernode-container").first.wait_for()
    return page


def assert_as_in_the_file(page):
    page.locator(".subgraph").get_by_text("both", exact=True).wait_for()
    assert page.locator(".supernode-container").count() == 2
    assert page.locator(".member-circle").count() == 3


def unpin_all(page):
    page.get_by_role("button", name="Unpin all").click()
    page.locator(".supernode-container").first.wait_for(state="detached")


def unpin_one_by_one(page):
    page.keyboard.down("Control")
    for _ in PINNED:
        page.locator(".subgraph .member-circle").first.click()
    page.keyboard.up("Control")
    page.locator(".supernode-container").first.wait_for(state="detached")


@pytest.mark.parametrize("let_go", [unpin_all, unpin_one_by_one])
def test_after_all_is_unpinned_a_reload_brings_back_what_the_file_pins(page, let_go):
    let_go(page)
    assert "Reload the page to see what the graph’s file pins" in hint(page)
    assert page.get_by_role("button", name="Unpin all").count() == 0
    keep_screenshot(page, "unpinned")
    page.reload()
    assert_as_in_the_file(page)


@pytest.mark.parametrize("let_go", [unpin_all, unpin_one_by_one])
def test_so_does_another_visit_of_the_graph(page, let_go):
    let_go(page)
    chooser = page.locator(".graph-prompt-select")
    chooser.select_option("second")
    page.wait_for_function("document.title && !document.querySelector('.supernode-container')")
    page.locator(".subgraph:not(.has-own-pins)").wait_for()
    assert "Nothing is pinned yet" in hint(page)
    chooser.select_option("small")
    assert_as_in_the_file(page)


def test_features_of_a_group_that_is_let_go_have_their_own_names_again(page):
    page.locator(".subgraph .member-circle").first.click()
    title = page.locator(".node-connections .feature-title")
    title.get_by_text("[both]").wait_for()
    unpin_all(page)
    title.get_by_text("[both]").wait_for(state="detached")


def test_a_group_of_the_file_that_was_renamed_is_whole_again_after_all_is_unpinned(page):
    page.locator(".subgraph").get_by_text("both", exact=True).click()
    page.keyboard.type("sport")
    page.keyboard.press("Enter")
    page.locator(".subgraph").get_by_text("sport", exact=True).wait_for()
    unpin_all(page)
    page.reload()
    assert_as_in_the_file(page)


def test_some_pins_of_the_users_own_are_kept_and_none_of_the_files_come_back(page):
    unpin_all(page)
    page.keyboard.down("Control")
    page.locator(".node-connections .feature-row").first.click()
    page.keyboard.up("Control")
    page.locator(".supernode-container").wait_for()
    page.reload()
    page.locator(".supernode-container").wait_for()
    assert page.locator(".member-circle").count() == 1
