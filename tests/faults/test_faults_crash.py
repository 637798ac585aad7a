"""A run that crashes before any call that changes its directory ends as one that was not disturbed."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk import Recorder, State, disturbed, failing, recorded, restore
from programs import PROGRAMS, differing, results_of, work

from gpo.errors import GPOError

Some = Callable[..., list[Any]]
Survived = Callable[[str, int], None]


def make_quick(patched: pytest.MonkeyPatch) -> None:
    """Plots take longer than all else of a small run, and so does a real sync."""
    patched.setattr("gpo.report.plots.write_plots", lambda *_: None)
    patched.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


@pytest.fixture(scope="module", params=PROGRAMS)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Recorder, Any]:
    """An undisturbed program: its name, every state that it went through, and its results."""
    root = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patched:
        make_quick(patched)
        with recorded(root) as recorder:
            work(root / "run", request.param)
    return request.param, recorder, results_of(root / "run")


def check(states: list[State], program: str, expected: dict[str, bytes], folder: Path) -> None:
    """Go on from every state; the results are those of the undisturbed run."""
    for state in states:
        restore(state.tree, folder)
        work(folder / "run", program)
        assert not differing(results_of(folder / "run"), expected), state


def test_a_kill_before_any_call_changes_nothing(
    history: tuple[str, Recorder, Any], tmp_path: Path, some: Some, survived: Survived
) -> None:
    program, recorder, expected = history
    assert recorder.calls > 50
    states = some(recorder.killed, 6)
    check(states, program, expected, tmp_path)
    survived("kill before a call that changes the directory, or half way through a write", len(states))


@pytest.mark.parametrize("model", ["strict", "renamed", "zeros"])
def test_a_loss_of_power_before_any_call_changes_nothing(
    model: str, history: tuple[str, Recorder, Any], tmp_path: Path, some: Some, survived: Survived
) -> None:
    program, recorder, expected = history
    states = some(recorder.powerless[model], 4)
    check(states, program, expected, tmp_path)
    survived(f"loss of power, file system {model!r}", len(states))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_at_any_call_is_told_and_loses_nothing(
    code: int, history: tuple[str, Recorder, Any], tmp_path: Path, some: Some, survived: Survived
) -> None:
    program, recorder, expected = history
    calls = some(list(range(recorder.calls)), 3, 100)
    for at in calls:
        folder = tmp_path / str(at)
        folder.mkdir()
        with failing(folder, at, code) as refused:
            told = ""
            try:
                work(folder / "run", program)
            except GPOError as error:
                told = str(error)
        assert str(folder) in told or all(each.startswith(("unlink", "rmdir")) for each in refused), refused
        work(folder / "run", program)
        assert not differing(results_of(folder / "run"), expected), refused[0]
    survived(f"disk that fails ({errno.errorcode[code]})", len(calls))


@pytest.mark.parametrize("gone", ["removed", "moved"])
def test_a_directory_that_is_gone_in_the_middle_is_told(
    gone: str, history: tuple[str, Recorder, Any], tmp_path: Path, some: Some, survived: Survived
) -> None:
    program, recorder, expected = history
    if program == "reuse":
        pytest.skip("two commands, between which a directory may go")
    calls = some(list(range(3, recorder.calls - 1)), 3, 50)
    for at in calls:
        folder = tmp_path / str(at)
        folder.mkdir()

        def disturb(run: Path = folder / "run") -> None:
            if gone == "moved":
                run.rename(run.with_name("elsewhere"))
            else:
                shutil.rmtree(run)

        with disturbed(folder, at, disturb), pytest.raises(GPOError, match=re.escape(str(folder / "run"))):
            work(folder / "run", program)
        assert not (folder / "run").exists(), at  # nothing is made anew with half a run in it
        work(folder / "run", program)
        assert not differing(results_of(folder / "run"), expected), at
    survived(f"directory {gone} in the middle", len(calls))
