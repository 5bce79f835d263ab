"""The viewer for people: what to do, what it means, and names that can be read, at 1280 by 800."""

import json
from itertools import combinations, pairwise

import pytest

from tests.support.browser import keep_screenshot, needs_chromium, watched_page
from tests.support.hostile_graphs import sound
from tests.support.large_graphs import TOKENS, large_graph, strongest
from tests.support.viewer_page import boxes_of, hint, overlap, until_still
from tests.support.viewer_server import showing

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def large():
    return large_graph()


def ends_of_names(page, selector, end):
    """Where each name that is shown begins, and the size of its letters."""
    return page.evaluate(
        """([selector, end]) => [...document.querySelectorAll(selector)]
            .filter(name => name.getClientRects().length)
            .map(name => {
                const box = name.getBoundingClientRect();
                return [box[end], parseFloat(name.getAttribute('font-size'))];
            }).sort((a, b) => a[0] - b[0])""",
        [selector, end],
    )


def test_an_empty_subgraph_says_what_to_do_and_one_with_nodes_does_not(page, show):
    show(sound())
    assert "Ctrl-click a node" in hint(page)
    assert "Hold g" in hint(page)
    keep_screenshot(page, "empty-subgraph")
    page.keyboard.down("Control")
    page.locator(".node-connections .feature-row").first.click()
    page.keyboard.up("Control")
    page.locator(".supernode-container").wait_for()
    assert hint(page) == "none"


def test_the_legend_names_shapes_and_colours_and_covers_nothing(page, show, large):
    show(large)
    assert page.locator(".legend > span").all_text_contents() == [
        "● MLP feature",
        "◆ MLP error",
        "■ token, prediction",
    ]
    colours = page.locator(".colour-legend > span")
    assert [text.strip() for text in colours.all_text_contents()] == [
        *("adds", "takes away"),
        *("● clicked", "● pinned"),
    ]
    head = (".graph-prompt-select", ".slider-container", ".picture-export", ".legends")
    [*head_boxes] = [box for selector in head for box in boxes_of(page, selector)]
    names = boxes_of(page, ".link-graph .axis > g > g > text")
    assert len(head_boxes) == len(head)
    assert len(names) >= 5
    for one, other in combinations(head_boxes, 2):
        assert not overlap(one, other)
    assert not [name for box in head_boxes for name in names if overlap(box, name)]
    assert all(box["left"] >= 0 and box["right"] <= 1280 for box in head_boxes)


def test_in_a_narrow_window_no_part_of_the_head_covers_another(page, show, large):
    page.set_viewport_size({"width": 800, "height": 700})
    show(large, pinnedIds=",".join(strongest(large, 3)))
    page.locator(".unpin-all").wait_for()
    for head in (
        (".graph-prompt-select", ".slider-container", ".picture-export", ".legends"),
        (".subgraph .section-title", ".unpin-all", ".checkbox-container label", ".worker-open"),
    ):
        found = [box for selector in head for box in boxes_of(page, selector)]
        assert len(found) >= len(head)
        assert not [pair for pair in combinations(found, 2) if overlap(*pair)]


def test_the_names_at_both_axes_of_a_large_graph_stand_apart(page, show, large):
    show(large)
    sides = ((".prompt-token text", "right", len(TOKENS)), (".axis > g > g > text", "left", 5))
    for names, end, count in sides:
        placed = ends_of_names(page, f".link-graph {names}", end)
        assert len(placed) == count
        for (left, size), (right, _) in pairwise(placed):
            assert right - left >= 1.35 * size >= 1.35 * 9
    keep_screenshot(page, "large-graph")


