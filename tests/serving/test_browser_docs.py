"""Swagger UI in a real browser: it reads the document and executes the examples."""

import json

import pytest

from tests.support.browser import chromium, keep_screenshot, needs_chromium, watched_page
from tests.support.http_server import ACTIONS, post, serving

pytestmark = [pytest.mark.browser, needs_chromium]

SECRET = "correct horse battery staple"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def operation(page, action):
    return page.locator(f"#operations-default-{action}")


def try_out(page, action):
    operation(page, action).locator(".opblock-summary-control").click()
    operation(page, action).locator(".try-out__btn").click()


def execute(page, action):
    """Execute what is in the request's box; the status and the body that come."""
    with page.expect_response(f"**/{action}") as coming:
        operation(page, action).locator(".execute").click()
    response = coming.value
    shown = operation(page, action).locator(".live-responses-table .response")
    shown.locator(".response-col_status", has_text=str(response.status)).wait_for()
    return response.status, shown.locator(".highlight-code code").first.inner_text()


def test_try_it_out_executes_each_example_and_shows_the_answer(browser):
    with serving() as server, watched_page(browser) as page:
        page.set_viewport_size({"width": 1100, "height": 1500})
        page.goto(f"{server.url}/docs")
        for action in ACTIONS:
            try_out(page, action)
            example = json.loads(operation(page, action).locator("textarea").input_value())
            status, body = execute(page, action)
            keep_screenshot(page, f"docs-{action}")
            assert status == 200
            assert json.loads(body).keys() == post(server, action, example).json().keys()
            operation(page, action).locator(".opblock-summary-control").click()


def test_a_secret_given_to_the_page_is_sent(browser):
    with serving(secret=SECRET) as server, watched_page(browser) as page:
        page.goto(f"{server.url}/docs")
        page.locator(".auth-wrapper .authorize").first.click()
        page.locator(".modal-ux input").fill(SECRET)
        page.locator(".modal-ux .auth-btn-wrapper .authorize").click()
        page.locator(".modal-ux .btn-done").click()
        try_out(page, "parse-chat-prompt")
        assert execute(page, "parse-chat-prompt")[0] == 200
