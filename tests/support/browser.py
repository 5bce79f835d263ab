"""Debian's Chromium, headless, and pages that are watched for errors and for outside requests."""

import os
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import sync_playwright

from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT

SCREENSHOTS = ROOT / "out" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; on Debian: apt-get install chromium"
)

_FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    # A page that a link opens is out of Watched's sight, and must not reach its host either.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


class Watched:
    """A page of a fresh profile; `complaints` has what no page of ours may do."""

    def __init__(self, page):
        self.page = page
        self.complaints = []
        page.set_default_timeout(LONGEST_S * 1000)
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.route("**/*", self._only_local)

    def _console(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(f"console: {message.text}")

    def _only_local(self, route):
        url = urlsplit(route.request.url)
        if url.scheme in {"data", "blob"} or url.hostname == "127.0.0.1":
            return route.continue_()
        self.complaints.append(f"asks {route.request.url}")
        return route.abort()


@contextmanager
def chromium():
    """A browser that answers to this process only."""
    # Chromium has no sandbox for root.
    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(browser, **options):
    """A page that, when the test is done, must have had no errors and asked no other host."""
    context = browser.new_context(**options)
    try:
        watched = Watched(context.new_page())
        yield watched.page
        assert watched.complaints == []
    finally:
        context.close()


def keep_screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
