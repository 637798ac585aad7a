import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from pathlib import Path

import pytest
from safetensors import SafetensorError

from gpo.errors import DataError, DiskFull
from gpo.storage.files import (
    append,
    append_row,
    read_json,
    read_rows,
    replacing,
    whole_rows,
    write_json,
    write_rows,
    write_text,
)


@dataclass(frozen=True)
class Row:
    n: int


def fail_half_way(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")


def test_whole_files_are_replaced_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "results.json"
    write_json(path, {"accuracy": nan})
    assert read_json(path) == {"accuracy": None}
    with pytest.raises(OSError, match="disk full"):
        fail_half_way(path)
    assert read_json(path) == {"accuracy": None}
    write_text(path, "new")
    assert path.read_text() == "new"
    write_rows(path, [Row(1), {"n": 2}])
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("old", "new"):
        with replacing(path) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json cannot be read as JSON"):
        read_json(tmp_path / "config.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path, dangling: bool) -> None:
    target, link = tmp_path / "target", tmp_path / "file.json"
    if not dangling:
        target.write_text("kept")
    link.symlink_to(target)
    for write in (lambda: write_json(link, {}), lambda: write_rows(link, []), lambda: append_row(link, {})):
        with pytest.raises(DataError, match=r"file\.json is a symbolic link to .*target.* Remove it"):
            write()
    assert link.is_symlink()
    assert not target.exists() if dangling else target.read_text() == "kept"


def test_a_link_in_place_of_the_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "model.partial").symlink_to(kept)
    with replacing(tmp_path / "model") as partial:
        partial.mkdir()
    assert kept.is_dir()
    assert not (tmp_path / "model").is_symlink()
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(DataError, match="link is a symbolic link"), replacing(tmp_path / "link") as partial:
        partial.mkdir()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left on device.*Nothing that was finished is lost. Make room"),
        (errno.EROFS, "Read-only file system.*Choose another directory"),
        (errno.EACCES, "Permission denied.*Make it writable"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code), str(path))

    write_text(tmp_path / "table.md", "old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DataError, match=rf"table\.md cannot be written: {message}"):
        write_text(tmp_path / "table.md", "new")
    assert (tmp_path / "table.md").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.md"]


def test_a_device_that_is_full_says_so() -> None:
    with pytest.raises(DataError, match="/dev/full cannot be written: No space left"):
        append(Path("/dev/full"), b"x")


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "arms").write_text("")
    for write in (lambda path: write_text(path, ""), lambda path: append_row(path, {})):
        with pytest.raises(DataError, match=r"rows\.jsonl cannot be written.*A file stands where a folder is needed"):
            write(tmp_path / "arms" / "rows.jsonl")


def test_any_text_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "half \ud83d é")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "half \\ud83d é"
    write_json(tmp_path / "x.json", {"text": "half \ud83d\u2028é"})
    assert read_json(tmp_path / "x.json") == {"text": "half \ud83d\u2028é"}


def test_rows_are_told_from_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    assert whole_rows(path) == []
    rows = [{"text": "a\u2028b\x85c"}, {"text": "\ud83d"}]
    write_rows(path, rows)
    assert read_rows(path) == whole_rows(path) == rows
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-3], whole + b"[1]\n", b"\xff\n" + whole, whole + b"[" * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            read_rows(path)
        assert whole_rows(path)[:1] == rows[:1]
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: "):
        read_rows(path)


def test_a_row_begins_a_line_of_its_own_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_row(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": ')
    append_row(path, {"n": 2})
    append_row(path, {"n": 3})
    assert whole_rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kept.txt").write_text("kept")
    with pytest.raises(DataError, match=r"A folder stands where a file is needed"):
        write_text(tmp_path / "data", "page")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data/kept.txt").read_text() == "kept"


def test_a_kill_while_a_folder_makes_way_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "model", tmp_path / "model.old.partial"

    def write(name: str) -> None:
        with replacing(path) as partial:
            partial.mkdir()
            (partial / name).write_text(name)

    def names(folder: Path) -> list[str]:
        return sorted(file.name for file in folder.iterdir())

    def refused(*_: object) -> None:
        raise OSError("not now")

    write("first")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refused)
        with pytest.raises(OSError, match="not now"):
            write("second")
    assert names(path) == ["first"]
    path.rename(old)  # as a kill between the two renames leaves it
    with pytest.raises(OSError, match="disk full"):
        fail_half_way(path)
    assert names(path) == ["first"]
    path.rename(old)
    write("second")
    old.mkdir()  # as a kill before it is removed leaves it
    write("third")
    assert (names(path), names(tmp_path)) == (["third"], ["model"])


def fail_as(text: str) -> Callable[[Path], None]:
    def fail(path: Path) -> None:
        with replacing(path):
            raise SafetensorError(text)

    return fail


def fail_as_torch(path: Path) -> None:
    with replacing(path):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("unexpected pos 8 vs 4")


def test_a_full_disk_is_told_as_such_by_libraries_too(tmp_path: Path) -> None:
    room = r"model cannot be written: No space left on device\. .*Make room"
    of_rust = "Error while serializing: I/O error: No space left on device (os error 28)"
    for fail in (fail_as(of_rust), fail_as_torch):
        with pytest.raises(DiskFull, match=room):
            fail(tmp_path / "model")
    with pytest.raises(SafetensorError, match="No such file"):  # of something that is read meanwhile
        fail_as("No such file or directory (os error 2)")(tmp_path / "model")


def test_others_may_read_what_a_library_has_made_for_this_user_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "usual", "")
    with replacing(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "model.safetensors").touch(mode=0o600)
        (partial / "script").touch(mode=0o750)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {"model.safetensors": (tmp_path / "usual").stat().st_mode & 0o777, "script": 0o750}
