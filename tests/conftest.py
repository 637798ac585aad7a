import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("GPO_CHROMIUM", "chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser's path: that of the environment variable, else Debian's or another that is installed."""
    return os.environ.get(CHROMIUM[0]) or next((path for name in CHROMIUM[1:] if (path := shutil.which(name))), None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, and is not looked through for garbage again and again meanwhile."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def data() -> Path:
    """GPO_DATA, else ../shared/data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("GPO_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder} (set GPO_DATA)")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. Not for the whole session: Playwright holds the thread's event loop while it is open."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or its path as GPO_CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh window of 1200 x 900. The test fails on an error that a script of the page did not catch."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not errors


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[320, 1280])
def width(request: pytest.FixtureRequest) -> int:
    """Pixels: the narrowest that WCAG 2.2 asks for (1.4.10, reflow), and a desk."""
    return int(request.param)


@pytest.fixture
def audited(browser: Any, scheme: str, width: int) -> Iterator[Any]:
    """A window in one colour scheme and of one width whose method `audit()` says what axe-core finds wrong in it."""
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(10_000)
    page = context.new_page()

    def audit() -> str:
        results = sync_playwright.Axe().run(page, options={"rules": {"target-size": {"enabled": True}}})
        assert results.response["passes"]
        return results.generate_report() if results.violations_count else ""

    page.audit = audit
    yield page
    context.close()


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that servers on loopback serve."""
    from fake_server import save_model

    return save_model(tmp_path_factory.mktemp("models") / "fake")


@pytest.fixture
def fake(served_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server on loopback. What fails is asked again soon."""
    from fake_server import FakeServer, serving

    monkeypatch.setattr("gpo.engines.connection.REST", (0.01, 0.05))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(FakeServer(str(served_model))) as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests start is not noted in the user's home."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """What is loaded before a file's tests, all libraries, is not looked through by each round's `gc.collect`."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in this process draws no plots, which take longer than all else of a small one."""
    monkeypatch.setattr("gpo.report.plots.write_plots", lambda *_: None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one thread during the test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
