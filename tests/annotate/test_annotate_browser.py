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
steps = ("1 + 1 = 2\\n", hostile + "\\n", "x" * int(sys.argv[3]) + "\\n", "So the answer is 7")
items = [Item(f"t{i}", f"question {i}: {hostile}", steps, i % 2 == 0, "7" * 300) for i in range(3)]
uvicorn.run(make_app(Marks(Path(sys.argv[1])), items), port=int(sys.argv[2]), log_level="warning")
"""


class Server:
    """The real server in a process of its own, which can be killed."""

    def __init__(self, path: Path, length: int = 1000) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.path, self.length, self.url = path, length, f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        arguments = [str(self.path), str(self.port), str(self.length)]
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, *arguments])
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


@pytest.fixture
def long_server(tmp_path: Path) -> Iterator[Server]:
    """One with a step of a million characters, which takes a browser seconds to lay out."""
    server = Server(tmp_path / "annotations.sqlite", 1_000_000)
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


def test_hostile_output_is_shown_as_text(page: Any, long_server: Server) -> None:
    join(page, long_server)
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


def test_a_long_step_is_scrolled_by_the_keyboard(page: Any, server: Server) -> None:
    page.set_viewport_size({"width": 320, "height": 900})
    join(page, server)
    page.locator(".step .text[tabindex]").first.wait_for()
    assert page.locator(".step .text[tabindex]").count() == 1
    box = page.locator(".step .text[tabindex]")
    box.evaluate("box => { box.addEventListener('scroll', () => box.classList.add('moved')) }")
    box.focus()
    page.keyboard.press("ArrowDown")
    page.locator(".text.moved").wait_for()
    assert page.locator(".step input:checked").count() == 0
    page.set_viewport_size({"width": 1200, "height": 900})
    page.locator(".question[tabindex]").wait_for(state="detached")


def test_axe_finds_nothing_wrong(audited: Any, server: Server, width: int) -> None:
    audited.goto(server.url)
    assert audited.audit() == ""
    join(audited, server)
    audited.get_by_label("So the answer is 7").check()
    assert audited.audit() == ""
    assert audited.evaluate("document.documentElement.scrollWidth") == width
    for number in (2, 3):
        audited.locator("#do-none").click()
        audited.get_by_text(f"Solution {number} of 3").wait_for()
    audited.locator("#do-none").click()
    audited.get_by_text("Thank you").wait_for()
    assert audited.audit() == ""
    audited.goto(server.url + "join/nobody")
    audited.get_by_text("Not possible").wait_for()
    assert audited.audit() == ""
