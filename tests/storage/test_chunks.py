import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gpo.errors import ConfigError, DataError
from gpo.storage.chunks import Chunks
from gpo.storage.codec import from_json, to_json
from gpo.storage.files import locked, read_json, replacing, write_json, write_rows, write_text
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
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    Chunks(path, Row).append([Row(1)])
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*Delete this line"):
        Chunks(path, Row).read()


def fail_half_way(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")


def test_whole_files_are_replaced_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "results.json"
    write_json(path, {"accuracy": math.nan})
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


def test_a_directory_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    script = (
        f"from gpo.storage.files import locked\nfrom pathlib import Path\nwith locked(Path({str(tmp_path)!r})): pass"
    )
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "Another process works in" in other.stderr
    with locked(tmp_path):
        pass


def test_unstorable_values_are_refused() -> None:
    with pytest.raises(TypeError, match="A set cannot be stored"):
        to_json({"a": {1}})


def test_the_lock_error_is_a_config_error(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError), locked(tmp_path):
        pass
