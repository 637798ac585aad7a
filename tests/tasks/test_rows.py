"""Where rows come from, on small files written by hand, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpo.errors import DataError
from gpo.storage import hub
from gpo.tasks.data import Hub, load_rows, read_rows, worked_examples


@pytest.fixture(autouse=True)
def hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda url: True)


ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "Größe?", "answer": "3"}]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("question,answer\n1 + 1?,2\nGröße?,3\n", encoding="utf-8")
    else:
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    assert [dict(row.fields) for row in read_rows(write(tmp_path, kind))] == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"question": "1"}\n{"question": \n', r"a\.jsonl, line 2: not a JSON object"),
        ("a.jsonl", "[1, 2]\n", r"line 1: a row must be an object with named columns, got '\[1, 2\]'"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: not a JSON object"),
        ("a.json", "{}", "expected a list of rows, or an object whose `examples` is one"),
        ("a.json", "{", "not JSON"),
        ("a.csv", "a,b\n1,2\n1\n", "line 3: expected 2 columns as in the first line"),
        ("a.parquet", "no", "not a parquet file"),
        ("a.jsonl", "", "has no rows"),
        ("a.txt", "x", r"a data file ends with .jsonl, .json, .csv, .parquet, got '.txt'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match="Cannot read"):
        read_rows(tmp_path / "a.jsonl")


def test_a_column_must_be_there_and_hold_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": ["a"], "answer": 2, "empty": " "}\n')
    row = read_rows(tmp_path / "a.jsonl")[0]
    assert row.text("answer") == "2"
    with pytest.raises(
        DataError, match=r"line 1: no value in column 'reply'. Columns with this row: 'question', 'answer'"
    ):
        row.text("reply")
    for column in ("question", "empty"):
        with pytest.raises(DataError, match=f"column '{column}' must be text or a number"):
            row.text(column)
    with pytest.raises(DataError, match="column 'answer' must be a list"):
        row.texts("answer")


def test_a_path_comes_first_then_the_environment_then_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(repo: str, config: str | None, *, split: str, revision: str) -> list[dict[str, str]]:
        asked.append((repo, config, split, revision))
        return ROWS[:1]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = Hub("some/where", "0123abc", "train", "main")
    monkeypatch.delenv("GPO_DATA", raising=False)
    assert len(load_rows(["rows.jsonl"], hub)) == 1
    assert asked == [("some/where", "main", "train", "0123abc")]
    write(tmp_path, "jsonl")
    monkeypatch.setenv("GPO_DATA", str(tmp_path))
    assert len(load_rows(["rows.jsonl"], hub)) == 2
    assert len(load_rows(["other.jsonl"], hub)) == 1
    csv = write(tmp_path, "csv")
    assert len(load_rows(["rows.jsonl"], hub, str(csv))) == 2
    assert len(asked) == 2


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.delenv("GPO_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"Cannot load a/b \(split 'test'\) from the hub: ConnectionError: no route;"
    ) as e:
        load_rows(["x.jsonl"], Hub("a/b", "0", "test"))
    assert "Set GPO_DATA to a folder with x.jsonl" in str(e.value)


def test_worked_examples_are_read_once_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text('{"question": "1?", "response": "One.\\n#### 1"}\n')
    assert worked_examples(str(path)) == (("1?", "One.\n#### 1"),)
    assert worked_examples(None) == ()


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\f", "\v", "\x1c", "\r"])
def test_a_line_of_a_file_ends_at_a_newline_only(tmp_path: Path, mark: str) -> None:
    rows = [{"question": f"1{mark}+ 1?", "answer": "2"}, {"question": "3?", "answer": "3"}]
    for end in ("\n", "\r\n"):
        text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / "a.jsonl").write_bytes(text.encode())
        assert [dict(row.fields) for row in read_rows(tmp_path / "a.jsonl")] == rows


def test_half_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "ok \\ud83d"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 1: column 'question' has half of a character, '\\ud83d' at 3"):
        read_rows(tmp_path / "a.jsonl")[0].text("question")


@pytest.mark.parametrize("answer", ["true", "NaN", "1e400", "-Infinity", '"a\\u0000"'])
def test_what_is_no_text_or_number_is_no_answer(tmp_path: Path, answer: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"question": "q", "answer": {answer}}}\n')
    with pytest.raises(DataError, match="line 1: column 'answer' must be text or a number"):
        read_rows(tmp_path / "a.jsonl")[0].text("answer")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_mark_of_byte_order_is_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    text = {"jsonl": '{"question": "q"}', "json": '[{"question": "q"}]', "csv": "question\nq\n"}[name.partition(".")[2]]
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_rows(tmp_path / name)[0].text("question") == "q"


def test_a_number_of_too_many_digits_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'[{{"answer": {"9" * 5000}}}]')
    with pytest.raises(DataError, match=r"a\.json: not JSON"):
        read_rows(tmp_path / "a.json")
