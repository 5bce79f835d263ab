"""Odd graph files: the viewer refuses them, says in its page what is wrong, or draws them."""

from urllib.parse import urlencode

import pytest

from tests.support.browser import chromium, needs_chromium, watched_page
from tests.support.hostile_graphs import sound
from tests.support.odd_graphs import odd_graph
from tests.support.viewer_page import assert_only_its_own_elements, boxes, hover, open_graph
from tests.support.viewer_server import showing
from viewer.graph_files import ViewerError, read_graphs

ALL = range(500)
EVERY_TWENTIETH = ALL[::20]


def readable(directory, numbers):
    """Those of these files that the viewer takes."""
    paths = []
    for number in numbers:
        path = directory / f"{number}.json"
        path.write_bytes(odd_graph(number))
        try:
            read_graphs([path])
        except ViewerError as refused:
            assert str(refused).startswith(f"{path}: ")
        else:
            paths.append(path)
    return paths


def visit(page, url, name):
    """Look at a graph as somebody does who hovers over it and clicks: whether it was drawn."""
    page.goto(f"{url}?{urlencode({'slug': name})}")
    page.locator(".link-graph svg, p.no-graph").first.wait_for(state="attached")
    is_drawn = page.locator("p.no-graph").count() == 0
    if not is_drawn:
        assert page.locator("p.no-graph").text_content().startswith("This graph can't be shown: ")
    for box in boxes(page)[:4] if is_drawn else ():
        hover(page, box)
        assert_only_its_own_elements(page, url)
        page.mouse.click(box["x"], box["y"])
    assert_only_its_own_elements(page, url)
    assert page.evaluate("window.ran") is None
    return is_drawn


def look_at(numbers, directory):
    paths = readable(directory, numbers)
    drawn, failed = set(), []
    with chromium() as browser, showing(paths) as url, watched_page(browser) as page:
        page.on("pageerror", lambda error: failed.append(error))
        listing = page.request.get(f"{url}data/graph-metadata.json").json()["graphs"]
        for path, graph in zip(paths, listing, strict=True):
            drawn.add(visit(page, url, graph["slug"]))
            assert not failed, path.name
    assert drawn == {True, False}


def test_each_odd_file_is_read_or_refused_by_its_name(tmp_path):
    taken = len(readable(tmp_path, ALL))
    assert 0 < taken < len(ALL)


@pytest.mark.browser
@needs_chromium
def test_the_page_draws_an_odd_graph_or_says_what_is_wrong_with_it(tmp_path):
    look_at(EVERY_TWENTIETH, tmp_path)


PLACES = """() => [...document.querySelectorAll('.subgraph .supernode-container')]
    .map(node => node.style.transform)"""


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize(
    "places",
    ['"', "x y", "100 200", "1  2 3 4 5", *(f"{n} {n} 1 2 3 4" for n in ("1e999", "1e300", "NaN"))],
)
def test_places_that_are_none_of_the_subgraph_s_nodes_are_left_out(page, serve, places):
    graph = sound()
    pins = {"pinnedIds": [node["node_id"] for node in graph["nodes"][:3]]}
    shown = []
    for sg_pos in ("", places):
        open_graph(page, serve(graph | {"qParams": {**pins, "sg_pos": sg_pos}}))
        page.locator(".subgraph .supernode-container").first.wait_for()
        shown.append(page.evaluate(PLACES))
    assert len(shown[0]) == 3
    assert shown[0] == shown[1]


@pytest.mark.browser
@needs_chromium
def test_places_of_the_subgraph_s_nodes_are_taken(page, serve):
    graph = sound()
    pins = {"pinnedIds": [node["node_id"] for node in graph["nodes"][:2]]}
    open_graph(page, serve(graph | {"qParams": {**pins, "sg_pos": "0 0 500 100"}}))
    page.locator(".subgraph .supernode-container").first.wait_for()
    assert "translate(0px, 0px)" in page.evaluate(PLACES)


@pytest.mark.soak
@needs_chromium
def test_the_page_draws_each_of_five_hundred_odd_graphs_or_says_what_is_wrong(tmp_path):
    look_at(ALL, tmp_path)
