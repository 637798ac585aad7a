import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpo.errors import ConfigError, DataError
from gpo.methods.metrics import write_rows
from gpo.storage import lock
from gpo.storage.files import append_row, make_folder, replacing, write_text
from gpo.storage.lock import is_held, joined, locked


def test_a_directory_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    script = (
        f"from gpo.storage.lock import locked\nfrom pathlib import Path\nwith locked(Path({str(tmp_path)!r})): pass"
    )
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "Another process works in" in other.stderr
    with locked(tmp_path):
        pass


def test_a_directory_stays_held_until_the_last_of_those_that_share_it_is_gone(tmp_path: Path) -> None:
    with locked(tmp_path) as hold:
        other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[hold.descriptor])
    assert is_held(tmp_path)
    other.communicate()
    assert not is_held(tmp_path)


def test_who_joins_a_directory_hands_it_to_nobody_and_writes_into_no_other_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run) as hold:
        descriptor = os.dup(hold.descriptor)
        os.set_inheritable(descriptor, True)

    def work() -> None:
        with os.fdopen(descriptor), joined(run, descriptor):
            assert not os.get_inheritable(descriptor)
            write_text(run / "a.txt", "text")
            run.rename(tmp_path / "elsewhere")
            write_text(run / "b.txt", "text")

    with pytest.raises(DataError, match="run was removed or moved"):
        work()
    assert not run.exists()


def test_the_lock_error_is_a_config_error(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError), locked(tmp_path):
        pass


@pytest.mark.parametrize("folder", ["arms", "arms/gpo", "arms/gpo/rounds/2", "evaluation", ".lock"])
def test_a_directory_whose_folders_lead_elsewhere_is_not_worked_in(tmp_path: Path, folder: str) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "run" / folder
    elsewhere.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(DataError, match=rf"run/{folder} is a symbolic link"), locked(tmp_path / "run"):
        pass


def test_a_directory_that_was_removed_or_moved_is_missed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run) as check:
        check()
        run.rename(tmp_path / "elsewhere")
        with pytest.raises(DataError, match=r"run was removed or moved while this process worked in it\. Put it back"):
            check()
        run.mkdir()
        (run / ".lock").touch()
        with pytest.raises(DataError, match="was removed or moved"):
            check()
        shutil.rmtree(run)


WRITERS = {
    "whole file": lambda run: write_text(run / "arms" / "x.txt", "text"),
    "line": lambda run: append_row(run / "arms" / "x.jsonl", {}),
    "metrics": lambda run: write_rows(run / "arms" / "training.jsonl", [{"loss": 1.0}]),
    "folder": lambda run: make_folder(run / "arms" / "gpo"),
    "anything else": lambda run: (run / "config.json").read_bytes(),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_is_gone_is_not_made_anew_by_what_is_written_next(
    name: str, replaced: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def work() -> None:
        with locked(run):
            (run / "arms").mkdir()
            run.rename(tmp_path / "elsewhere")
            if replaced:  # the empty folder that an unmounted disk leaves
                run.mkdir()
            WRITERS[name](run)

    with pytest.raises(DataError, match="run was removed or moved while this process worked in it"):
        work()
    assert run.exists() == replaced
    assert not list(run.glob("*"))
    with locked(run):
        WRITERS["folder"](run)


def test_a_whole_file_that_took_long_is_not_put_into_a_directory_that_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def work() -> None:
        with locked(run), replacing(run / "model") as partial:
            shutil.rmtree(run)
            partial.mkdir(parents=True)  # as libraries do

    with pytest.raises(DataError, match="run was removed"):
        work()
    assert not list(run.glob("*"))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system as some network ones are."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "SETTLED", 0.0)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_says_who_works_there(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(
            ConfigError,
            match=r"Another Run or thread of this process works in .*\.held says so, since its file system has no",
        ),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        assert json.loads((tmp_path / ".held").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".held").exists()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_who_died_is_told_from_who_may_live(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    held, here = tmp_path / ".held", socket.gethostname()
    held.write_text(json.dumps({"host": here, "pid": ended.pid}))
    with locked(tmp_path):
        pass
    for content in ({"host": "elsewhere", "pid": ended.pid}, {"host": here, "pid": os.getpid()}, []):
        held.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="If it is gone, delete that file"), locked(tmp_path):
            pass
        assert held.exists()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_two_that_take_over_at_once_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: (tmp_path / ".held").write_text("another"))
    with pytest.raises(ConfigError, match="Another process works in"), locked(tmp_path):
        pass
    assert (tmp_path / ".held").read_text() == "another"
