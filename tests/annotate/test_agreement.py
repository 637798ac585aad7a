"""Agreement worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from gpo.annotate.agree import main
from gpo.annotate.agreement import agreement, alpha, attentive, study
from gpo.annotate.marks import Mark, Marks
from gpo.annotate.reading import read_marks, read_mistakes
from gpo.errors import DataError
from gpo.experiment.run import Run
from gpo.storage.directory import RunDirectory
from gpo.types import Completion, Score, Start, StepScores, Trajectory
from toy import toy_config


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
    assert len(read_marks(run.path / "marks.jsonl")) == len(store.all())


def test_a_run_without_marks_says_what_to_do(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gpo annotate"):
        study(replace(run), [])
