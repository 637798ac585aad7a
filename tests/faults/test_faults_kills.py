"""Processes that are killed at random moments: a run, and the store of annotations."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from programs import differing, results_of, work

from gpo.annotate.marks import Marks

Survived = Callable[[str, int], None]
# Its processes are forked from one that has loaded everything and started no thread: a kill costs no import.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["programs", "pyarrow.parquet"])


def work_quickly(directory: Path, program: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gpo.report.plots.write_plots", lambda *_: None)
        work(directory, program)


@pytest.mark.parametrize("program", ["online", "offline"])
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


def test_annotations_are_synced_before_they_are_acknowledged(tmp_path: Path) -> None:
    with Marks(tmp_path / "annotations.sqlite")._open() as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: the log is synced at each commit
