"""`gpo locate` on one trajectory, as it stands on a terminal of 80 columns."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from gpo.cli import main
from gpo.errors import ConfigError, DataError
from gpo.report.closeup import close_up
from gpo.report.terminal import BAR, Row, bar, rows_between, table
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
    assert text.startswith("0\nRight answer: Y\n")
    assert text.count("●") >= 4
    assert "tokens were sampled to search it" in text
    assert seen(None, question="0", answer="Y", **TOY) == text
    other = seen(None, question="0", answer="Y", **TOY, **{"estimator": "monte_carlo", "estimator.rollouts": "16"})
    assert other != text


def test_without_an_answer_most_samples_decide() -> None:
    text = seen(None, question="0", **TOY)
    assert "No --answer is given. Taken as right: " in text
    with pytest.raises(DataError, match="No sample gives an answer"):
        seen(None, question="0", **TOY, max_tokens="1")


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
