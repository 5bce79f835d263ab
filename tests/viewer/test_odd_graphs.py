"""Odd graph files: the viewer refuses them, says in its page what is wrong, or draws them."""

from urllib.parse import urlencode

import pytest

from tests.support.browser import chromium, needs_chromium, watched_page
from tests.support.odd_graphs import odd_graph
from tests.support.viewer_page import assert_only_its_own_elements, boxes, hover
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


@pytest.mark.soak
@needs_chromium
def test_the_page_draws_each_of_five_hundred_odd_graphs_or_says_what_is_wrong(tmp_path):
    look_at(ALL, tmp_path)
