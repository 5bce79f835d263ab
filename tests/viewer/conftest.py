"""The browser of a test file, its page, and graphs that are served and opened in it."""

import json
from contextlib import ExitStack

import pytest

from tests.support.browser import chromium, watched_page
from tests.support.demo_in_the_viewer import PROMPTS
from tests.support.demo_worker import ask
from tests.support.polling import LONGEST_S
from tests.support.viewer_page import open_graph
from tests.support.viewer_server import showing_graphs


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser):
    with watched_page(browser, viewport={"width": 1280, "height": 800}) as opened:
        yield opened


@pytest.fixture
def unwatched_page(browser):
    """A page that may complain, as it does of a server that is gone."""
    page = browser.new_page()
    page.set_default_timeout(LONGEST_S * 1000)
    yield page
    page.close()


@pytest.fixture
def serve(tmp_path):
    """Serve graphs for the time of the test, with what `showing` takes; gives the address."""
    with ExitStack() as servers:
        yield lambda *graphs, **options: servers.enter_context(
            showing_graphs(tmp_path, *graphs, **options)
        )


@pytest.fixture
def show(page, serve):
    """Serve graphs, open the page on the first or on what the query says; gives the address."""

    def open_it(*graphs, **query):
        url = serve(*graphs)
        open_graph(page, url, **query)
        return url

    return open_it


@pytest.fixture(scope="module")
def french():
    """A graph of the demo."""
    return ask({"prompt": PROMPTS["french"], "slug_identifier": "french"})


@pytest.fixture(scope="module")
def french_file(french, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "french.json"
    path.write_text(json.dumps(french))
    return path
