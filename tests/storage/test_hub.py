"""Without a connection the hub's cache is looked at, and nothing is tried again and again."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from gpo.engines.loading import load_tokenizer
from gpo.errors import EngineError
from gpo.storage import hub
from gpo.storage.weights import load_checked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that were asked, all in vain."""
    addresses: list[str] = []

    def refuse(request: Any, timeout: float) -> Any:
        addresses.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr(hub, "urlopen", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    hub.answers.cache_clear()
    yield addresses
    hub.answers.cache_clear()


@pytest.mark.parametrize("load", [load_checked, load_tokenizer])
def test_without_a_network_nothing_is_tried_again(
    load: Any, asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineError, match="somebody/model"):
        load("somebody/model")
    assert "Retrying" not in caplog.text


def test_the_hub_is_asked_once(asked: list[str]) -> None:
    for _ in range(3):
        assert hub.hub_options("somebody/model") == {"local_files_only": True}
    assert asked == ["https://hub.example"]


def test_directories_ask_nobody(asked: list[str], tmp_path: Path) -> None:
    assert hub.hub_options(str(tmp_path)) == {}
    assert asked == []


def test_with_a_hub_the_client_does_what_it_does(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "urlopen", lambda *_, **__: BytesIO())
    assert hub.hub_options("somebody/model") == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.hub_options("somebody/model") == {"local_files_only": True}
