"""The annotation server as a person uses it: in a browser, with the keyboard, through a kill of the server."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.annotate.marks import Marks

HERE = Path(__file__).parent
SERVER = """
import sys
from pathlib import Path
import uvicorn
from gpo.annotate.app import make_app
from gpo.annotate.items import Item
from gpo.annotate.marks import Marks
hostile = "<script>document.title='owned'</script><img src=x onerror=\\"document.title='owned'\\">\\u202egnorw"
steps = ("1 + 1 = 2\\n", hostile + "\\n", "x" * 1_000_000 + "\\n", "So the answer is 7")
items = [Item(f"t{i}", f"question {i}: {hostile}", steps, i % 2 == 0, "7") for i in range(3)]
uvicorn.run(make_app(Marks(Path(sys.argv[1])), items), port=int(sys.argv[2]), log_level="warning")
"""


class Server:
    """The real server in a process of its own, which can be killed."""

    def __init__(self, path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.path, self.url = path, f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, str(self.path), str(self.port)])
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the annotation server did not start within a minute")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "annotations.sqlite")
    yield server
    server.kill()


def join(page: Any, server: Server, name: str = "Ann") -> None:
    page.goto(server.url)
    page.get_by_label("A name or nickname").fill(name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#mark")


def test_the_keyboard_is_enough(page: Any, server: Server) -> None:
    join(page, server)
    assert page.get_by_text("Solution 1 of 3").is_visible()
    page.keyboard.press("4")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("c")
    page.keyboard.type("it ends here")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.get_by_text("Solution 2 of 3").wait_for()
    page.keyboard.press("n")
    page.get_by_text("Solution 3 of 3").wait_for()
    page.keyboard.press("u")
    page.get_by_text("Solution 2 of 3").wait_for()
    page.keyboard.press("s")
    page.get_by_text("Solution 3 of 3").wait_for()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.get_by_text("Thank you").wait_for()
    marks = Marks(server.path).all()
    assert [(mark.kind, mark.step, mark.comment) for mark in marks] == [
        ("step", 2, "it ends here"),
        ("skip", None, ""),
        ("step", 0, ""),
    ]


def test_hostile_output_is_shown_as_text(page: Any, server: Server) -> None:
    join(page, server)
    assert "owned" not in page.title()
    assert page.locator("img").count() == 0
    assert "<script>" in page.locator(".step .text").nth(1).inner_text()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1200
    # The mark that turns text around does not reach the step after it.
    assert page.locator(".step .text").nth(3).inner_text() == "So the answer is 7"


def test_marks_outlive_a_killed_server_and_the_page_goes_on(page: Any, server: Server) -> None:
    join(page, server)
    page.get_by_label("1 + 1 = 2").check()
    page.locator("#do-mark").click()
    page.get_by_text("Solution 2 of 3").wait_for()
    server.kill()
    server.start()
    page.reload()
    page.get_by_text("Solution 2 of 3").wait_for()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.get_by_text("Solution 3 of 3").wait_for()
    assert [mark.step for mark in Marks(server.path).all()] == [0, 1]


def test_a_kill_in_the_middle_of_many_marks_loses_none_that_was_answered(server: Server) -> None:
    marks = Marks(server.path)
    script = (
        "import sys\nfrom pathlib import Path\nfrom gpo.annotate.marks import Marks\n"
        "marks = Marks(Path(sys.argv[1]))\nnumber = marks.annotator(marks.join('Ann'))\n"
        "for i in range(100_000):\n    marks.add(number, str(i), 'step', i, '')\n    print(i, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(server.path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    told += [int(line) for line in writer.communicate()[0].splitlines()]
    assert [mark.step for mark in marks.all()][: len(told)] == told


def test_the_page_fits_a_phone_and_has_a_name_for_every_control(browser: Any, server: Server) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    join(page, server)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for control in page.locator("input:not([type=hidden]), textarea, button").all():
        name = control.evaluate("e => e.labels?.[0]?.innerText || e.innerText || e.getAttribute('aria-label')")
        assert name
        assert name.strip()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(23, 23, 27)"
    context.close()
