"""How fast a report of many trajectories opens in Chromium.

    python benchmarks/page.py [--trajectories 2000] [--repeats 5] [--out FILE]

Made trajectories are searched and reported; the page is opened from the disk in a fresh window each time. Shown are
milliseconds by the clock until its load event has ended, and what the window's main thread computed until then, which
depends less on what else the machine does. `--out` adds a line to a file, of which `benchmarks/reliability.py` makes a
page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

import load
from gpo.report.command import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON lines to add the numbers to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        sampled = 4 * options.trajectories  # a quarter is searched
        load.store(run, sampled, 100, 40)
        load.search(run, sampled, 100, 40)
        page = write_report(run, most=options.trajectories)
        clock, computed = [], []
        with sync_playwright() as driver:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            for _ in range(options.repeats):
                window = browser.new_page()
                session = window.context.new_cdp_session(window)
                session.send("Performance.enable", {"timeDomain": "threadTicks"})
                window.goto(page.as_uri(), wait_until="load")
                window.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
                clock.append(window.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
                metrics = {row["name"]: row["value"] for row in session.send("Performance.getMetrics")["metrics"]}
                computed.append(1000 * metrics["TaskDuration"])
                shown = window.locator("article, details, section").count()
                window.close()
            browser.close()
        size = page.stat().st_size / 1e6
    measured = (
        f"{median(clock):.0f} ms by the clock until loaded (median of {options.repeats}; {min(clock):.0f} to "
        f"{max(clock):.0f}), {median(computed):.0f} ms of the main thread's processor; {size:.1f} MB"
    )
    print(f"{options.trajectories} trajectories: {measured}; {shown} parts")
    if options.out is not None:
        row = {"what": f"opening a report of {options.trajectories:,} trajectories in Chromium", "measured": measured}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
