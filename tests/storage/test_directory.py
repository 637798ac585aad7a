from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.storage.chunks import Chunks
from gpo.storage.directory import RunDirectory, answers_of, model_name
from gpo.storage.files import write_json
from gpo.storage.rounds import RoundState
from gpo.types import Completion, Group, Problem, Score, Start, StepScores, Trajectory
from toy import toy_config

SEPARATORS = "a\u2028b\u2029c\x85d\x0ce"
PROBLEMS = [Problem(name, SEPARATORS, SEPARATORS, {"subtask": SEPARATORS}) for name in ("p", "q", "r")]


def group(problem: str, samples: int = 2) -> Group:
    start = Start(problem, (1,))
    scores = Score(1.0, "right", SEPARATORS)
    each = [Trajectory(f"{problem}{i}", start, Completion((5,), "x", "stop"), scores, (1,)) for i in range(samples)]
    return Group(start, tuple(each))


def test_a_directory_hands_out_one_object_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for owner, name in ((Chunks, "_parse"), (Problem, "__init__")):
        before = getattr(owner, name)

        def counted(self, *arguments, _before=before, _name=name, **named):
            counts[_name] += 1
            return _before(self, *arguments, **named)

        monkeypatch.setattr(owner, name, counted)
    files = RunDirectory(tmp_path)
    files.write_problems({"train": PROBLEMS, "test": PROBLEMS[:1]})
    files.rollouts.append([group("p")])
    files.fresh("gpo", 2).append([group("q")])
    for _ in range(3):
        assert [len(files.problems(split) or ()) for split in ("train", "test", "dev")] == [3, 1, 0]
        assert RoundState.of(files, "gpo").groups() == [group("p")]
        assert RoundState.of(files, "gpo", 2).groups() == [group("q")]
    assert counts == {"_parse": 8, "__init__": 4}  # rollouts, scores, resets and more of two rounds; four problems
    assert files == RunDirectory(tmp_path)
    (files.problems("train") or []).clear()
    assert files.problems("train") == PROBLEMS


def test_problems_may_hold_any_separator_of_lines(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_problems({"train": PROBLEMS})
    assert RunDirectory(tmp_path).problems("train") == PROBLEMS
    with (tmp_path / "problems.jsonl").open("ab") as file:
        file.write(b"[" * 100_000)
    with pytest.raises(DataError, match=r"problems\.jsonl:4: not a problem"):
        RunDirectory(tmp_path).problems("train")


def test_the_answers_to_the_problems_are_told_by_their_ids(tmp_path: Path) -> None:
    file = RunDirectory(tmp_path).evaluation("base")
    assert answers_of(file, PROBLEMS, 2) == []
    file.append([group("p"), group("q", samples=0)])
    assert answers_of(file, PROBLEMS, 2) == file.read()
    with pytest.raises(DataError, match=r"base\.jsonl:1: 2 samples of 'p', but config\.json says 3"):
        answers_of(file, PROBLEMS, 3)
    with pytest.raises(DataError, match=r"base\.jsonl:2: problem 'q' where no other of problems\.jsonl was expected"):
        answers_of(file, PROBLEMS[:1], 2)
    for twice in ("q", "p", "unknown"):
        other = RunDirectory(tmp_path).evaluation(twice)
        other.append([group("p"), group("q"), group(twice)])
        with pytest.raises(DataError, match=rf"{twice}\.jsonl:3: problem '{twice}' where 'r' .*Delete this line"):
            answers_of(other, PROBLEMS, 2)


def test_a_search_of_an_unknown_trajectory_is_named(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    score = StepScores("p1", (0.5, 1.0), (1, 1), (0, 1), (1, 1), (0.5,), 0, 0, 2)
    files.rollouts.append([group("p")])
    files.scores("gpo").append([score])
    assert files.searched("gpo") == [(group("p").trajectories[1], score)]
    files.scores("gpo").append([replace(score, trajectory_id="other")])
    with pytest.raises(DataError, match=r"scores\.jsonl:2: trajectory 'other' is not in .*rollouts\.jsonl"):
        files.searched("gpo")
    files.scores("long").append([replace(score, values=(0.5, 0.5, 1.0), advantages=(0.0, 0.5))])
    with pytest.raises(DataError, match=r"scores\.jsonl:1: of trajectory 'p1': 3 values for 1 steps; expected 2"):
        files.searched("long")


def test_the_model_is_the_engines_own_where_it_has_one(tmp_path: Path) -> None:
    assert model_name({"model": "reasoner"}) == "reasoner"
    assert model_name({"model": "reasoner", "engine": "hf"}) == "reasoner"
    assert model_name({"model": "reasoner", "engine": {"name": "hf", "model": None}}) == "reasoner"
    assert model_name({"model": "reasoner", "engine": {"name": "hf", "model": "X"}}) == "X"
    write_json(tmp_path / "config.json", {"gpo": "1", "model": "m", "arms": {}})
    assert model_name(RunDirectory(tmp_path).config()) == "m"


def test_what_is_no_run_is_told_from_one(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    for content, error, message in (
        ({"models": {}}, ConfigError, "it holds an evaluation, whose tables are in table.md"),
        ({"task": "x"}, ConfigError, "it holds a config.json without arms"),
        ([], DataError, "config.json is no JSON object"),
    ):
        write_json(tmp_path / "config.json", content)
        with pytest.raises(error, match=message):
            files.config()
        with pytest.raises(error, match=message):
            files.arms()


@pytest.mark.usefixtures("unplotted")
def test_a_run_of_three_arms_parses_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[Path] = Counter()
    parse = Chunks._parse

    def counted(chunks):
        counts[chunks.path.relative_to(tmp_path)] += 1
        return parse(chunks)

    monkeypatch.setattr(Chunks, "_parse", counted)
    Run(tmp_path, toy_config()).all()
    assert {Path("rollouts.jsonl"), Path("arms/gpo/scores.jsonl"), Path("evaluation/gpo.jsonl")} <= counts.keys()
    assert set(counts.values()) == {1}
