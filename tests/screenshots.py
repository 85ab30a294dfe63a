"""Make the pictures of the README from a running demo.

Start `bridge demo` in one terminal, and give this script the admin key that the demo prints:

    .venv/bin/python -m tests.screenshots http://127.0.0.1:8080 ADMIN-KEY
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parents[1] / "docs"
# Pixels: the button below the editor.
MARGIN = 64


def main(url: str, key: str) -> None:
    """Write dashboard.png and setup.png in docs/."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        credentials = {"username": "demo", "password": key}
        page = browser.new_page(
            http_credentials=credentials,  # type: ignore[arg-type]
            viewport={"width": 1280, "height": 900},
        )
        page.goto(f"{url}/dashboard")
        page.screenshot(path=FOLDER / "dashboard.png")
        page.goto(f"{url}/setup#message")
        _fit_message(page)
        page.screenshot(path=FOLDER / "setup.png")
        browser.close()


def _fit_message(page: Page) -> None:
    """Show the step Message from its heading to the button below the editor."""
    frame = page.locator("iframe").first
    frame.wait_for()
    frame.content_frame.locator("body *").first.wait_for()
    top = page.locator("#message").bounding_box()
    editor = page.locator("#source").bounding_box()
    assert top
    assert editor
    height = round(editor["y"] + editor["height"] - top["y"]) + MARGIN
    page.set_viewport_size({"width": 1280, "height": height})
    page.locator("#message").evaluate("heading => heading.scrollIntoView()")
    # The frame has a process of its own, which paints a moment later.
    page.wait_for_timeout(1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
