"""`gpo locate` on one trajectory, as it stands on a terminal of 80 columns."""

import io
import json
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console
from scripted import ASKED

from gpo.cli import main
from gpo.errors import ConfigError, DataError
from gpo.report.closeup import close_up, problem_of
from gpo.report.terminal import BAR, Row, bar, rows_between, table
from gpo.report.watch import write
from gpo.rollout.prompting import question_start
from gpo.rollout.segmenters import LowProbability
from gpo.storage.directory import RunDirectory
from gpo.toy import ChainEngine, ChainTask
from gpo.types import Problem
from written_run import NAN, Written, write_run

TOY = {"task": "toy:ToyTask", "engine": "chain", "engine.padding": "2", "method": "toy:ToyMethod"}
CHAIN = ("--task", "toy:ToyTask", "--engine", "chain", "--method", "toy:ToyMethod")
REAL = {"task": "reasoner", "model": "reasoner"}


def seen(directory: Path | None, **options: str) -> str:
    console = Console(width=80, file=io.StringIO())
    close_up(directory, options, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return str(text)


def test_a_value_is_a_mark_between_the_ends_of_its_interval() -> None:
    assert bar(0.5, 0.0, 1.0).plain == "├" + "─" * 9 + "●" + "─" * 9 + "┤"
    assert bar(0.25, 0.1, 0.5).plain == "  ├──●────┤".ljust(BAR)
    assert bar(1.0, 1.0, 1.0).plain == "●".rjust(BAR)
    assert bar(0.0, NAN, NAN).plain == "●".ljust(BAR)
    assert bar(NAN, NAN, NAN).plain == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_terminal_without_our_signs_has_others(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, [Written("Wie viele 漢字?", ["a", "b"], [0.5, 0.75, 0.0], 1)])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert main(["locate", str(run), "--show", "p0:0"]) == 0
    sys.stdout.flush()
    text = sys.stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert r"Wie viele \u6f22\u5b57?" in text
    [row] = [line for line in text.splitlines() if "-0.75" in line]
    assert row.startswith("|* |  2 |b ")
    assert "|v" in row
    assert "o-|" in row
    assert "Answer: 42, x wrong" in text


def test_rows_of_values_have_their_differences() -> None:
    rows = rows_between(["a", "b"], [(0.5, 0.4, 0.6), (0.25, 0.1, 0.5), (1.0, 1.0, 1.0)], critical=1)
    assert [row.advantage for row in rows[1:]] == [-0.25, 0.75]
    assert [row.critical for row in rows] == [False, False, True]
    assert math.isnan(rows[0].advantage)


def test_what_does_not_fit_on_the_screen_is_counted() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(table([Row(f"step {k}") for k in range(9)], first=7))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "… 7 rows before" in text
    assert "step 6" not in text
    assert "step 8" in text


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    steps = ["first\x1b[2J\u202e", "[red]second[/red]", "x" * 1_000_000]
    row = Written("Why?", steps, [0.5, 0.25, 1.0, 0.0], critical=1, fresh={1: [("a", "right"), ("b", "wrong")]})
    return write_run(tmp_path, [row, Written("What?", ["a"], [0.5, 0.0], critical=0)])


def test_a_searched_trajectory_stands_in_the_terminal(searched: Path) -> None:
    text = seen(searched, show="p0")
    critical = next(line for line in text.splitlines() if "◆" in line)
    assert critical.split() == ["◆", "2", "[red]second[/red]", "▲", "+0.75", "1.00", "├─●"]
    assert "first⟨U+001B⟩[2J⟨U+202E⟩" in text
    assert "▼\u00a0−0.25" in text
    assert text.count("x") < 250
    assert "Answer: 42, ✗ wrong" in text
    assert "the search saw 0.25; 2 rollouts sampled afterwards: 0.50" in " ".join(text.split())


def test_a_trajectory_that_is_not_there_is_named_with_some_that_are(searched: Path) -> None:
    with pytest.raises(ConfigError, match=r"No searched trajectory has 'p7' in their id. Give one such as: p0:0, p1:0"):
        seen(searched, show="p7")
    with pytest.raises(ConfigError, match=r"2 searched trajectories have ':0' in their id"):
        seen(searched, show=":0")
    with pytest.raises(DataError, match="No arm of this run has searched"):
        seen(write_run(searched / "new", [Written("q", ["a"])]), show="p0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--show", "a"], "--show takes a run directory"),
        (["--watch"], "need a question"),
        (
            ["--watch", "--question", "q"],
            "needs a run, from whose rollouts a critic learns the values, and none is named",
        ),
        (["--question", " ", "--task", "chain"], "--question is empty"),
        (["--question", "q", *CHAIN, "--nonsense", "1"], "--nonsense"),
        (
            ["--question", "0", *CHAIN, "--answer", "Y", "--arm", "nobody"],
            "There is no arm 'nobody'. Arms: plain, random, gpo",
        ),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["locate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_question_of_the_command_line_is_sampled_and_searched() -> None:
    text = seen(None, question="0", answer="Y", **TOY)
    assert text.startswith("Task toy:ToyTask: the question is put as it is, without an instruction. Answers")
    assert "\n0\nRight answer: Y\n" in text
    assert text.count("●") >= 4
    assert "search of its steps " in " ".join(text.split())
    assert untimed(seen(None, question="0", answer="Y", **TOY)) == untimed(text)
    other = seen(None, question="0", answer="Y", **TOY, **{"estimator": "monte_carlo", "estimator.rollouts": "16"})
    assert untimed(other) != untimed(text)


def untimed(text: str) -> str:
    """Without the seconds of the last sentence."""
    begin, _, end = text.rpartition("Sampled ")
    return begin + " ".join(end.split()).partition(": ")[2]


def scripted(*answers: str, **options: str) -> str:
    """What is seen of a question asked of a model that does not ship with GPO."""
    ASKED.clear()
    engine = {"engine": "scripted:ScriptedEngine", "engine.answers": json.dumps(answers)}
    return seen(None, **{"question": "6 x 7?", "model": "some/model", **engine, **options})


def test_another_model_gets_an_instruction_and_the_terminal_says_so() -> None:
    text = " ".join(scripted("42", answer="42.0").split())
    assert "Task question: the question is followed by: Think step by step, one step on each line, and" in text
    assert "Answers are read as mathematics, or as words where the right one has neither digit nor sign." in text
    assert "Answer: 42, ✓ right" in text
    assert all(prompt.startswith("6 x 7?\n\nThink step by step") for prompt in ASKED)
    assert ASKED
    assert "Task question" in scripted("42", answer="42", model="reasoner", **{"engine.model": "some/model"})


def test_a_task_that_is_named_is_taken_and_shipped_models_keep_theirs() -> None:
    assert "Task gsm8k: " in scripted("42", answer="42", task="gsm8k")
    text = seen(None, question="True and not False is", answer="True")
    assert text.startswith("Task reasoner: the question is put as it is, without an instruction.")
    assert "So the answer is True" in text


def test_a_majority_of_samples_stands_in_for_an_answer() -> None:
    text = " ".join(scripted("42", "42", "7", "none").split())
    assert "No --answer is given. Taken as right: 42 (42: 8 of 16, 7: 4 of 16, no answer: 4)." in text
    assert "Taken as right: 42 (42: 4 of 16, no answer: 12)" in scripted("42", "none", "none", "none")
    assert "Taken as right: 1/2 (1/2: 16 of 16)" in scripted("0.5", "1/2", "\\frac{1}{2}")


@pytest.mark.parametrize(
    ("answers", "votes"),
    [
        (
            ["3"] * 2 + ["72"] + ["none"] * 9 + ["cut"] * 4,
            "3: 2 of 16, 72: 1 of 16, no answer: 9, cut off at 512 tokens: 4",
        ),
        (["3"] * 8 + ["72"] * 8, "3: 8 of 16, 72: 8 of 16"),
        (["3"] * 3 + ["none"] * 13, "3: 3 of 16, no answer: 13"),
        (["none"], "no answer: 16"),
        (
            [str(n) for n in range(16)],
            "0: 1 of 16, 1: 1 of 16, 2: 1 of 16, 3: 1 of 16, 4: 1 of 16, other answers: 11",
        ),
    ],
)
def test_a_majority_that_is_none_is_no_reference(answers: list[str], votes: str) -> None:
    with pytest.raises(DataError) as caught:
        scripted(*answers)
    assert f"({votes}). Give the right answer: --answer TEXT." in str(caught.value)
    assert ("--max_tokens above 512" in str(caught.value)) == ("cut" in votes)


def test_a_question_without_room_for_a_response_is_refused() -> None:
    with pytest.raises(DataError, match="leaves no room"):
        scripted("42", question="why " * 2000)


def test_a_response_that_is_cut_off_is_not_called_wrong() -> None:
    text = scripted("cut", answer="42", max_tokens="30")
    assert "Answer: none, ? cut off after 30 tokens" in text
    assert "cut off at 30 tokens: raise --max_tokens" in text
    assert "wrong" not in text


def test_a_step_that_fresh_rollouts_do_not_confirm_is_not_marked() -> None:
    text = scripted("42", answer="42", estimator="gpo.estimators.random:RandomStep")
    assert "Not confirmed: by 16 fresh rollouts" in text
    assert "◆" not in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(" ?")] == ["?"]
    text = seen(None, question="0", answer="Y", **TOY)
    [mark] = [line[1] for line in text.splitlines() if line[1:2] in ("◆", "?")]
    assert mark == ("◆" if ": confirmed." in " ".join(text.split()) else "?")


