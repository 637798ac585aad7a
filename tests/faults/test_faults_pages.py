"""Attacks on the annotation page: forms of other sites, guessed tokens, SQL, too large and too slow requests."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from gpo.annotate.app import make_app
from gpo.annotate.items import Item
from gpo.annotate.marks import Marks

Survived = Callable[[str, int], None]
ITEMS = [Item("t0", "question", ("first\n", "last"), True, "7")]
SQL = ("' OR 1=1 --", "'; DROP TABLE marks; --", '" UNION SELECT secret FROM annotators --', "\x00", "%27", "1 OR 1=1")


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "annotations.sqlite")


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([^"]*)"', page)
    assert found
    return found[1]


def test_guessed_links_cookies_and_tokens_let_nobody_in(marks: Marks, survived: Survived) -> None:
    secret = marks.join("link 1", invited=True)
    client = TestClient(make_app(marks, ITEMS, open_to_all=False, hosts=["testserver"]))
    guesses = ["", "0", secret[:-1], secret.swapcase(), secret + "x", *SQL]
    refused = [client.get("/join/" + guess.replace("\x00", "%00")).status_code for guess in guesses]
    assert set(refused) <= {403, 404, 405, 429}
    for guess in guesses:
        cookies = {"cookie": f"annotator={guess}".encode("ascii", "ignore").decode().replace("\x00", "")}
        assert 'name="step"' not in client.get("/", headers=cookies).text
        form = {"item": "t0", "kind": "none", "token": guess}
        assert client.post("/mark", data=form, headers=cookies).status_code in (401, 403, 422)
    many = [client.get(f"/join/{number}").status_code for number in range(400)]
    assert 429 in many
    assert marks.all() == []
    survived("attack on the annotation page", 2 * len(guesses) + len(many))


def test_a_form_of_another_site_marks_nothing(marks: Marks, survived: Survived) -> None:
    client = TestClient(make_app(marks, ITEMS, hosts=["testserver"]))
    assert client.post("/join", data={"name": "Ann"}).status_code == 200
    token = token_of(client.get("/").text)
    for forged in ("", "x", token[:-1], token[::-1], *SQL):
        form = {"item": "t0", "kind": "none", "token": forged}
        assert client.post("/mark", data=form, headers={"origin": "http://evil.example"}).status_code in (403, 422)
    assert marks.all() == []
    survived("attack on the annotation page", 4 + len(SQL))


def test_sql_in_any_field_is_text(marks: Marks, survived: Survived) -> None:
    for text in SQL:
        client = TestClient(make_app(marks, ITEMS, hosts=["testserver"]))
        assert client.post("/join", data={"name": text}).status_code == 200
        form = {"item": "t0", "kind": "none", "token": token_of(client.get("/").text), "comment": text}
        assert client.post("/mark", data=form | {"item": text}).status_code == 404
        assert client.post("/mark", data=form).status_code == 200
    assert [mark.comment for mark in marks.all()] == [text.strip() for text in SQL]
    survived("attack on the annotation page", 3 * len(SQL))


@pytest.fixture
def port(marks: Marks) -> Iterator[int]:
    """A server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(marks, ITEMS), port=number, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield number
    server.force_exit = server.should_exit = True
    thread.join()


def ask(port: int, request: bytes) -> bytes:
    """The first line of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(200).split(b"\r\n")[0]


GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def test_large_broken_and_slow_requests_keep_nobody_waiting(port: int, survived: Survived) -> None:
    head = b"POST /mark HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    assert b" 413 " in ask(port, head + b"Content-Length: 99999999\r\n\r\n")
    assert b" 411 " in ask(port, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    for broken in (b"\x16\x03\x01\x00", b"GET / HTTP/9.9\r\n\r\n", head + b"Content-Length: -1\r\n\r\n"):
        assert not ask(port, broken + b"\r\n\r\n").startswith(b"HTTP/1.1 2")
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
    for number, connection in enumerate(slow):  # half in the head of a request, half in its body
        connection.sendall(GET[:20] if number % 2 else head + b"Content-Length: 1000\r\n\r\nitem=")
    assert b" 200 " in ask(port, GET)
    for connection in slow:
        connection.close()
    assert b" 200 " in ask(port, GET)
    survived("attack on the annotation page", 5 + len(slow))
