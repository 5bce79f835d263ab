"""A graph that the worker grouped opens with its subgraph: groups by name, and paths."""

import json

import pytest

from tests.support.browser import chromium, keep_screenshot, needs_chromium, watched_page
from tests.support.demo_worker import ask
from tests.support.viewer_server import showing

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def graph():
    prompt = "Michael Jordan joue au"
    body = {"action": "generate-graph", "prompt": prompt, "slug_identifier": "opening"}
    return ask({**body, "supernodes": "auto"})


@pytest.fixture(scope="module")
def page(graph, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "opening.json"
    path.write_text(json.dumps(graph))
    with (
        chromium() as browser,
        showing([path]) as url,
        watched_page(browser, viewport={"width": 1280, "height": 800}) as opened,
    ):
        opened.goto(f"{url}?slug=opening")
        opened.locator(".subgraph .supernode-container").first.wait_for()
        yield opened


def test_the_subgraph_shows_the_groups_and_the_rest_of_what_is_pinned(page, graph):
    groups = {name: ids for name, *ids in graph["qParams"]["supernodes"]}
    in_groups = {node_id for ids in groups.values() for node_id in ids}
    alone = [node_id for node_id in graph["qParams"]["pinnedIds"] if node_id not in in_groups]
    texts = page.locator(".subgraph .node-text-container span").all_inner_texts()
    assert set(groups) <= set(texts)
    assert len(texts) == len(groups) + len(alone)
    circles = page.locator(".subgraph .member-circle").count()
    assert circles == len(graph["qParams"]["pinnedIds"])
    keep_screenshot(page, "opening-subgraph")


def test_an_address_with_groups_of_its_own_shows_those(page, graph):
    first, second = graph["qParams"]["supernodes"][0][1:3]
    address = page.url.partition("?")[0]
    groups = json.dumps([["by hand", first, second]])
    page.goto(f"{address}?slug=opening&supernodes={groups}")
    page.locator(".subgraph .supernode-container").first.wait_for()
    texts = page.locator(".subgraph .node-text-container span").all_inner_texts()
    assert "by hand" in texts
    assert not any(text.startswith("say") for text in texts)
