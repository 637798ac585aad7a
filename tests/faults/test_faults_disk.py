"""Disks and files: full for real, damaged at any line, of another version, under a clock that goes backwards."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disk import disturbed
from garbler import ALL, COUNTED, SEEN, damages
from programs import differing, results_of, work

from gpo.annotate.items import load_items
from gpo.errors import DataError, GPOError
from gpo.report.command import write_report
from gpo.report.results import summarize
from gpo.storage.directory import RunDirectory

Some = Callable[..., list[Any]]
Survived = Callable[[str, int], None]
WRITTEN_AT_ONCE = ("pairs.jsonl", "problems.jsonl", "rounds.jsonl")  # no chunks: made again, or told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpo.report.plots.write_plots", lambda *_: None)
    monkeypatch.setattr("gpo.report.command.write_plots", lambda *_: None)
    monkeypatch.setattr("gpo.report.command.inline_figures", lambda *_: {})
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gpo.report.plots.write_plots", lambda *_: None)
        patched.setattr("os.fsync", lambda _: None)
        work(run, "offline")
    return run


def damaged_copies(finished: Path, name: str, ways: dict[str, Any]) -> list[tuple[str, str, bytes]]:
    """Every damage to every file of this name: path, what was done, content."""
    return [
        (str(path.relative_to(finished)), what, content)
        for path in sorted(finished.rglob(name))
        for what, content in damages(path.read_bytes(), ways)
    ]


CHUNKED = ("rollouts.jsonl", "scores.jsonl", "resets.jsonl", "more.jsonl", "base.jsonl", "gpo.jsonl")


@pytest.mark.parametrize("name", [*CHUNKED, *WRITTEN_AT_ONCE])
def test_a_damaged_line_is_told_or_made_anew_as_it_was(
    name: str, finished: Path, tmp_path: Path, some: Some, survived: Survived
) -> None:
    faults = some(damaged_copies(finished, name, COUNTED if name in CHUNKED else SEEN), 4)
    expected = results_of(finished)
    assert faults
    for path, what, content in faults:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        (run / path).write_bytes(content)
        told = ""
        try:
            work(run, "offline")
        except GPOError as error:
            told = str(error)
        if told:
            assert str((run / path).parent) in told, what
            assert (run / path).read_bytes() == content, what
        else:  # pairs of a round that is trained are not needed any more
            left = {path} if name == "pairs.jsonl" else set()
            assert set(differing(results_of(run), expected)) <= left, (path, what)
    survived("damaged line of a run that goes on", len(faults))


def read_everything(run: Path) -> None:
    """What only reads a run."""
    files = RunDirectory(run)
    for read in (lambda: summarize(files), lambda: load_items(files, 20), lambda: write_report(run)):
        told = str(run)
        try:
            read()
        except GPOError as error:
            told = str(error)
        assert str(run) in told


@pytest.mark.parametrize("name", ["*.jsonl", "*.json"])
def test_what_reads_a_damaged_run_says_so_or_shows_it(
    name: str, finished: Path, tmp_path: Path, some: Some, survived: Survived
) -> None:
    faults = some(damaged_copies(finished, name, ALL), 8)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for path, _, content in faults:
        kept = (run / path).read_bytes()
        (run / path).write_bytes(content)
        read_everything(run)
        (run / path).write_bytes(kept)
    survived("damaged line of a run that is read", len(faults))


@contextmanager
def no_file_larger(size: int) -> Iterator[None]:
    """What is written beyond so many bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_may_not_grow_are_named_and_the_run_goes_on_once_they_may(
    finished: Path, tmp_path: Path, some: Some, survived: Survived
) -> None:
    sizes = sorted({path.stat().st_size for path in finished.rglob("*") if path.is_file()} - {0})
    rooms = some(sorted({room for size in sizes for room in (0, size // 2, size - 1)}), 4)
    for room in rooms:
        run = tmp_path / str(room) / "run"
        with no_file_larger(room), pytest.raises(DataError, match="cannot be written: File too large"):
            work(run, "offline")
        work(run, "offline")
        assert not differing(results_of(run), results_of(finished))
    survived("file that may not grow (RLIMIT_FSIZE)", len(rooms))


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of so many bytes."""
    folder.mkdir(parents=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_disk_that_is_full_for_real_is_told_and_the_run_goes_on_once_there_is_room(
    finished: Path, tmp_path: Path, some: Some, survived: Survived
) -> None:
    pages = sum(-(-path.stat().st_size // 4096) for path in finished.rglob("*") if path.is_file())
    sizes = some([4096 * n for n in range(1, pages)], 3, 20)
    for size in sizes:
        with mounted(tmp_path / str(size), size) as disk:
            with pytest.raises(
                DataError, match=rf"{disk}/run.* cannot be written: .*No space left on device.*Make room"
            ):
                work(disk / "run", "offline")
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            work(disk / "run", "offline")
            assert not differing(results_of(disk / "run"), results_of(finished))
    survived("disk that is full for real (tmpfs)", len(sizes))


def test_a_disk_that_is_unmounted_under_a_run_is_missed_and_nothing_is_written_where_it_was(
    tmp_path: Path, some: Some, survived: Survived
) -> None:
    calls = some(list(range(4, 200)), 3, 20)
    for at in calls:
        with mounted(tmp_path / str(at), 2**24) as disk:

            def unmount(folder: Path = disk) -> None:
                subprocess.run(["umount", "-l", str(folder)], check=True)

            with disturbed(disk, at, unmount), pytest.raises(DataError, match=str(disk)):
                work(disk, "online")
            assert not list(disk.iterdir())
    survived("disk that is unmounted in the middle", len(calls))


@pytest.mark.parametrize("step", [-1.0, -1e6, 0.0])
def test_a_clock_that_stands_or_goes_backwards_changes_nothing(
    step: float, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    ticks = itertools.count(1e9, step)
    for clock in ("time", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: next(ticks))
    work(tmp_path / "run", "offline")
    assert not differing(results_of(tmp_path / "run"), results_of(finished))
    read_everything(tmp_path / "run")
    survived("clock that stands or goes backwards", 1)


def test_a_row_of_an_older_version_is_read_and_one_of_a_newer_is_named(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "rollouts.jsonl"
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    for row in rows:
        for trajectory in row["trajectories"]:
            assert trajectory["score"].pop("reason", None) is None
            del trajectory["start"]["parent"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert RunDirectory(run).rollouts.read() == RunDirectory(finished).rollouts.read()
    rows[0]["colour"] = "red"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"rollouts\.jsonl:1: not a row of Group: Group has no field colour"):
        work(run, "offline")
