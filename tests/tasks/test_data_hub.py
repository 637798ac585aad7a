"""Without a network the hub is asked once, and what is there is used."""

from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import constants

from gpo.errors import DataError
from gpo.storage import hub
from gpo.tasks.data import Hub, load_rows

SILENT = "http://127.0.0.1:9"  # the discard port: nobody listens there


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GPO_DATA", raising=False)
    answers = hub.answers
    answers.cache_clear()
    yield
    answers.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the library was offline at each load."""
    seen: list[bool] = []

    def load_dataset(*_: Any, **__: Any) -> list[dict[str, str]]:
        from datasets import config

        seen.append(config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach the hub (LocalEntryNotFoundError)")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return seen


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, asked: list[bool]) -> None:
    calls: list[str] = []
    monkeypatch.setattr(constants, "ENDPOINT", SILENT)
    monkeypatch.setattr(hub, "urlopen", lambda request, timeout: calls.append(request.full_url) or _refuse())
    for _ in range(2):
        with pytest.raises(DataError, match=f"{SILENT} does not answer, and there is no copy in the local cache") as e:
            load_rows(["x.jsonl"], Hub("a/b", "0", "test"))
    assert "Set GPO_DATA to a folder with x.jsonl" in str(e.value)
    assert (calls, asked) == ([SILENT], [True, True])
    assert constants.HF_HUB_OFFLINE is False


def test_what_is_in_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda url: False)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"question": "1?"}])
    assert len(load_rows(["x.jsonl"], Hub("a/b", "0", "test"))) == 1


def test_offline_by_choice_asks_nobody(monkeypatch: pytest.MonkeyPatch, asked: list[bool]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "answers", lambda url: pytest.fail("asked"))
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set, and there is no copy"):
        load_rows(["x.jsonl"], Hub("a/b", "0", "test"))
    assert asked == [True]


def test_a_name_that_is_never_looked_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    never = Event()

    def hang(request: Any, timeout: float) -> None:
        never.wait(30)
        _refuse()

    monkeypatch.setattr(hub, "SECONDS", 0.05)
    monkeypatch.setattr(hub, "urlopen", hang)
    assert hub.answers("http://slow.invalid") is False
    never.set()


def test_an_error_reply_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from email.message import Message
    from urllib.error import HTTPError

    def refuse(request: Any, timeout: float) -> None:
        raise HTTPError(request.full_url, 403, "no", Message(), None)

    monkeypatch.setattr(hub, "urlopen", refuse)
    assert hub.answers("http://here.invalid") is True


def _refuse() -> Any:
    raise ConnectionRefusedError(111, "refused")