def test_of_very_many_tokens_those_are_named_that_there_is_room_for_and_the_hovered_one(page, show):
    graph = sound()
    graph["metadata"]["prompt_tokens"] = [f" word{i}" for i in range(300)]
    graph["nodes"] += [
        {**graph["nodes"][4], "node_id": f"E_{i}_{i}", "feature": 1000 + i, "ctx_idx": i}
        for i in range(4, 300)
    ]
    show(graph)
    placed = ends_of_names(page, ".prompt-token text", "right")
    assert 20 < len(placed) < 100
    for (left, size), (right, _) in pairwise(placed):
        assert right - left >= 1.35 * size >= 1.35 * 8
    hovered = page.evaluate("""() => {
        const hidden = d3.selectAll('.prompt-token.crowded-out').datum().ctx_idx;
        const node = d3.selectAll('.link-graph text.node').filter(d => d.ctx_idx === hidden).node();
        const {x, y, width, height} = node.getBoundingClientRect();
        return [hidden, x + width / 2, y + height / 2];
    }""")
    page.mouse.move(5, 300)
    page.mouse.move(hovered[1], hovered[2], steps=3)
    page.locator(".prompt-token text").get_by_text(f"word{hovered[0]}", exact=True).wait_for()


def test_the_names_in_a_subgraph_are_large_enough_and_cover_one_another_nowhere(page, show, large):
    pinned = strongest(large, 14)
    groups = [["words of Texas and its places", *pinned[2:4]], ["say a capital", *pinned[5:7]]]
    show(large, pinnedIds=",".join(pinned), supernodes=json.dumps(groups), clickedId=pinned[9])
    page.wait_for_function("document.querySelectorAll('.subgraph .member-circles').length === 13")
    until_still(page, ".subgraph .node-text-container > span")
    names = boxes_of(page, ".subgraph .node-text-container > span")
    circles = boxes_of(page, ".subgraph .member-circles")
    assert len(names) == len(circles) == 13
    assert not [pair for pair in combinations(names, 2) if overlap(*pair)]
    assert not [1 for name in names for box in circles if overlap(name, box)]
    sizes = page.evaluate(
        """[...document.querySelectorAll('.subgraph .node-text-container > span')]
            .map(name => parseFloat(getComputedStyle(name).fontSize))"""
    )
    assert min(sizes) >= 11
    subgraph = boxes_of(page, ".subgraph")[0]
    assert all(name["bottom"] <= subgraph["bottom"] + 1 for name in names)
    keep_screenshot(page, "large-subgraph")


def test_a_name_that_was_cut_is_whole_under_the_pointer(page, show, large):
    pinned = strongest(large, 14)
    show(large, pinnedIds=",".join(pinned))
    long = page.locator(".supernode-container", has_text="administrative centres").first
    name = long.locator(".node-text-container > span")
    heights = "e => [e.clientHeight, e.scrollHeight]"
    shown, whole = name.evaluate(heights)
    assert shown < whole
    name.hover()
    assert len({*name.evaluate(heights)}) == 1


def test_long_labels_in_the_lists_have_two_lines(page, show, large):
    show(large)
    label = page.locator(".feature-row .label", has_text="preposition of place").first
    box, row = label.bounding_box(), label.locator("..").bounding_box()
    assert box["height"] > 20
    assert box["width"] > 0.5 * row["width"]


def test_the_page_fits_its_window(page, show, large):
    show(large, pinnedIds=",".join(strongest(large, 14)))
    assert page.evaluate("document.documentElement.scrollHeight") <= 800
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def weights(page, side, section):
    rows = page.locator(f".features.{side} .section").nth(section).locator(".feature-row .weight")
    return [float(text.replace("−", "-")) for text in rows.all_text_contents()]


def test_the_strongest_links_come_first_whichever_sign_they_have(page, show, large):
    feature = next(n for n in large["nodes"] if n["layer"] == "12" and n["activation"])
    show(large, clickedId=feature["node_id"])
    for side in ("input", "output"):
        added, taken = weights(page, side, 0), weights(page, side, 1)
        assert len(added) + len(taken) > 3
        assert added == sorted(added, reverse=True)
        assert taken == sorted(taken)
    assert len(weights(page, "input", 1)) > 1


def test_the_list_of_graphs_is_sorted_and_graphs_of_one_prompt_have_their_files_names(page, show):
    graphs = [sound() for _ in range(4)]
    for graph, prompt in zip(graphs, ["b", "a 10", "a 9", "b"], strict=True):
        graph["metadata"]["prompt"] = prompt
    show(*graphs)
    chooser = page.locator(".graph-prompt-select")
    assert chooser.locator("option").all_text_contents() == [
        "gemma-2-2b — a 9",
        "gemma-2-2b — a 10",
        "gemma-2-2b — b — graph-0.json",
        "gemma-2-2b — b — graph-3.json",
    ]
    assert chooser.input_value() == "small"  # the first file's
    assert "slug=small" in page.url


