"""Processes that are killed at random moments: a run, and the store of annotations."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx2 as httpx
import pytest
import uvicorn
from programs import differing, results_of, work

from gpo.annotate.app import make_app
from gpo.annotate.items import Item
from gpo.annotate.marks import Marks

Survived = Callable[[str, int], None]
# Its processes are forked from one that has loaded everything and started no thread: a kill costs no import.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["programs", "pyarrow.parquet", "pandas", "gpo.report.plots", "transformers.models.qwen3.modeling_qwen3"]
)


def work_quickly(directory: Path, program: str) -> None:
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gpo.report.plots.write_plots", lambda *_: None)
        work(directory, program)


@pytest.mark.parametrize("program", ["online", "offline", "suite"])
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(
    program: str, tmp_path: Path, at_most: Callable[[int, int], int], survived: Survived
) -> None:
    def begin(directory: Path) -> multiprocessing.process.BaseProcess:
        process = SERVER.Process(target=work_quickly, args=(directory, program))
        process.start()
        return process

    begin(tmp_path / "first").join()  # loads what the others inherit
    began = time.monotonic()
    begin(tmp_path / "undisturbed").join()
    duration, expected = time.monotonic() - began, results_of(tmp_path / "undisturbed")
    chance, kills, number, wanted = Random(7), 0, 0, at_most(4, 50)
    while kills < wanted or number < 1:
        process = begin(tmp_path / str(number))
        process.join(chance.uniform(0, 0.6 * duration) if kills < wanted else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0
        assert not differing(results_of(tmp_path / str(number)), expected)
        number += 1
    survived("SIGKILL at a random moment of a run", kills)


def mark_for_ever(path: Path, acknowledged: Path) -> None:
    """Marks one item after another, and notes each once it is kept."""
    marks = Marks(path)
    annotator = marks.annotator(marks.join("Ann"))
    assert annotator is not None
    descriptor = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(10**9):
        item = f"{os.getpid()}/{number}"
        marks.add(annotator, item, "step", number, "")
        os.write(descriptor, json.dumps(item).encode() + b"\n")


def test_no_acknowledged_mark_is_lost_or_doubled_by_a_kill(
    tmp_path: Path, at_most: Callable[[int, int], int], survived: Survived
) -> None:
    path, acknowledged = tmp_path / "annotations.sqlite", tmp_path / "acknowledged"
    acknowledged.touch()
    chance, kills = Random(5), at_most(4, 50)
    for _ in range(kills):
        process = SERVER.Process(target=mark_for_ever, args=(path, acknowledged))
        process.start()
        before = acknowledged.stat().st_size
        while acknowledged.stat().st_size == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        kept = [mark.item for mark in Marks(path).all()]
        known = [json.loads(line) for line in acknowledged.read_text().splitlines()]
        assert len(set(kept)) == len(kept)
        assert set(known) <= set(kept)
    assert len(kept) <= len(known) + kills
    survived("SIGKILL while annotations are stored", kills)


ITEMS = [Item(f"t{number}", "question", ("first\n", "last"), True, "7") for number in range(2000)]


def serve(path: Path, port: int) -> None:
    uvicorn.run(make_app(Marks(path), ITEMS), port=port, log_level="critical")


def mark_until_it_dies(client: httpx.Client, acknowledged: list[str]) -> None:
    """Goes through the pages as a browser does, and keeps what was acknowledged."""
    page = ""
    with suppress(httpx.TransportError):
        while True:
            page = page or client.get("/").text
            form = dict(re.findall(r'name="(token|item)" value="([^"]*)"', page))
            assert client.post("/mark", data={**form, "kind": "none"}).status_code == 303
            acknowledged.append(form["item"])
            page = ""


def test_the_annotation_server_is_killed_and_whoever_marks_goes_on(
    tmp_path: Path, at_most: Callable[[int, int], int], survived: Survived
) -> None:
    path, kills, chance = tmp_path / "annotations.sqlite", at_most(2, 50), Random(3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    acknowledged: list[str] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        for number in range(kills):
            server = SERVER.Process(target=serve, args=(path, port))
            server.start()
            while True:
                with suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.02)
            if not number:
                assert client.post("/join", data={"name": "Ann"}).status_code in (200, 303)
            marker = threading.Thread(target=mark_until_it_dies, args=(client, acknowledged))
            known = len(acknowledged)
            marker.start()
            while len(acknowledged) == known:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            server.kill()
            server.join()
            marker.join()
            kept = [mark.item for mark in Marks(path).all()]
            assert len(set(kept)) == len(kept)
            assert set(acknowledged) <= set(kept)
            assert len(kept) - len(acknowledged) <= number + 1
    survived("SIGKILL of the annotation server", kills)


def test_annotations_are_synced_before_they_are_acknowledged(tmp_path: Path) -> None:
    with Marks(tmp_path / "annotations.sqlite")._open() as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: the log is synced at each commit
