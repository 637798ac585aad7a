"""Make the pictures of the pages in docs/images: python docs/screenshots.py RUN [AFTER].

RUN is a searched run directory, AFTER a later one on the same questions to compare with it. With --trajectory NAME
there is one picture of that name, of the first trajectory that was searched. Needs Playwright and
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

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from gpo.report.command import write_report

IMAGES = Path(__file__).parent / "images"
DESK, PHONE = (1100, 900), (390, 800)
SHARPNESS = 2  # pixels of a picture for each of the page
MARGIN = 8
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def window(browser: Browser, size: tuple[int, int] = DESK, scheme: Any = "light") -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=SHARPNESS
    )
    yield context.new_page()
    context.close()


def shoot(page: Page, name: str, first: Locator, last: Locator) -> None:
    """Write what is between the top of one element and the bottom of another as a picture."""
    page.mouse.move(0, 0)
    page.evaluate("document.querySelectorAll('header').forEach(one => { one.style.position = 'static' })")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(200)
    top, bottom = (box["y"] + offset * box["height"] for box, offset in ((_box(first), 0), (_box(last), 1)))
    top, bottom = max(0, top - MARGIN), bottom + MARGIN
    width = page.viewport_size["width"] if page.viewport_size else DESK[0]
    page.screenshot(
        path=IMAGES / f"{name}.png", full_page=True, clip={"x": 0, "y": top, "width": width, "height": bottom - top}
    )
    with Image.open(IMAGES / f"{name}.png") as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(IMAGES / f"{name}.png", optimize=True)


def _box(element: Locator) -> Any:
    box = element.bounding_box()
    if box is None:
        raise SystemExit(f"{element} is not on the page. Give a run that has been searched, trained and evaluated.")
    return box


def take_report(browser: Browser, address: str) -> None:
    with window(browser) as page:
        page.goto(f"{address}#overview")
        shoot(page, "report-overview", page.locator("header"), page.locator("figure").first)
    for name, size, scheme in (
        ("report", DESK, "light"),
        ("report-dark", DESK, "dark"),
        ("report-phone", PHONE, "light"),
    ):
        with window(browser, size, scheme) as page:
            page.goto(f"{address}#trajectories")
            item = page.locator(".trajectory:visible:has(.continuation .right):has(.continuation .wrong)").first
            page.goto(f"{address}#{item.get_attribute('id')}")
            for prefix in item.locator(".prefix > summary").all():
                prefix.click()
            page.evaluate("document.activeElement.blur()")
            shoot(page, name, item, item)
    with window(browser) as page:
        page.goto(f"{address}#diagnosis")
        shoot(page, "report-diagnosis", page.locator("header"), page.locator("article:visible table").first)


def take_trajectory(browser: Browser, address: str, name: str) -> None:
    with window(browser) as page:
        page.goto(f"{address}#trajectories")
        item = page.locator(".trajectory:visible").first
        page.goto(f"{address}#{item.get_attribute('id')}")
        page.evaluate("document.activeElement.blur()")
        shoot(page, name, item, item)


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
        with window(browser) as page:
            page.goto(address)
            page.locator("#name").fill("Ann")
            page.locator("button").first.click()
            page.locator(".step").nth(1).click()
            shoot(page, "annotate", page.locator("main"), page.locator("main"))
    finally:
        server.terminate()
        server.wait()


def main(run: str, after: str | None = None, name: str | None = None) -> None:
    path = os.environ.get("GPO_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        copy = Path(folder) / Path(run).resolve().name  # annotations are no part of the run
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "*.sqlite*"))
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if after == "--trajectory" and name is not None:
            take_trajectory(browser, write_report(copy).as_uri(), name)
            return
        take_report(browser, write_report(copy).as_uri())
        if after is not None:
            compared = write_report(Path(after), Path(folder) / "compared.html", copy)
            with window(browser) as page:
                page.goto(f"{compared.as_uri()}#diagnosis")
                rows = page.locator(".runs:visible tbody tr")
                shoot(
                    page, "report-compared", page.locator("[id^=compared]:visible"), rows.nth(min(8, rows.count()) - 1)
                )
        take_annotate(browser, copy)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
