"""Make the pictures of the pages in docs/images: python docs/screenshots.py RUN [AFTER].

RUN is a searched run directory, AFTER a later one on the same questions to compare with it. Needs Playwright and
Chromium (its path as GPO_CHROMIUM if it is not found).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from gpo.report.command import write_report

IMAGES = Path(__file__).parent / "images"
DESK, PHONE = (1100, 900), (390, 800)
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def window(browser: Browser, name: str, size: tuple[int, int] = DESK, scheme: Any = "light") -> Iterator[Page]:
    """A fresh window; what it shows at the end is written as a picture."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    yield page
    page.wait_for_timeout(200)
    page.screenshot(path=IMAGES / f"{name}.png")
    context.close()


def take_report(browser: Browser, address: str) -> None:
    with window(browser, "report-overview") as page:
        page.goto(f"{address}#overview")
    for name, size, scheme in (
        ("report", DESK, "light"),
        ("report-dark", DESK, "dark"),
        ("report-phone", PHONE, "light"),
    ):
        with window(browser, name, size, scheme) as page:
            page.goto(f"{address}#trajectories")
            item = page.locator(".trajectory:has(.continuation .right):has(.continuation .wrong)").first
            page.goto(f"{address}#{item.get_attribute('id')}")
            item.locator(".prefix > summary").first.click()
            item.scroll_into_view_if_needed()
            page.evaluate("hash => document.querySelector(hash).scrollIntoView()", f"#{item.get_attribute('id')}")
    with window(browser, "report-diagnosis") as page:
        page.goto(f"{address}#diagnosis")


def take_annotate(browser: Browser, run: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen([sys.executable, "-m", "gpo", "annotate", str(run), "--port", str(port)])
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        with window(browser, "annotate") as page:
            page.goto(address)
            page.locator("#name").fill("Ann")
            page.locator("button").first.click()
            page.locator(".step").nth(1).click()
    finally:
        server.terminate()
        server.wait()


def main(run: str, after: str | None = None) -> None:
    path = os.environ.get("GPO_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        copy = Path(folder) / Path(run).resolve().name  # annotations are no part of the run
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "*.sqlite*"))
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        take_report(browser, write_report(copy).as_uri())
        if after is not None:
            compared = write_report(Path(after), Path(folder) / "compared.html", copy)
            with window(browser, "report-compared") as page:
                page.goto(f"{compared.as_uri()}#compared")
        take_annotate(browser, copy)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
