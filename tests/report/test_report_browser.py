"""The report as a person uses it: from the disk, in a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.report.command import write_report
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json
from written_run import NAN, Written, write_run

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnorw"
LONG = "x" * 1_000_000
VIEWS = ("overview", "trajectories", "diagnosis")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [
        Written("How many apples?", ["Two apples", "So 2"], [0.5, 0.75, 0.0], 0, "wrong", ["right"], task="fruit"),
        Written("How many pears?", ["Nine pears", "So 42"], [0.25, 1.0, 1.0], 0, "right", ["wrong"], task="fruit"),
        Written(EVIL, [EVIL, LONG, "So 3"], [0.5, NAN, 0.4, 0.0], 2, "ungradable", task=EVIL,
                search={2: [(EVIL, "right"), (LONG, "wrong")]}),
        *[Written(f"Question {k} with an_unbroken_word_{'long' * 60}", ["a", "b"], [0.5, 0.5, 0.0], task="other")
          for k in range(5)],
    ]  # fmt: skip
    before = [Written(row.question, ["Otherwise", "b"], [0.5, 0.75, 0.0], critical=0) for row in rows]
    run = write_run(folder / EVIL.replace("/", ""), rows, True, searches=[("gpo", 1), ("thorough", 1)])
    return write_report(run, before=write_run(folder / "b", before))


@pytest.fixture
def opened(page: Any, report: Path) -> Iterator[Any]:
    """The page; the test fails if it asked for anything but itself, or if a text of a model ran."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(report.as_uri())
    yield page
    assert set(asked) - {"about:blank"} == {report.as_uri()}
    assert complaints == []
    assert page.title().endswith("– GPO report")


def shown(page: Any) -> list[str]:
    return [item.get_attribute("data-task") for item in page.locator(".trajectory:visible").all()]


def test_one_page_is_shown_at_a_time(opened: Any) -> None:
    for view in VIEWS:
        opened.get_by_role("link", name=view.capitalize(), exact=True).click()
        opened.locator(f"#{view}").wait_for()
        assert opened.locator("main > section:visible").evaluate_all("all => all.map(one => one.id)") == [view]
        assert opened.locator("nav [aria-current]").inner_text().lower() == view
    opened.go_back()
    opened.locator("#trajectories").wait_for()


def test_filters_and_search_leave_what_matches(opened: Any) -> None:
    opened.goto(opened.url.partition("#")[0] + "#trajectories")
    assert opened.locator("#count").inner_text() == "8 trajectories"
    opened.get_by_role("combobox", name="Task").select_option("fruit")
    assert shown(opened) == ["fruit", "fruit"]
    opened.get_by_role("combobox", name="Answer").select_option("right")
    assert opened.locator(".trajectory:visible .brief").inner_text() == "How many pears?"
    assert opened.locator("#count").inner_text() == "1 of 8 trajectories"
    opened.get_by_role("button", name="Clear").click()
    opened.get_by_text("8 trajectories", exact=True).wait_for()
    assert len(shown(opened)) == 8
    opened.get_by_role("searchbox", name="Text").fill("APPLES two")
    assert opened.locator(".trajectory:visible .brief").inner_text() == "How many apples?"
    opened.get_by_role("searchbox", name="Text").fill("")
    opened.get_by_role("slider", name="Advantage").focus()
    for _ in range(10):
        opened.keyboard.press("ArrowRight")
    assert opened.locator(".trajectory:visible .brief").inner_text() == "How many pears?"


def test_a_trajectory_and_its_continuations_are_opened_by_the_keyboard(opened: Any) -> None:
    opened.goto(opened.url.partition("#")[0] + "#trajectories")
    item = opened.locator(".trajectory:visible", has_text="⟨U+202E⟩")
    item.locator("summary").first.focus()
    opened.keyboard.press("Enter")
    assert item.locator("tr.critical").inner_text().split("\n") == ["3\t", "◆ critical step", "So 3\t▼\u00a0−0.40\t"]
    assert item.locator("svg").last.get_attribute("role") == "img"
    assert item.locator("svg title").last.text_content() == "after it 0.00, the reward"
    item.locator(".prefix > summary").focus()
    opened.keyboard.press("Enter")
    assert item.locator(".continuation:visible").count() == 2
    assert item.locator(".continuation .verdict").first.inner_text() == "✓ right: 42"


