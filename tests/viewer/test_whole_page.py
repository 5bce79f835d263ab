"""All parts of the viewer on one page, with automatic groups and a worker: none hides another.

Each test runs on the plain demo and on the complete one, which has attention's features too.
"""

from base64 import b64encode
from itertools import combinations
from xml.etree import ElementTree

import pytest

from tests.support.browser import keep_screenshot, needs_chromium, watched_page
from tests.support.demo_in_the_viewer import complete_demo, plain_demo
from tests.support.viewer_page import boxes_of, open_graph, overlap

pytestmark = [pytest.mark.browser, needs_chromium]

SIZES = [(1280, 800), (1920, 1080)]
CLICKED = {"plain": "2_157_4", "complete": "0_lor_140_4"}
HEAD = (".subgraph .section-title", ".subgraph .checkbox-container > *", ".worker-open")


@pytest.fixture(scope="module", params=["plain", "complete"])
def demo(request):
    return request.param


@pytest.fixture(scope="module")
def url(demo, tmp_path_factory):
    directory = tmp_path_factory.mktemp("graphs")
    with {"plain": plain_demo, "complete": complete_demo}[demo](directory) as address:
        yield address


@pytest.fixture(params=SIZES, ids=[str(width) for width, _ in SIZES])
def page(request, browser):
    width, height = request.param
    with watched_page(browser, viewport={"width": width, "height": height}) as opened:
        yield opened


def show_french(page, url, **query):
    open_graph(page, url, slug="french", **query)
    page.locator(".supernode-container").first.wait_for()


def open_panel(page):
    page.get_by_role("button", name="Intervene and steer").click()
    page.locator(".worker-row").first.wait_for()


def intervene(page):
    """Ask the worker, and wait for its answer; an error that it has instead is shown."""
    page.get_by_role("button", name="Intervene", exact=True).click()
    page.locator(".worker-outcome").wait_for()
    assert page.locator(".worker-error").all_inner_texts() == []


def test_the_line_above_the_subgraph_covers_nothing_and_is_covered_by_nothing(page, url, demo):
    show_french(page, url)
    head = [box for selector in HEAD for box in boxes_of(page, selector)]
    assert len(head) == 5  # the heading, two choices and two buttons
    circles = boxes_of(page, ".subgraph .member-circles")
    for one, other in combinations(head, 2):
        assert not overlap(one, other)
    assert not [1 for one in head for box in circles if overlap(one, box)]
    keep_screenshot(page, f"whole-{demo}-{page.viewport_size['width']}")


def test_names_and_nodes_of_automatic_groups_cover_one_another_nowhere(page, url):
    show_french(page, url)
    names = boxes_of(page, ".subgraph .node-text-container > span")
    circles = boxes_of(page, ".subgraph .member-circles")
    [subgraph] = boxes_of(page, ".subgraph")
    assert not [1 for pair in combinations(names, 2) if overlap(*pair)]
    assert not [1 for name in names for box in circles if overlap(name, box)]
    assert max(name["bottom"] for name in names) <= subgraph["bottom"] + 1


def test_the_list_of_graphs_is_wide_enough_to_tell_graphs_apart(page, url):
    show_french(page, url)
    [chooser] = boxes_of(page, ".graph-prompt-select")
    assert chooser["right"] - chooser["left"] > 240
    assert page.evaluate("document.documentElement.scrollHeight") <= page.viewport_size["height"]


def test_the_panel_lies_over_the_details_of_a_clicked_feature(page, url, demo):
    show_french(page, url, clickedId=CLICKED[demo])
    page.get_by_text("Fires in").wait_for()
    open_panel(page)
    assert page.evaluate(
        """() => {
            const panel = document.querySelector('.worker-panel');
            const {x, y, width, height} = panel.getBoundingClientRect();
            const shares = d3.range(0.05, 1, 0.05);
            return shares.every(down => shares.every(along => panel.contains(
                document.elementFromPoint(x + along * width, y + down * height)
            )));
        }"""
    )
    page.locator(".worker-row select").first.select_option("off")
    intervene(page)
    page.get_by_role("button", name="Close").click()
    assert page.get_by_text("Fires in").is_visible()


