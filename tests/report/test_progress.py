from io import StringIO

import pytest
from rich.console import Console

from gpo.report.progress import ProgressDisplay, clock, rich_table, short
from gpo.storage.directory import Progress


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
    assert [clock(s) for s in (0, 59.9, 61, 3600)] == ["0:00", "0:59", "1:01", "60:00"]


def test_the_rounds_of_an_arm_share_a_bar() -> None:
    display = ProgressDisplay(Console(file=StringIO(), width=80, force_terminal=True))
    with display:
        for arm in ("gpo", "gpo 2", "gpo 3", "plain"):
            for done in (1, 2):
                display(Progress("locate", arm, done, 2, "trajectories", 10, 1.0))
    assert [task.description for task in display.bars.tasks] == ["locate gpo 3", "locate plain"]
    assert display.stages["locate", "gpo"].tokens == 20


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