def test_a_link_leads_to_a_trajectory_that_a_filter_had_left_out(opened: Any, report: Path) -> None:
    opened.goto(report.as_uri() + "#trajectories")
    link = opened.locator(".trajectory:visible", has_text="How many pears?").locator(".id a")
    anchor = link.get_attribute("href")
    opened.get_by_role("combobox", name="Task").select_option("other")
    opened.evaluate("hash => { location.hash = hash }", anchor)
    item = opened.locator(anchor)
    item.locator("table").wait_for()
    assert item.get_attribute("open") is not None
    assert len(shown(opened)) == 8
    opened.goto("about:blank")
    opened.goto(report.as_uri() + anchor)
    assert opened.locator(anchor).locator("table").is_visible()


def test_what_a_model_wrote_is_text(opened: Any) -> None:
    opened.goto(opened.url.partition("#")[0] + "#trajectories")
    item = opened.locator(".trajectory:visible", has_text="⟨U+202E⟩")
    item.locator("summary").first.click()
    assert "<script>document.title='owned'</script>" in item.locator("tbody tr").first.inner_text()
    assert "(1,000,000 characters, cut)" in item.inner_text()
    assert "\u202e" not in opened.content()
    assert opened.locator("script").count() == 1
    assert opened.locator("img").count() == 0


def test_every_control_has_a_label_and_every_step_more_than_a_color(opened: Any) -> None:
    unlabelled = "all => all.filter(one => !one.labels.length && !one.textContent.trim()).length"
    assert opened.locator("input, select, button").evaluate_all(unlabelled) == 0
    signs = "all => all.filter(row => row.className && !/[▲▼◆]/.test(row.textContent)).length"
    assert opened.locator(".steps tbody tr").evaluate_all(signs) == 0
    assert opened.locator(".steps tbody tr[class]").count() > 5


def test_two_runs_stand_side_by_side(opened: Any, report: Path) -> None:
    opened.goto(report.as_uri() + "#compared-gpo-1")
    opened.locator("#compared-gpo-1").wait_for()
    row = opened.locator(".runs:visible tr", has_text="How many apples?")
    assert "− mended Otherwise" in row.inner_text()
    assert "+ new Two apples" in row.inner_text()
    row.get_by_role("link", name="show").click()
    assert opened.locator(".trajectory[open] .brief").inner_text() == "How many apples?"