def test_the_answer_is_seen_however_many_rows_there_are(page, url):
    show_french(page, url)
    open_panel(page)
    rows = page.locator(".worker-row")
    rows.last.locator("select").select_option("double")
    intervene(page)
    [panel] = boxes_of(page, ".worker-panel")
    [table] = boxes_of(page, ".worker-predictions")
    assert table["bottom"] <= panel["bottom"] + 1
    for part in (rows.last, page.locator(".worker-outcome")):
        part.scroll_into_view_if_needed()
        assert part.is_visible()


def test_each_group_has_what_is_left_of_its_activation_beside_its_nodes(page, url, demo):
    show_french(page, url)
    open_panel(page)
    page.locator(".worker-row select").nth(1).select_option("off")
    intervene(page)
    shares = page.locator(".worker-share-cell").all_inner_texts()
    assert shares[1] == "0%"
    assert all(share.endswith("%") for share in shares)
    assert sorted(page.locator(".worker-share").all_inner_texts()) == sorted(shares)
    for badge in page.locator(".worker-share").all():
        box, share = badge.locator("..").bounding_box(), badge.bounding_box()
        assert 0 <= share["x"] - box["x"] - box["width"] < 8
        assert abs(share["y"] - box["y"]) < 8
    page.mouse.move(5, 5)
    keep_screenshot(page, f"whole-intervened-{demo}-{page.viewport_size['width']}")


def test_the_name_of_a_group_is_edited_in_a_field_that_shows_all_of_it(page, url):
    show_french(page, url)
    group = page.locator(".supernode-container:has(.ungroup-btn)").first
    group.locator(".node-text-container span").click()
    field = page.locator(".temp-edit")
    assert field.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert field.evaluate("e => getComputedStyle(e).borderBottomStyle") == "solid"
    page.keyboard.type("saying a game")
    page.keyboard.press("Enter")
    page.locator(".subgraph").get_by_text("saying a game", exact=True).wait_for()
    page.reload()
    page.locator(".subgraph").get_by_text("saying a game", exact=True).wait_for()


def test_the_picture_has_what_is_left_of_each_group(page, url):
    show_french(page, url)
    open_panel(page)
    page.locator(".worker-row select").first.select_option("off")
    intervene(page)
    shares = page.locator(".worker-share").all_inner_texts()
    with page.expect_download() as download:
        page.locator(".picture-export button").get_by_text("SVG", exact=True).click()
    texts = [element.text for element in ElementTree.parse(download.value.path()).iter()]
    for share in {*shares}:
        assert texts.count(share) == shares.count(share)


def test_attention_s_features_are_seen_in_the_subgraph(page, url, demo):
    """A triangle has a dark edge, whatever colour its link to the clicked node gives it."""
    show_french(page, url)
    lorsas = page.locator(".subgraph .lorsa.member-circle")
    assert (lorsas.count() > 0) == (demo == "complete")
    for lorsa in lorsas.all():
        dark = page.evaluate(
            """async picture => {
                const bytes = Uint8Array.from(atob(picture), character => character.charCodeAt(0));
                const bitmap = await createImageBitmap(new Blob([bytes], {type: 'image/png'}));
                const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
                context.drawImage(bitmap, 0, 0);
                const {data} = context.getImageData(0, 0, bitmap.width, bitmap.height);
                return data.filter((red, i) => i % 4 === 0 && red < 90).length;
            }""",
            b64encode(lorsa.screenshot()).decode(),
        )
        assert dark > 15


def test_each_field_and_button_has_a_name_for_those_who_hear_the_page(page, url):
    show_french(page, url)
    open_panel(page)
    fields = page.locator("select:visible, input:visible, button:visible")
    assert fields.count() >= 15
    nameless = """fields => fields.filter(field => !(
        field.getAttribute('aria-label') || field.textContent.trim() && field.localName !== 'select'
        || field.labels?.length
    )).map(field => field.outerHTML)"""
    assert fields.evaluate_all(nameless) == []
