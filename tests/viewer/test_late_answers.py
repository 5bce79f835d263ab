"""Answers that come when the page shows something else by now, or that never come."""

import threading

import pytest

from tests.support.browser import needs_chromium
from tests.support.demo_in_the_viewer import PROMPTS
from tests.support.demo_worker import ask
from tests.support.hostile_graphs import sound
from tests.support.viewer_page import click_node, drawn_on, open_graph
from tests.support.viewer_server import showing_graphs
from viewer.worker_door import Worker

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def spanish():
    return ask({"prompt": PROMPTS["spanish"], "slug_identifier": "spanish"})


@pytest.fixture
def other():
    """A graph beside the sound one, with a node less."""
    graph = sound()
    graph["metadata"]["slug"] = "other"
    graph["nodes"] = [node for node in graph["nodes"] if node["node_id"] != "1_12_3"]
    graph["links"] = [link for link in graph["links"] if "1_12_3" not in link.values()]
    return graph


def choose_graph(page, slug):
    page.locator(".graph-prompt-select").select_option(slug)


def nodes(page):
    return page.locator(".link-graph text.node")


class Held:
    """Requests of a page that wait until they are let go."""

    def __init__(self, page, pattern):
        self.routes = []
        self.is_open = False
        page.route(pattern, self._hold)

    def _hold(self, route):
        self.routes.append(route)
        if self.is_open:
            route.continue_()

    def let_go(self):
        self.is_open = True
        for route in self.routes:
            route.continue_()


def test_a_graph_that_comes_late_is_not_drawn_over_the_one_that_was_chosen(page, serve, other):
    url = serve(sound(), other)
    held = Held(page, "**/graph_data/small.json")
    page.goto(f"{url}?slug=small")
    page.locator(".graph-prompt-select option").nth(1).wait_for(state="attached")
    choose_graph(page, "other")
    nodes(page).first.wait_for()
    held.let_go()
    page.evaluate("__datacache['./graph_data/small.json'].then(() => null)")
    drawn_on(page)
    assert len(held.routes) == 1
    assert nodes(page).count() == len(other["nodes"])


def test_a_file_that_is_gone_is_said_and_is_read_again_when_it_is_back(
    unwatched_page, tmp_path, other
):
    page = unwatched_page
    with showing_graphs(tmp_path, sound(), other) as url:
        open_graph(page, url)
        path = tmp_path / "graph-1.json"
        path.rename(tmp_path / "elsewhere.json")
        choose_graph(page, "other")
        sentence = page.locator(".no-graph")
        sentence.get_by_text("can't be shown: its file is gone, or is no JSON.").wait_for()
        (tmp_path / "elsewhere.json").rename(path)
        choose_graph(page, "small")
        nodes(page).first.wait_for()
        choose_graph(page, "other")
        page.wait_for_url("**slug=other**")
        nodes(page).first.wait_for()
        assert sentence.count() == 0


def test_a_graph_that_is_chosen_after_the_viewer_has_ended_is_said_in_words(
    unwatched_page, tmp_path, other
):
    page = unwatched_page
    with showing_graphs(tmp_path, sound(), other) as url:
        open_graph(page, url)
    choose_graph(page, "other")
    page.get_by_text("can't be shown: the viewer has ended; start it again.").wait_for()


def test_an_answer_about_a_graph_that_was_left_waits_there_and_frees_the_other(
    page, french, spanish, tmp_path
):
    may_end = threading.Event()
    tops = {"top": [{"token": " basket", "token_id": 1, "probability": 0.5}], "targets": []}
    outcome = tops | {"groups": {}}

    def run(job, report, _stopped):
        if job["action"] == "intervene":
            report("at work")
            may_end.wait(60)
            return {"baseline": outcome, "experiments": [outcome]}
        tokens = french["metadata"]["prompt_tokens"]
        return {"prompt": "", "input_tokens": tokens, "salient_logits": [],
                "total_salient_tokens": 0, "cumulative_probability": 0.0}  # fmt: skip

    worker = Worker("waiting", run, lambda: None)
    try:
        with showing_graphs(tmp_path, french, spanish, worker=worker) as url:
            open_graph(page, url, slug="french", pinnedIds="2_157_4")
            page.get_by_role("button", name="Intervene and steer").click()
            page.locator(".worker-row select").select_option("off")
            page.get_by_role("button", name="Intervene", exact=True).click()
            state = page.locator(".worker-state")
            state.get_by_text("at work", exact=True).wait_for()
            choose_graph(page, "spanish")
            state.get_by_text("about another graph: at work", exact=True).wait_for()
            may_end.set()
            state.get_by_text("Worker: waiting.").wait_for()
            assert page.get_by_role("button", name="Cancel").count() == 0
            assert page.locator(".worker-outcome").count() == 0
            choose_graph(page, "french")
            page.locator(".worker-predictions").get_by_text("basket").wait_for()
    finally:
        may_end.set()


def test_a_feature_s_examples_are_not_seen_under_another_s_name(page, show):
    url = show(sound(), clickedId="0_3_1")
    examples = page.locator(".feature-examples")
    examples.get_by_text("With the internet").wait_for()
    assert examples.is_visible()
    held = Held(page, f"{url}features_of/small/*.json")
    click_node(page, "1_7_2")
    page.locator(".feature-examples-container[data-examples=late]").wait_for()
    examples.wait_for(state="hidden")
    held.let_go()
    examples.wait_for(state="visible")
    assert examples.inner_text().endswith("/2-gemmascope/1")
    assert page.locator("[data-examples]").count() == 0


def test_examples_that_can_not_be_had_are_said(unwatched_page, tmp_path):
    page = unwatched_page
    with showing_graphs(tmp_path, sound()) as url:
        open_graph(page, url, clickedId="0_3_1")
        page.get_by_text("With the internet").wait_for()
    click_node(page, "1_7_2")
    missing = page.locator(".feature-examples-container[data-examples=missing]")
    missing.wait_for(state="attached")
    said = "place => getComputedStyle(place, '::before').content"
    assert "the viewer has ended" in missing.evaluate(said)
