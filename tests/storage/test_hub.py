"""Without a connection the hub's cache is looked at, and nothing is tried again and again."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from gpo.engines.loading import load_tokenizer
from gpo.errors import EngineError
from gpo.storage import hub
from gpo.storage.weights import load_checked


class Connection:
    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses to which a connection was tried, all in vain."""
    addresses: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> Any:
        addresses.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    return addresses


@pytest.mark.parametrize("load", [load_checked, load_tokenizer])
def test_without_a_network_nothing_is_tried_again(
    load: Any, asked: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineError, match="somebody/model"):
        load("somebody/model")
    assert "Retrying" not in caplog.text


def test_one_connection_is_tried(asked: list[Any]) -> None:
    assert hub.hub_options("somebody/model") == {"local_files_only": True}
    assert asked == [("hub.example", 443)]


def test_directories_ask_nobody(asked: list[Any], tmp_path: Path) -> None:
    assert hub.hub_options(str(tmp_path)) == {}
    assert asked == []


def test_with_a_network_or_a_proxy_the_client_does_what_it_does(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    assert hub.hub_options("somebody/model") == {}
    assert asked == []
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", lambda *_: Connection())
    assert hub.hub_options("somebody/model") == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.hub_options("somebody/model") == {"local_files_only": True}
