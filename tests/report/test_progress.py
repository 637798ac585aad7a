from io import StringIO

import pytest
from hands import Hands
from rich.console import Console

from gpo.report.progress import ProgressDisplay, clock, rich_table, short
from gpo.storage.events import Partial, Progress


def show(*, terminal: bool) -> str:
    text = StringIO()
    console = Console(file=text, width=80, force_terminal=terminal)
    with ProgressDisplay(console) as display:
        display(Progress("evaluate", "random", 0, 40_000, "trajectories", 0, 0.0))
        for done in (100, 200, 40_000, 40_000):
            display(Progress("evaluate", "random", done, 40_000, "trajectories", 300_000, 10.0))
    return text.getvalue()


def test_without_a_terminal_there_are_few_plain_lines() -> None:
    lines = show(terminal=False).splitlines()
    assert lines == ["evaluate random: 0/40k trajectories", "evaluate random: 40k/40k trajectories 30k tok/s 0:00"]


def test_a_terminal_shows_bars_that_fit_in_80_columns() -> None:
    text = show(terminal=True)
    assert "evaluate random" in text
    assert "30k tok/s" in text


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 950, 9999, 12_345, 1_234_567)] == ["0", "950", "9999", "12.3k", "1.23M"]
    assert [clock(s) for s in (0, 59.9, 61, 3600, 79_560)] == ["0:00", "0:59", "1:01", "60:00", "22.1 h"]


def test_the_rounds_of_an_arm_share_a_bar() -> None:
    display = ProgressDisplay(Console(file=StringIO(), width=80, force_terminal=True))
    with display:
        for arm in ("gpo", "gpo 2", "gpo 3", "plain"):
            for done in (1, 2):
                display(Progress("locate", arm, done, 2, "trajectories", 10, 1.0))
    assert [task.description for task in display.bars.tasks] == ["locate gpo 3", "locate plain"]
    assert display.stages["locate", "gpo"].tokens == 20


def piece(tokens: int, seconds: float, *, done: int = 0, expected: int = 40_000) -> Partial:
    return Partial("rollout", None, done, 400, "questions", tokens, seconds, 100, expected)


def test_the_first_piece_has_speed_and_time_left_while_it_goes_on() -> None:
    """40,000 tokens for 100 of 400 questions at 100 tokens a second: 400 seconds for a quarter."""
    hands, text = Hands(), StringIO()
    display = ProgressDisplay(Console(file=text, width=80), hands)
    display(Progress("rollout", None, 0, 400, "questions", 0, 0.0))
    for second in range(1, 400):
        hands.seconds = second
        display(piece(100 * second, second))
    lines = text.getvalue().splitlines()
    assert len(lines) == 40
    assert lines[1] == "rollout: 0/400 questions + 1000 tokens 100 tok/s 26:30 left"
    assert lines[-1] == "rollout: 0/400 questions + 39k tokens 100 tok/s 20:10 left"
    assert max(map(len, lines)) <= 80


def test_a_stage_that_begins_within_a_piece_counts_its_time() -> None:
    hands, text = Hands(), StringIO()
    hands.seconds = 5000.0
    ProgressDisplay(Console(file=text, width=80), hands)(piece(1000, 10.0))
    assert text.getvalue() == "rollout: 0/400 questions + 1000 tokens 100 tok/s 26:30 left\n"


def test_training_is_timed_from_where_it_begins_and_not_from_its_first_step() -> None:
    hands, text = Hands(), StringIO()
    display = ProgressDisplay(Console(file=text, width=80), hands)
    display(Progress("train", "gpo", 0, 0, "steps", 0, 0.0))
    assert text.getvalue() == ""
    hands.seconds += 72.0
    display(Progress("train", "gpo", 1, 1, "steps", 0, 0.0))
    assert text.getvalue() == "train gpo: 1/1 steps  1:12\n"


def test_a_piece_whose_length_cannot_be_told_has_a_speed() -> None:
    hands, text = Hands(), StringIO()
    ProgressDisplay(Console(file=text, width=80), hands)(piece(1000, 10.0, expected=0))
    assert text.getvalue() == "rollout: 0/400 questions + 1000 tokens 100 tok/s\n"


def test_finished_pieces_are_not_counted_twice() -> None:
    hands = Hands()
    display = ProgressDisplay(Console(file=StringIO(), width=80), hands)
    for hands.seconds in (10, 20):
        display(piece(hands.seconds * 100, hands.seconds))
    display(Progress("rollout", None, 100, 400, "questions", 2000, 20.0))
    display(piece(500, 5.0, done=100))
    stage = display.stages["rollout", ""]
    assert (stage.tokens, stage.seconds, stage.sampling.per_second) == (2000, 20.0, 100.0)


def test_the_bar_moves_within_a_piece_and_never_beyond_it() -> None:
    hands, text = Hands(), StringIO()
    display = ProgressDisplay(Console(file=text, width=80, force_terminal=True), hands)
    with display:
        positions = []
        for hands.seconds in (10, 20, 5000):
            display(piece(hands.seconds * 1000, hands.seconds))
            positions.append(display.bars.tasks[0].completed)
    assert positions == [25.0, 50.0, 100.0]
    assert "1000 tok/s" in text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_name_of_an_arm_neither_steers_the_terminal_nor_is_markup(terminal: bool) -> None:
    text = StringIO()
    with ProgressDisplay(Console(file=text, width=120, force_terminal=terminal)) as display:
        display(Progress("locate", "[red]x[/red]\x1b]0;owned\x07", 1, 1, "trajectories", 10, 1.0))
    assert "[red]x[/red]⟨U+001B⟩]0;owned⟨U+0007⟩" in text.getvalue()
    assert "\x07" not in text.getvalue()


def test_a_cell_is_shown_as_it_is() -> None:
    text = StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    console.print(rich_table(["[red]head[/red]", "b"], [["[bold]a[/bold]\x1b[2J", "1.0 [0.5, 1.5]"], ["**all**", "x"]]))
    assert [line.rstrip() for line in text.getvalue().splitlines()] == [
        "[red]head[/red]           ┃          b",
        "━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━",
        "[bold]a[/bold]⟨U+001B⟩[2J │        1.0",
        "                          │ [0.5, 1.5]",
        "all                       │          x",
    ]
