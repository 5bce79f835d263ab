"""The panel beside the subgraph, in a real browser, on a real worker: off, scaled, set, steered."""

import json
import re

import pytest

from client import Client
from remote.viewer_worker import worker_of
from tests.support.browser import keep_screenshot, needs_chromium, watched_page
from tests.support.demo_worker import ask
from tests.support.held_jobs import held_after, n_failed, until_hung_up
from tests.support.hostile_graphs import MARKUP
from tests.support.viewer_page import assert_only_its_own_elements, open_graph
from tests.support.viewer_server import showing, showing_graphs
from viewer.worker_door import NoAnswer, Worker

pytestmark = [pytest.mark.browser, needs_chromium]

PINNED = (
    *("E_1165_1", "E_719_2", "1_120_4", "1_373_4", "2_157_4", "2_125_4"),
    *("3_338_4", "3_214_4", "5_484_4"),
)
GROUPS = (
    ("Michael Jordan", "E_1165_1", "E_719_2"),
    ("sport, French", "1_120_4", "1_373_4"),
    ("say basket", "2_157_4", "3_338_4"),
)
SIZES = [(1280, 800), (1920, 1080)]


@pytest.fixture(scope="module")
def worker(server):
    with Client.to_url(server.url) as client:
        yield worker_of(client)


@pytest.fixture(scope="module")
def url(french_file, worker):
    with showing([french_file], worker=worker) as address:
        yield address


def show_panel(page, url, pinned=PINNED, groups=GROUPS):
    query = {"slug": "french", "pinnedIds": ",".join(pinned), "supernodes": json.dumps(groups)}
    open_graph(page, url, **query)
    page.get_by_role("button", name="Intervene and steer").click()
    page.locator(".worker-body > *").first.wait_for(state="attached")
    return page.locator(".worker-panel")


def row(page, label):
    return page.locator(".worker-row").filter(has_text=label)


def choose(page, label, choice, number=None):
    row(page, label).locator("select").select_option(choice)
    if number is not None:
        row(page, label).locator("input").fill(str(number))
        row(page, label).locator("input").press("Tab")


def predictions(page):
    page.locator(".worker-predictions").wait_for()
    lines = page.locator(".worker-predictions tr").all()[1:]
    return {
        cells[0].strip(): cells[1:]
        for cells in (line.locator("td").all_inner_texts() for line in lines)
    }


def test_a_group_off_shows_both_predictions_and_what_becomes_of_the_others(page, url, french):
    show_panel(page, url)
    choose(page, "sport, French", "off")
    page.get_by_role("button", name="Intervene", exact=True).click()
    shown = predictions(page)

    def site(node_id):
        layer, index, position = map(int, node_id.split("_"))
        return {"layer": layer, "index": index, "position": position}

    groups = {label: [site(i) for i in ids] for label, *ids in GROUPS[1:]}
    groups |= {"2_125": [site("2_125_4")], "3_214": [site("3_214_4")]}
    wanted = ask({"action": "intervene", "prompt": "Michael Jordan joue au", "groups": groups,
                  "experiments": [[{"group": "sport, French", "scale": 0}]]})  # fmt: skip
    top = wanted["baseline"]["top"][0]
    assert shown[top["token"].strip()][0] == f"{top['probability']:.1%}"
    after = wanted["experiments"][0]["top"][0]
    assert shown[after["token"].strip()][1] == f"{after['probability']:.1%}"
    shares = wanted["experiments"][0]["groups"]
    percent = {name: f"{round(share * 100)}%" for name, share in shares.items()}
    for label in ("sport, French", "say basket"):
        assert row(page, label).locator(".worker-share-cell").inner_text() == percent[label]
        node = page.locator(".subgraph .supernode-container").filter(has_text=label)
        assert node.locator(".worker-share").inner_text() == percent[label]
    assert row(page, "L2/125").locator(".worker-share-cell").inner_text() == percent["2_125"]
    assert percent["sport, French"] == "0%"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_all_of_an_intervention_is_seen(browser, url, width, height):
    with watched_page(browser, viewport={"width": width, "height": height}) as page:
        panel = show_panel(page, url)
        choose(page, "say basket", "scale", -2)
        page.get_by_role("button", name="Intervene", exact=True).click()
        predictions(page)
        page.mouse.move(5, 5)
        keep_screenshot(page, f"intervene-{width}")
        box = panel.bounding_box()
        for part in page.locator(".worker-row, .worker-predictions, .worker-buttons").all():
            inner = part.bounding_box()
            assert inner["x"] >= box["x"]
            assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 1
        assert page.locator(".worker-predictions").bounding_box()["y"] < height - 60