def test_what_a_model_says_neither_steers_the_terminal_nor_is_markup() -> None:
    text = scripted("\x1b[2J[red]x[/red]")
    assert "\x1b" not in text
    assert "Taken as right: ⟨U+001B⟩[2J[red]x[/red]" in text
    with pytest.raises(DataError) as caught:
        scripted("\x1b[2Jx", "\x1b[2Jy")
    assert "⟨U+001B⟩[2Jx: 8 of 16" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_nothing_is_drawn_elsewhere_than_on_a_terminal_but_what_was_sampled() -> None:
    text = scripted("42", answer="42")
    assert "⠋" not in text
    assert text.splitlines()[-2].startswith("Sampled ")


def test_a_segmenter_reads_log_probabilities_while_a_model_writes() -> None:
    engine, task = ChainEngine(padding=2), ChainTask()
    start = question_start(task.problems("dev")[0], task, engine.tokenizer)
    segmenter = LowProbability(probability=0.99, every=1)
    *_, last = write(engine, segmenter, start, temperature=1.0, max_tokens=100, seed=0)
    assert last.finished
    assert not last.cut_off
    assert len(last.step_ends) > 1
    *_, cut = write(engine, segmenter, start, temperature=1.0, max_tokens=10, seed=0)
    assert cut.cut_off
    assert cut.token_ids == last.token_ids[:10]


