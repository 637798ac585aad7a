"""Agreement worked out by hand."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gpo.annotate.agree import figure, main, show
from gpo.annotate.agreement import Study, agreement, alpha, attentive, study
from gpo.annotate.items import load_items
from gpo.annotate.marks import Mark, Marks
from gpo.annotate.reading import read_marks, read_mistakes
from gpo.errors import DataError
from gpo.experiment.run import Run
from gpo.report.plots import save
from gpo.storage.directory import RunDirectory
from gpo.types import Completion, Score, Start, StepScores, Trajectory
from toy import toy_config
from written_run import Written, write_run


def scores(item: str, advantages: tuple[float, ...], critical: int | None) -> StepScores:
    empty = (math.nan,) * (len(advantages) + 1)
    return StepScores(item, empty, (0,) * len(empty), empty, empty, advantages, critical, critical, 0)


def marks(item: str, *steps: int | None) -> list[Mark]:
    return [Mark(item, f"p{i}", "none" if step is None else "step", step) for i, step in enumerate(steps)]


def test_the_share_of_people_who_chose_the_critical_step() -> None:
    found = agreement(
        [*marks("a", 2, 2, 0, None), *marks("b", 1, 1), Mark("b", "q", "skip", None), *marks("unknown", 0)],
        "gpo",
        "monte_carlo",
        [scores("a", (0.1, -0.4, 0.5, 0.0), 2), scores("b", (0.1, 0.2), 1), scores("unmarked", (1.0,), 0)],
    )
    a, b = found.items
    assert (a.people, a.share.estimate, a.top_two, a.favourite, a.chance) == (4, 0.5, 0.5, 2, 0.25)
    assert (b.people, b.share.estimate, b.top_two, b.favourite, b.chance) == (2, 1.0, 1.0, 1, 0.5)
    assert (found.share.estimate, found.top_two.estimate, found.chance) == (0.75, 0.75, 0.375)
    assert a.share.lower == pytest.approx(0.15, abs=0.01)  # Wilson, 2 of 4


def test_where_the_search_found_nothing_people_agree_by_saying_that_none_stands_out() -> None:
    [item] = agreement(marks("a", None, 1, None), "gpo", "x", [scores("a", (0.0, 0.0), None)]).items
    assert item.share.estimate == pytest.approx(2 / 3)
    assert item.favourite is None


def test_a_step_that_was_not_estimated_is_not_among_the_top_two() -> None:
    [item] = agreement(marks("a", 0, 1, 2), "gpo", "x", [scores("a", (math.nan, 0.1, -0.3, 0.2), 3)]).items
    assert item.top_two == pytest.approx(1 / 3)


def test_krippendorffs_alpha_of_a_worked_example() -> None:
    # Two annotators, four items: they agree on three. D_o = 2/8; values 0 x3, 1 x5: D_e = 2*3*5/(8*7).
    rows = [*marks("a", 0, 0), *marks("b", 1, 1), *marks("c", 1, 1), *marks("d", 0, 1)]
    assert alpha(rows) == pytest.approx(1 - (2 / 8) / (30 / 56))
    assert alpha([*marks("a", 0, 0), *marks("b", None, None)]) == 1.0


def test_alpha_of_the_published_example_with_missing_marks() -> None:
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: nominal alpha .743.
    rows = {"A": "123321412...", "B": "1233224125.3", "C": ".3332342251.", "D": "12332441251."}
    given = [
        Mark(f"unit {unit}", observer, "skip" if value == "." else "step", None if value == "." else int(value))
        for observer, values in rows.items()
        for unit, value in enumerate(values)
    ]
    assert alpha(given) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_not_defined_without_two_marks_on_an_item_or_with_one_value() -> None:
    assert math.isnan(alpha([*marks("a", 0), *marks("b", 1)]))
    assert math.isnan(alpha(marks("a", 0, 0)))


def test_who_fails_most_attention_checks_is_left_out() -> None:
    rows = [Mark("check:1:a", "p0", "step", 1), Mark("check:1:a", "p1", "step", 0), *marks("a", 1, 0)]
    kept, failed = attentive(rows, {"check:1:a": 1})
    assert failed == ("p1",)
    assert kept == marks("a", 1, 0)[:1]


def test_a_mark_beyond_the_last_step_is_an_error() -> None:
    with pytest.raises(DataError, match="step 2, expected 0 to 1"):
        agreement(marks("a", 2), "gpo", "x", [scores("a", (0.0, 1.0), 1)])


def test_marks_of_others_are_read_from_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "marks.jsonl"
    file.write_text('{"item": "a", "annotator": "Ann", "step": 3}\n\n{"item": "a", "annotator": "Bob", "step": null}\n')
    assert read_marks(file) == [Mark("a", "Ann", "step", 3), Mark("a", "Bob", "none", None)]
    file.write_text('{"item": "a", "annotator": "Ann", "step": "3"}\n')
    with pytest.raises(DataError, match=r"marks.jsonl:1: .*Expected"):
        read_marks(file)


def test_only_a_line_feed_ends_an_annotation_and_blank_lines_count(tmp_path: Path) -> None:
    file, odd = tmp_path / "marks.jsonl", "a\u2028b\u2029c\x85d"
    file.write_text(f'\n{{"item": "{odd}", "annotator": "{odd}", "step": 3}}\n\x0c[\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"marks\.jsonl:3: "):
        read_marks(file)
    file.write_text(f'\n{{"item": "{odd}", "annotator": "{odd}", "step": 3}}\n', encoding="utf-8")
    assert read_marks(file) == [Mark(odd, odd, "step", 3)]


def test_marked_mistakes_find_their_traces_by_text(tmp_path: Path) -> None:
    def trajectory(name: str, text: str) -> Trajectory:
        return Trajectory(name, Start("p", (1,)), Completion((1,), text, "stop"), Score(0.0, "wrong"), (1,))

    file = tmp_path / "dyck.jsonl"
    rows = [{"steps": ["one", "two"], "mistake_index": 1}, {"steps": ["three"], "mistake_index": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_mistakes(file, [trajectory("t", "one\ntwo\n"), trajectory("u", "three")]) == [
        Mark("t", "dyck", "step", 1),
        Mark("u", "dyck", "none", None),
    ]
    with pytest.raises(DataError, match="No trajectory"):
        read_mistakes(file, [trajectory("t", "other")])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = Run(tmp_path_factory.mktemp("agreement") / "run", toy_config())
    run.locate("gpo")
    return run.files


def test_names_that_are_long_are_whole_in_80_columns(tmp_path: Path) -> None:
    arm = "thorough_search_of_everything"
    row = Written("q", ["a", "b", "c"], [0.5, 0.5, 0.75, 0.0], 2)
    files = RunDirectory(write_run(tmp_path, [row], searches=[("gpo", 1), (arm, 1)]))
    console = Console(width=80, file=StringIO())
    show(console, study(files, marks("p0:0", 0, 1, 2), {}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("3 marks of 3 annotators; ")
    assert max(map(len, text.splitlines())) <= 80
    assert arm in "".join(line.split("┃")[0].split("│")[0].strip() for line in text.splitlines())


def test_the_command_compares_every_search_and_writes_it_down(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    located = [score for score in run.scores("gpo").read() if score.critical_step is not None]
    store = Marks(run.path / "annotations.sqlite")
    store.keep_checks({"check:0:x": 0})
    for person in ("Ann", "Bob"):
        number = store.annotator(store.join(person))
        assert number is not None
        store.add(number, "check:0:x", "step", 0 if person == "Ann" else 1, "")
        for score in located:
            store.add(number, score.trajectory_id, "step", score.critical_step, "")
    assert main([str(run.path), "--export", str(run.path / "marks.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "Left out, attention checks failed: 2:Bob" in shown
    assert max(map(len, shown.splitlines()[:-2])) <= 80
    written = json.loads((run.path / "agreement.json").read_text())
    assert written["annotators"] == 1
    assert written["arms"][0]["arm"] == "gpo"
    assert written["arms"][0]["share"]["estimate"] == 1.0
    assert (run.plots / "agreement.png").read_bytes().startswith(b"\x89PNG")
    # What is exported is the same study: without checks, skips and those who were left out.
    exported = run.path / "marks.jsonl"
    assert len(read_marks(exported)) == len(located)
    assert main([str(run.path), "--marks", str(exported)]) == 0
    again = json.loads((run.path / "agreement.json").read_text())
    assert {**again, "inattentive": ["2:Bob"]} == written
    with exported.open("a") as file:  # another verdict of Ann on the same solution takes the place of her first
        file.write(json.dumps({"item": located[0].trajectory_id, "annotator": "1:Ann", "step": None}) + "\n")
    assert len(read_marks(exported)) == len(located)


def test_a_run_without_marks_says_what_to_do(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gpo annotate"):
        study(replace(run), [])


def test_why_there_is_nothing_to_compare_is_said(tmp_path: Path) -> None:
    files = RunDirectory(write_run(tmp_path, [Written("q", ["a", "b"], [0.5, 1.0, 0.0], 0)]))
    files.scores("plain").append([replace(files.scores("gpo").read()[0], critical_step=None)])
    only = [Mark("check:1:a", "1:Ann", "step", 0), *marks("p0:0", 1)]
    with pytest.raises(DataError, match="no marks but those of '1:Ann', left out for failing more than half"):
        study(files, [replace(mark, annotator="1:Ann") for mark in only], {"check:1:a": 1})
    others = [mark for name in "abcd" for mark in marks(name, 1)]
    with pytest.raises(DataError, match=r"no arm searched: 'a', 'b', 'c' and 1 more\. Searched were 'p0:0'\."):
        study(files, others)
    files.scores("gpo").path.unlink()
    with pytest.raises(DataError, match="in which no search found a critical step"):
        study(files, marks("p0:0", 1))


def test_ids_are_shown_to_where_they_differ_and_names_as_they_are(tmp_path: Path) -> None:
    names = [f"rollout/{chunk}:boolean_expressions/{chunk}17:{chunk}" for chunk in (0, 64)]
    evil = "[red]x[/red]\x1b]0;owned\x07"
    rows = [mark for name in (*names, evil) for mark in marks(name, 1, 1)]
    found = agreement(rows, evil, evil, [scores(name, (0.0, 1.0), 1) for name in (*names, evil)])
    text = StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    show(console, Study(1, 6, (evil,), 1.0, (found,)))
    shown = "".join(line[:30].split("│")[0].strip() for line in text.getvalue().splitlines())
    assert all(name in shown for name in names)
    assert "\x07" not in text.getvalue()
    assert "\x1b]" not in text.getvalue()
    assert "Left out, attention checks failed: [red]x[/red]⟨U+001B⟩]0;owned⟨U+0007⟩" in text.getvalue()
    save(
        figure(Study(1, 6, (), 1.0, (replace(found, items=(replace(found.items[0], item="$\\frac{$"),)),))),
        tmp_path / "x.png",
    )


def test_a_search_of_a_trajectory_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = RunDirectory(write_run(tmp_path, [Written("q", ["a", "b"], [0.5, 1.0, 0.0], 0)]))
    files.scores("gpo").append([replace(files.scores("gpo").read()[0], trajectory_id="gone")])
    with pytest.raises(DataError, match=r"scores\.jsonl:2: trajectory 'gone' is not in"):
        load_items(files, 5)
    files = RunDirectory(write_run(tmp_path / "b", [Written("q", ["a", "b"], [0.5, 1.0, 0.0], 0)]))
    files.write_problems({"train": []})
    with pytest.raises(DataError, match=r"problem 'p0' of rollouts\.jsonl is not in problems\.jsonl"):
        load_items(files, 5)


def test_marks_that_are_damaged_or_lead_elsewhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "annotations.sqlite").write_text("no database, but long enough to be read as one" * 20)
    with pytest.raises(DataError, match=r"annotations\.sqlite cannot be used: file is not a database"):
        Marks(tmp_path / "annotations.sqlite")
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "elsewhere.sqlite")
    with pytest.raises(DataError, match=r"link\.sqlite is a symbolic link"):
        Marks(tmp_path / "link.sqlite")
    assert not (tmp_path / "elsewhere.sqlite").exists()