def test_a_search_is_chosen_and_linked_to(opened: Any, report: Path) -> None:
    opened.goto(report.as_uri() + "#diagnosis")
    choice = opened.get_by_role("combobox", name="Search", exact=True)
    assert choice.input_value() == "gpo-1"
    choice.select_option("thorough")
    opened.locator("#diagnosis-thorough-1").wait_for()
    assert opened.url.endswith("#diagnosis-thorough-1")
    assert opened.locator("article:visible").count() == 1
    opened.get_by_role("link", name="Trajectories", exact=True).click()
    opened.locator("#trajectories-thorough-1").wait_for()
    assert opened.locator("#count").inner_text() == "8 trajectories"
    assert opened.locator("nav [aria-current]").inner_text() == "Trajectories"
    opened.get_by_role("searchbox", name="Text").fill("apples")
    anchor = opened.locator(".trajectory:visible .id a").get_attribute("href")
    opened.go_back()
    opened.go_back()
    opened.locator("#diagnosis-gpo-1").wait_for()
    assert choice.input_value() == "gpo-1"
    opened.goto("about:blank")
    opened.goto(f"{report.as_uri()}{anchor}")
    assert opened.locator(anchor).locator("table").is_visible()
    assert choice.input_value() == "thorough-1"
    opened.set_viewport_size({"width": 390, "height": 700})
    opened.goto("about:blank")
    opened.goto(f"{report.as_uri()}#trajectories-thorough-1")
    opened.wait_for_load_state("load")
    assert opened.evaluate("scrollY") == 0
    assert opened.get_by_role("searchbox", name="Text").is_visible()


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_does_not_scroll_sideways(opened: Any, report: Path, view: str) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    opened.goto(f"{report.as_uri()}#{view}")
    opened.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert opened.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize(
    "arms", [("plain", "random", "gpo"), ("gpo", "plain_without_resets", "random_boundary", "thorough")]
)
def test_on_a_phone_the_accuracy_of_the_search_is_in_view(page: Any, tmp_path: Path, arms: tuple[str, ...]) -> None:
    rows = [Written("q", ["a", "b"], [0.5, 0.5, 0.0], 0, "right", ["wrong"], task="tracking_shuffled_objects")] * 3
    files = RunDirectory(write_run(tmp_path, rows, True))
    write_json(tmp_path / "config.json", files.config() | {"arms": {arm: {"name": "adaptive"} for arm in arms}})
    for arm in set(arms) - {"gpo"}:
        files.evaluation(arm).append(files.evaluation("base").read())
    page.set_viewport_size({"width": 320, "height": 800})
    page.goto(write_report(tmp_path).as_uri())
    boxes = [cell.bounding_box() for cell in page.locator("table.accuracy .own").all()]
    assert len(boxes) == 5  # header, the task, all questions, and two differences
    assert all(box["x"] > 60 and box["x"] + box["width"] <= 320 for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_no_number_is_under_another_and_no_caption_is_cut(page: Any, tmp_path: Path, width: int) -> None:
    rows = [Written("q", ["a", "b"], [0.5, 0.5, 1.0], 0, "right", ["right"], task="tracking_shuffled_objects")] * 3
    files = RunDirectory(write_run(tmp_path, rows, True))
    arms = {arm: {"name": "adaptive"} for arm in ("plain", "random", "gpo")}
    write_json(tmp_path / "config.json", files.config() | {"arms": arms})
    for arm in ("plain", "random"):
        files.evaluation(arm).append(files.evaluation("base").read())
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(write_report(tmp_path).as_uri())
    assert page.locator(".strata td", has_text="100.0").count() >= 4
    hidden = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
    tables = ".scroll:has(.accuracy)" if width == 360 else ".scroll:has(.accuracy), .scroll:has(.strata)"
    assert page.locator(tables).evaluate_all(hidden) == []
    boxes = [caption.bounding_box() for caption in page.locator(".caption").all()]
    assert len(boxes) == 3
    assert all(box["x"] + box["width"] <= width for box in boxes)


def test_on_paper_a_page_says_what_it_leaves_out(opened: Any, report: Path) -> None:
    note = opened.locator(".paper")
    opened.goto(f"{report.as_uri()}#trajectories")
    assert not note.is_visible()
    assert opened.locator("#filters").is_visible()
    opened.emulate_media(media="print")
    assert note.is_visible()
    assert not opened.locator("#filters").is_visible()
    assert all(opened.locator(f"#{view}").is_visible() for view in VIEWS)


def test_without_scripts_everything_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    for view in VIEWS:
        assert page.locator(f"#{view}").is_visible()
    page.locator(".trajectory > summary").first.click()
    assert page.locator(".trajectory .steps").first.is_visible()
    context.close()


def test_axe_finds_nothing_wrong(audited: Any, report: Path, width: int) -> None:
    """On all views at once, as they are without scripts, and with everything opened."""
    audited.goto(report.as_uri())
    audited.evaluate("document.querySelectorAll('main > section').forEach(one => { one.hidden = false })")
    audited.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert audited.audit() == ""
    assert audited.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280)])
def test_axe_finds_planted_faults(audited: Any, report: Path) -> None:
    audited.goto(report.as_uri())
    audited.evaluate("document.documentElement.removeAttribute('lang')")
    audited.evaluate("document.querySelector('h1').style.color = '#aaa'")
    found = audited.audit()
    assert "html-has-lang" in found
    assert "color-contrast" in found
