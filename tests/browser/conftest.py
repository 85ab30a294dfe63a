"""Debian's chromium, headless."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import KEYS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
# On plain HTTP a browser trusts no name but the machine's own: as on an intranet.
INTRANET = "bridge.test"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {INTRANET} 127.0.0.1",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine; `apt-get install chromium` brings one")
    assert CHROMIUM, "CI needs a chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages as an operator; at the end no page may have complained.

    A complaint is an error in the console, such as a violation of the content security policy,
    or an exception. What a test expects it takes off ``page.complaints``.
    """
    complaints: list[str] = []
    contexts = []

    def open_one(url: str, **options: Any) -> Page:
        context = browser.new_context(
            http_credentials={"username": "test", "password": KEYS["admin"]},
            timezone_id="Asia/Tokyo",
            locale="en-GB",
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda line: complaints.append(line.text) if line.type == "error" else None,
        )
        page.goto(url)
        return page

    open_one.complaints = complaints  # type: ignore[attr-defined]
    yield open_one
    for context in contexts:
        with suppress(Exception):
            context.close()
    assert complaints == []