def test_a_steer_shows_both_texts(page, url):
    show_panel(page, url)
    choose(page, "say basket", "scale", -14)
    choose(page, "L3/214", "value", 0)
    choose(page, "L2/125", "double")
    page.locator("input[aria-label='tokens to generate']").fill("3")
    page.get_by_role("button", name="Steer", exact=True).click()
    page.locator(".worker-texts").wait_for()
    default, steered = page.locator(".worker-text").all_inner_texts()
    assert default.startswith("Michael Jordan joue au basket.")
    assert steered.startswith("Michael Jordan joue au ")
    assert "basket" not in steered
    keep_screenshot(page, "steer")


def test_only_features_are_offered_and_nothing_is_asked_before_one_is_changed(page, url):
    panel = show_panel(page, url)
    assert page.locator(".worker-row").count() == 4
    assert row(page, "Michael Jordan").count() == 0
    assert "Tokens, predictions and errors can’t be changed: 3 pinned." in panel.inner_text()
    assert "Choose what to change" in page.locator(".worker-state").inner_text()
    for name in ("Intervene", "Steer"):
        assert page.get_by_role("button", name=name, exact=True).is_disabled()


def test_rows_follow_the_subgraph_and_keep_what_was_chosen(page, url):
    show_panel(page, url)
    choose(page, "L2/125", "double")
    page.keyboard.down("g")
    for label in ("L2/125", "L3/214"):
        text = row(page, label).locator(".worker-name span").first.inner_text()
        page.locator(".supernode-container").filter(has_text=text).first.click(
            position={"x": 3, "y": 30}
        )
    page.keyboard.up("g")
    page.wait_for_function("document.querySelectorAll('.worker-row').length === 3")
    last = page.locator(".supernode-container").filter(has=page.locator(".ungroup-btn")).last
    page.keyboard.down("g")
    last.locator(".ungroup-btn").click()
    page.keyboard.up("g")
    page.wait_for_function("document.querySelectorAll('.worker-row').length === 4")
    assert row(page, "L2/125").locator("select").input_value() == "double"


def test_a_changed_choice_pales_the_last_answer(page, url):
    show_panel(page, url)
    choose(page, "say basket", "off")
    page.get_by_role("button", name="Intervene", exact=True).click()
    predictions(page)
    assert page.locator(".is-stale").count() == 0
    choose(page, "say basket", "double")
    assert page.locator(".worker-outcome.is-stale").count() == 1
    assert page.locator(".worker-share.is-stale").count() > 0