def test_each_graph_has_pins_of_its_own_and_keeps_them_while_another_is_looked_at(page, show):
    first, second = sound(), sound()
    second["metadata"]["slug"] = "second"
    second["qParams"]["pinnedIds"] = ["1_12_3"]
    show(
        first, second, pinnedIds="0_3_1,1_7_2", supernodes=json.dumps([["both", "0_3_1", "1_7_2"]])
    )
    chooser, circles = page.locator(".graph-prompt-select"), page.locator(".member-circle")
    both = page.locator(".subgraph").get_by_text("both", exact=True)
    both.wait_for()
    chooser.select_option("second")
    both.wait_for(state="detached")
    page.locator(".supernode-container").wait_for()
    assert circles.count() == 1
    assert "0_3_1" not in page.url
    chooser.select_option("small")
    both.wait_for()
    assert circles.count() == 2


def test_files_of_one_name_are_told_apart_by_their_folders(page, tmp_path):
    paths = [tmp_path / folder / "graph.json" for folder in ("one", "other")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(sound()))
    with showing(paths) as url:
        page.goto(url)
        page.locator(".link-graph text.node").first.wait_for()
        texts = page.locator(".graph-prompt-select option").all_text_contents()
    assert [text.split(" — ")[-1] for text in texts] == ["one/graph.json", "other/graph.json"]


def test_a_saved_address_keeps_its_labels_in_another_browser(browser, page, show):
    url = show(sound(), clickedId="1_7_2")
    page.locator(".edit-clerp-button").click()
    page.locator(".clerp-edit input").fill("mine")
    page.keyboard.press("Tab")
    saved = page.url
    with watched_page(browser) as another:
        another.goto(saved)
        for _ in range(2):
            another.locator(".node-connections .feature-title").get_by_text("mine").wait_for()
            assert "mine" in another.url
            another.reload()
    page.locator(".clerp-edit input").fill("mine, later")
    page.keyboard.press("Tab")
    page.goto(saved)
    page.locator(".node-connections .feature-title").get_by_text("mine", exact=True).wait_for()
    with watched_page(browser) as fresh:  # another graph of that name has no such label
        fresh.goto(f"{url}?clickedId=1_7_2")
        fresh.locator(".node-connections .feature-title").get_by_text("a noun").wait_for()


def test_the_documents_own_labels_are_there_after_a_reload_too(page, show):
    graph = sound()
    graph["qParams"]["clerps"] = json.dumps([["7", "the document's"]])
    show(graph, clickedId="1_7_2")
    label = page.locator(".node-connections .feature-title").get_by_text("the document's")
    label.wait_for()
    page.reload()
    label.wait_for()


def test_a_saved_address_of_a_graph_that_is_not_there_says_so_and_any_can_be_chosen(page, show):
    url = show(sound())
    page.goto(f"{url}?slug=another&pinnedIds=0_3_1")
    page.locator("p.no-graph").get_by_text("“another”, which is none of the graphs").wait_for()
    page.locator(".graph-prompt-select").select_option("small")
    page.locator(".link-graph text.node").first.wait_for()
    assert page.locator("p.no-graph").count() == 0


def test_all_links_of_a_node_can_be_scrolled_to(page, show, large):
    show(large)
    row = page.locator(".features.input .feature-row").last
    row.scroll_into_view_if_needed()
    panel = boxes_of(page, ".node-connections")[0]
    assert row.bounding_box()["y"] + row.bounding_box()["height"] <= panel["bottom"] + 1


def test_the_documents_own_groups_are_shown(page, show):
    graph = sound()
    graph["qParams"] |= {
        "pinnedIds": ["0_3_1", "1_7_2", "1_12_3"],
        "supernodes": [["both", "0_3_1", "1_7_2"]],
    }
    show(graph)
    assert page.locator(".supernode-container").count() == 2
    page.locator(".subgraph").get_by_text("both", exact=True).wait_for()
