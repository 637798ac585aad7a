import errno
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gpo.errors import DataError
from gpo.storage.chunks import Chunks
from gpo.storage.codec import from_json, to_json
from gpo.types import Completion, Group, Score, Start, StepScores, Trajectory

START = Start("p1", (1, 2), (3,), "parent")
TRAJECTORY = Trajectory("t", START, Completion((4, 5), "né\n", "stop", (-0.5, -1.0)), Score(1.0, "right", "7"), (1, 3))
GROUP = Group(START, (TRAJECTORY, replace(TRAJECTORY, id="u", score=Score(None, "failed"))))
SCORES = StepScores(
    "t", (0.5, math.nan, 1.0), (4, 0, 1), (0.1, math.nan, 1.0), (0.9, math.nan, 1.0), (math.nan,) * 2, None, 0, 12,
    (GROUP,),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    n: int


def test_a_row_comes_back_as_it_was() -> None:
    assert from_json(Group, json.loads(json.dumps(to_json(GROUP)))) == GROUP


def test_nan_is_null_and_comes_back_as_nan() -> None:
    data = to_json(SCORES)
    assert data["values"] == [0.5, None, 1.0]
    values = from_json(StepScores, data).values
    assert values[0] == 0.5
    assert math.isnan(values[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_id": 7}, "Start.problem_id is 7, expected str"),
        ({"prefix_ids": "abc"}, 'Start.prefix_ids is "abc", expected list'),
        ({"colour": 1}, "Start has no field colour"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_json(Start, to_json(START) | change)


def test_what_is_the_same_in_many_rows_is_one_object(tmp_path: Path) -> None:
    """A search keeps the start of each of its rollouts, and token ids by the million."""
    written = Chunks(tmp_path / "rows.jsonl", StepScores)
    long = replace(START, prompt_ids=(30_000, 70_000))
    other = replace(TRAJECTORY, start=long, completion=Completion((30_000, 1 << 30), "", "stop"))
    written.append([replace(SCORES, rollouts=(GROUP, Group(long, (other, other, TRAJECTORY))))])
    for rows in (written, Chunks(written.path, StepScores)):
        [same, mixed] = rows.read()[0].rollouts
        assert (same, mixed.trajectories) == (GROUP, (other, other, TRAJECTORY))
        assert all(trajectory.start is same.start for trajectory in same.trajectories)
        assert [trajectory.start is mixed.start for trajectory in mixed.trajectories] == [True, True, False]
    again = from_json(Start, to_json(long) | {"prefix_ids": [70_000]})
    assert again.prefix_ids[0] is mixed.start.prompt_ids[1]


def test_a_wrong_start_of_a_group_or_of_a_trajectory_is_named() -> None:
    data = to_json(GROUP)
    with pytest.raises(DataError, match=r"Group\.start\.problem_id is 7"):
        from_json(Group, data | {"start": data["start"] | {"problem_id": 7}})
    wrong = data["trajectories"][0] | {"start": data["start"] | {"prompt_ids": [-1]}}
    with pytest.raises(DataError, match=r"Group\.trajectories\[1\]\.start\.prompt_ids is \[-1\]"):
        from_json(Group, data | {"trajectories": [data["trajectories"][0], wrong]})
    for trajectories in (7, [7]):
        with pytest.raises(DataError, match=r"Group\.trajectories.* is 7, expected"):
            from_json(Group, data | {"trajectories": trajectories})


def test_long_lists_of_one_kind_are_stored_as_their_entries_would_be() -> None:
    for values in ([1, 2], ["a"], [0.5, math.inf, math.nan], [1, 0.5, None, True], [[math.nan], (1,)], [START], []):
        assert to_json(values) == [to_json(value) for value in values]
    floats = from_json(
        Completion, {"token_ids": [1], "text": "", "finish_reason": "stop", "logprobs": [-1, None, -0.5]}
    )
    assert floats.logprobs is not None
    assert [type(number) for number in floats.logprobs] == [float] * 3
    assert math.isnan(floats.logprobs[1])
    for wrong in (True, "x", []):
        with pytest.raises(DataError, match=r"logprobs\[1\]"):
            from_json(Completion, {"token_ids": [], "text": "", "finish_reason": "stop", "logprobs": [0.5, wrong]})


def test_a_missing_field_and_an_unknown_word_are_named() -> None:
    with pytest.raises(DataError, match="Start lacks prompt_ids"):
        from_json(Start, {"problem_id": "p"})
    with pytest.raises(DataError, match=r'Score\.verdict is "fine", expected one of right, wrong'):
        from_json(Score, {"value": 1.0, "verdict": "fine"})


def test_chunks_are_read_in_order(tmp_path: Path) -> None:
    rows = Chunks(tmp_path / "new" / "rows.jsonl", Row)
    assert rows.read() == []
    rows.append([Row(1), Row(2)])
    rows.append([Row(3)])
    assert list(Chunks(rows.path, Row).chunks()) == [[Row(1), Row(2)], [Row(3)]]
    assert rows.path.read_text().splitlines()[0] == '{"chunk": 0, "left": 1, "n": 1}'


def test_an_empty_store_is_not_falsy(tmp_path: Path) -> None:
    assert Chunks(tmp_path / "rows.jsonl", Row)


def test_a_kill_at_any_byte_keeps_the_finished_chunks_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    whole = Chunks(path, Row)
    chunks = [[Row(1), Row(2)], [Row(3)], [Row(4), Row(5)]]
    ends = [0]
    for chunk in chunks:
        whole.append(chunk)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        finished = sum(end <= length for end in ends) - 1
        assert list(Chunks(path, Row).chunks()) == chunks[:finished]
        resumed = Chunks(path, Row)
        for chunk in chunks[finished:]:
            resumed.append(chunk)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[1]\n",
        b"\xff\n",
        b'{"n": 2}\n',
        b'{"chunk": 1, "left": 0, "n": "x"}\n',
        b'{"chunk": 5, "left": 0, "n": 2}\n',
        b'{"chunk": 1, "left": -1, "n": 2}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    Chunks(path, Row).append([Row(1)])
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*Delete this line"):
        Chunks(path, Row).read()


def test_unstorable_values_are_refused() -> None:
    with pytest.raises(TypeError, match="A set cannot be stored"):
        to_json({"a": {1}})


@pytest.mark.parametrize("lost", [1, 2])
def test_a_row_that_is_lost_inside_a_chunk_is_missed(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "rows.jsonl"
    Chunks(path, Row).append([Row(n) for n in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
    with pytest.raises(DataError, match=rf"rows\.jsonl:{lost + 1}: left is .*a row is missing.*Delete this line"):
        Chunks(path, Row).read()


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Chunks(path, Row).append([Row(n) for n in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[1:]]))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: left is 1, expected 0"):
        Chunks(path, Row).read()


def count_parses(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file is parsed from now on."""
    counts: Counter[Path] = Counter()
    parse = Chunks._parse

    def counted(chunks: Chunks[Row]) -> Iterator[tuple[list[Row], int]]:
        counts[chunks.path] += 1
        return parse(chunks)

    monkeypatch.setattr(Chunks, "_parse", counted)
    return counts


def test_a_file_is_parsed_once_however_often_it_is_read_and_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_parses(monkeypatch)
    rows = Chunks(tmp_path / "rows.jsonl", Row)
    for n in range(3):
        rows.append([Row(n)])
        assert rows.read() == [Row(k) for k in range(n + 1)]
    assert counts[rows.path] == 1


def test_what_a_caller_does_with_the_rows_that_it_read_is_its_own(tmp_path: Path) -> None:
    rows = Chunks(tmp_path / "rows.jsonl", Row)
    rows.append([Row(1)])
    found = rows.read()
    found.append(Row(2))
    next(iter(rows.chunks())).clear()
    assert rows.read() == [Row(1)]


def test_a_file_that_somebody_else_changes_is_parsed_again(tmp_path: Path) -> None:
    rows, other = (Chunks(tmp_path / "rows.jsonl", Row) for _ in range(2))
    assert rows.read() == []
    other.append([Row(1)])
    assert rows.read() == [Row(1)]
    rows.append([Row(2)])
    other.append([Row(3)])
    assert rows.read() == other.read() == Chunks(rows.path, Row).read() == [Row(1), Row(2), Row(3)]


def test_what_was_appended_is_as_another_process_reads_it(tmp_path: Path) -> None:
    rows = Chunks(tmp_path / "rows.jsonl", StepScores)
    rows.append([replace(SCORES, values=(0.5, math.inf, 1.0))])
    assert math.isnan(rows.read()[0].values[1])


SEPARATORS = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\rh"


def test_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    group = replace(GROUP, trajectories=(replace(TRAJECTORY, completion=Completion((4,), SEPARATORS, "stop")),))
    rows = Chunks(tmp_path / "rows.jsonl", Group)
    rows.append([group, group])
    assert Chunks(rows.path, Group).read() == [group, group]


def test_half_of_a_surrogate_pair_is_written_and_read_back(tmp_path: Path) -> None:
    group = replace(GROUP, trajectories=(replace(TRAJECTORY, completion=Completion((4,), "x\ud83d é", "stop")),))
    rows = Chunks(tmp_path / "rows.jsonl", Group)
    rows.append([group])
    assert Chunks(rows.path, Group).read() == [group]
    assert "x\\ud83d é" in rows.path.read_text(encoding="utf-8")


def test_nothing_is_appended_through_a_symbolic_link(tmp_path: Path) -> None:
    target = tmp_path / "letters.txt"
    target.write_text("dear")
    for content in ("dear", ""):
        target.write_text(content)
        link = tmp_path / "rows.jsonl"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(DataError, match=r"rows\.jsonl(:1: not a row| is a symbolic link)"):
            Chunks(link, Row).append([Row(1)])
        assert target.read_text() == content


def test_a_chunk_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Chunks(tmp_path / "rows.jsonl", Row)
    rows.append([Row(1)])
    kept, write = rows.path.read_bytes(), os.write
    room = iter([10])

    def nearly_full(descriptor: int, content: memoryview) -> int:
        for size in room:
            return write(descriptor, content[:size])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", nearly_full)
        with pytest.raises(DataError, match=r"rows\.jsonl cannot be written: No space left.*Make room"):
            rows.append([Row(2)])
    assert rows.path.read_bytes() == kept
    rows.append([Row(2)])
    assert Chunks(rows.path, Row).read() == rows.read() == [Row(1), Row(2)]


def test_a_summary_outlives_the_rows_and_not_a_change_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    parse = Chunks[Row]._parse
    monkeypatch.setattr(Chunks, "_parse", lambda self: (parsed.append(self), parse(self))[1])
    Chunks(tmp_path / "rows.jsonl", Row).append([Row(1), Row(2)])
    rows = Chunks(tmp_path / "rows.jsonl", Row)
    parsed.clear()
    assert [rows.summary(len) for _ in range(3)] == [2] * 3
    assert (rows._chunks, len(parsed)) == ([], 1)  # what nobody has read is not kept
    assert rows.read() == [Row(1), Row(2)]
    assert rows.summary(repr) == "[Row(n=1), Row(n=2)]"
    assert len(rows._chunks) == 1
    assert rows.append([Row(3)]) == [Row(3)]
    assert rows.summary(len) == 3
    rows.forget()
    parsed.clear()
    assert rows.summary(len) == 3
    assert not parsed
    Chunks(rows.path, Row).append([Row(4)])
    assert rows.summary(len) == 4
    rows.append([Row(5)])
    assert Chunks(rows.path, Row).read() == rows.read() == [Row(n) for n in range(1, 6)]