def test_a_choice_made_by_keys_keeps_the_focus_and_the_place_in_the_list(page, url):
    page.set_viewport_size({"width": 1280, "height": 500})
    show_panel(page, url, groups=())
    rows = page.locator(".worker-rows")
    menu = page.locator(".worker-row select").last
    menu.focus()
    scrolled = rows.evaluate("rows => (rows.scrollTop = rows.scrollHeight, rows.scrollTop)")
    assert scrolled > 0
    page.keyboard.press("ArrowDown")
    page.get_by_role("button", name="Intervene", exact=True).and_(
        page.locator(":enabled")
    ).wait_for()
    assert menu.input_value() == "off"
    assert menu.evaluate("menu => menu === document.activeElement")
    assert rows.evaluate("rows => rows.scrollTop") == scrolled
    page.get_by_role("button", name="Steer", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator(".worker-texts").wait_for()
    page.get_by_role("button", name="Close").press("Enter")
    opener = page.get_by_role("button", name="Intervene and steer")
    assert opener.evaluate("button => button === document.activeElement")
    assert opener.get_attribute("aria-expanded") == "false"


def test_features_at_the_leading_token_are_not_offered(page, french, worker, tmp_path):
    graph = json.loads(json.dumps(french))
    node = next(node for node in graph["nodes"] if node["node_id"] == "2_157_4")
    graph["nodes"].append(node | {"node_id": "2_157_0", "jsNodeId": "2_157_0", "ctx_idx": 0})
    with showing_graphs(tmp_path, graph, worker=worker) as url:
        panel = show_panel(page, url, (*PINNED, "2_157_0"), ())
        assert "Features at the leading token (position 0) can’t be changed: 1 pinned." in (
            panel.inner_text()
        )
        assert page.locator(".worker-row").count() == 6


def test_without_a_worker_the_panel_says_how_to_connect_one(page, french_file):
    with showing([french_file]) as url:
        panel = show_panel(page, url)
        panel.get_by_text("client.py view FILE --worker").wait_for()
        assert page.get_by_role("button", name="Intervene", exact=True).count() == 0
        keep_screenshot(page, "no-worker")


def test_what_the_worker_refuses_is_a_sentence_in_the_page(browser, french, worker, tmp_path):
    other = french | {"metadata": french["metadata"] | {"scan": "gemma-2-2b"}}
    with showing_graphs(tmp_path, other, worker=worker) as url, watched_page(browser) as page:
        show_panel(page, url)
        choose(page, "say basket", "off")
        page.get_by_role("button", name="Intervene", exact=True).click()
        words = page.locator(".worker-error")
        words.wait_for()
        assert words.inner_text().startswith("model_not_loaded: model_id 'gemma-2-2b'")


def test_a_viewer_that_has_ended_is_said_in_the_page(unwatched_page, french_file, worker):
    page = unwatched_page
    with showing([french_file], worker=worker) as url:
        show_panel(page, url)
        choose(page, "say basket", "off")
    page.get_by_role("button", name="Intervene", exact=True).click()
    words = page.locator(".worker-error")
    words.wait_for()
    assert words.inner_text() == "the viewer has ended; start it again and reload the page"


@pytest.mark.parametrize(
    ("action", "passes", "words"),
    [("Intervene", 0, "running"), ("Steer", 4, "generating, position")],
)
def test_a_question_says_how_far_it_is_and_cancel_ends_it_on_the_worker_too(
    page, url, server, demo_block, action, passes, words
):
    show_panel(page, url)
    choose(page, "L2/125", "off")
    button = page.get_by_role("button", name="Intervene", exact=True)
    button.click()
    predictions(page)  # by now the worker's model is known to be the graph's
    failed = n_failed(server)
    with held_after(passes, demo_block):
        page.get_by_role("button", name=action, exact=True).click()
        page.locator(".worker-state").get_by_text(re.compile(words)).wait_for()
        assert button.is_disabled()
        page.get_by_role("button", name="Cancel").click()
        page.locator(".worker-error").get_by_text("Stopped.").wait_for()
        assert button.is_enabled()
        until_hung_up(server)
    assert n_failed(server) == failed + 1
    button.click()
    predictions(page)


@pytest.mark.parametrize("markup", [MARKUP[0], MARKUP[25]])
def test_markup_of_a_worker_is_text(page, french, french_file, markup):
    """Its name, what it reports, tokens, texts and errors."""
    tokens = french["metadata"]["prompt_tokens"]
    forward = {"prompt": "", "input_tokens": tokens, "salient_logits": [],
               "total_salient_tokens": 0, "cumulative_probability": 0.0}  # fmt: skip
    top = {"top": [{"token": markup, "token_id": 1, "probability": 0.5}], "targets": []}
    outcome = top | {"groups": {}}
    entries = [(markup, [(markup, 0.5)]), (markup, [])]
    steered = {"DEFAULT_GENERATION": "", "STEERED_GENERATION": "",
               "DEFAULT_LOGITS_BY_TOKEN": entries, "STEERED_LOGITS_BY_TOKEN": entries}  # fmt: skip
    answers = {
        "forward-pass": forward,
        "intervene": {"baseline": outcome, "experiments": [outcome]},
        "steer": steered,
    }

    def run(job, report, _stopped):
        report(markup)
        if job.get("n_tokens") == 666:
            raise NoAnswer(markup)
        return answers[job["action"]]

    with showing([french_file], worker=Worker(markup, run, lambda: None)) as url:
        panel = show_panel(page, url, groups=[[markup, "2_157_4", "3_338_4"]])
        choose(page, "L2/125", "off")
        page.get_by_role("button", name="Intervene", exact=True).click()
        page.locator(".worker-predictions td").get_by_text(markup).first.wait_for()
        assert markup in page.locator(".worker-state").text_content()
        page.get_by_role("button", name="Steer", exact=True).click()
        page.locator(".worker-text").get_by_text(markup).first.wait_for()
        page.locator("input[aria-label='tokens to generate']").fill("666")
        page.get_by_role("button", name="Steer", exact=True).click()
        page.locator(".worker-error").get_by_text(markup).wait_for()
        assert markup in panel.text_content()
        assert_only_its_own_elements(page, url, ("table", "tr", "th", "td"))
        assert page.evaluate("window.ran") is None


def test_who_asks_by_keys_is_at_the_same_button_when_the_answer_is_there(page, url):
    show_panel(page, url)
    choose(page, "say basket", "off")
    button = page.get_by_role("button", name="Intervene", exact=True)
    button.press("Enter")
    page.locator(".worker-predictions").wait_for()
    assert button.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize(
    ("typed", "kept"), [("0", "10"), ("-3", "1"), ("2.4", "2"), ("5000", "1000")]
)
def test_a_number_of_tokens_that_can_not_be_asked_for_is_seen_as_what_is(page, url, typed, kept):
    show_panel(page, url)
    field = page.get_by_label("tokens to generate")
    field.fill(typed)
    field.press("Tab")
    assert field.input_value() == kept