def test_values_are_shown_while_the_shipped_reasoner_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    options = "--problems 6 --rollouts 4 --max_tokens 120 --test_problems 1 --test_split dev".split()
    assert main(["rollout", run, *options, "--task.subtasks", "boolean_expressions"]) == 0
    with pytest.raises(DataError, match="has no graded trajectories to learn values from"):
        seen(write_run(tmp_path / "other", [Written("q", ["a"], verdict="failed")]), watch="true", question="q", **REAL)
    text = seen(Path(run), watch="true", question="train/boolean_expressions/1")
    rows = [line for line in text.splitlines() if "●" in line]
    assert len(rows) >= 2
    assert rows[0].split()[:2] == ["(the", "question)"]
    assert "├" in rows[0]
    assert rows[-1].split()[-2] in ("0.00", "1.00")  # the reward
    assert "├" not in rows[-1]
    assert "Nothing was sampled for them." in " ".join(text.split())


def test_a_part_of_an_id_is_no_question(searched: Path) -> None:
    RunDirectory(searched).write_problems({"train": [Problem("train/odd/1", "q", "a")]})
    with pytest.raises(ConfigError, match=r"'odd/1' is a part of ids of the run. Give a whole one: train/odd/1"):
        problem_of(RunDirectory(searched), "odd/1", None)
    assert problem_of(RunDirectory(searched), "train/odd/1", "b").answer == "b"
    assert problem_of(RunDirectory(searched), "1/2 of 4", None).id == "question"
