"""One trajectory on a terminal of 80 columns: its steps, their advantages, and the values as bars with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, nan

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpo.diagnosis import outcome
from gpo.report.clean import counted, one_line, visible
from gpo.report.show import SIGNS, signed
from gpo.types import Problem, StepScores, Trajectory

BAR = 21  # characters of a bar, from 0 to 1
TEXT = 200  # characters of a step
STYLES = {"▲": "cyan", "▼": "yellow"}


@dataclass(frozen=True, slots=True)
class Row:
    """A boundary: the step that leads to it, and the value after that step."""

    text: str
    value: float = nan  # NaN where it is not estimated
    lower: float = nan
    upper: float = nan
    advantage: float = nan
    critical: bool = False
    confirmed: bool = True  # if critical: not merely the choice of a search


def print_question(console: Console, problem: Problem) -> None:
    console.print(Text(visible(problem.question[:2000]).strip(), style="bold"))
    if problem.answer:
        console.print(Text(f"Right answer: {one_line(problem.answer, 200)}"))


def print_verdict(console: Console, trajectory: Trajectory) -> None:
    score = trajectory.score
    answer = one_line(score.answer, 200) if score.answer else "none"
    verdict = outcome(trajectory)
    text = f"{verdict} after {counted(len(trajectory.response_ids), 'token')}" if verdict == "cut off" else verdict
    console.print(Text(f"Answer: {answer}, {SIGNS[score.verdict]} {text}"))


def rows_of(steps: Sequence[str], scores: StepScores, *, confirmed: bool = True) -> list[Row]:
    """The question and every step of a searched trajectory."""
    values = list(zip(scores.values, scores.lower, scores.upper, strict=True))
    return rows_between(steps, values, scores.critical_step, confirmed)


def rows_between(
    steps: Sequence[str], values: Sequence[tuple[float, float, float]], critical: int | None, confirmed: bool = True
) -> list[Row]:
    """The same from values with their intervals, the first that of the question; advantages are their differences."""
    found = [Row("(the question)", *values[0])]
    for k, (text, (before, after)) in enumerate(zip(steps, pairwise(values), strict=True)):
        found.append(Row(text, *after, after[0] - before[0], k == critical, confirmed))
    return found


def table(rows: Sequence[Row], first: int = 0) -> Table:
    """The rows from number `first` on as a table; what was left out before is said."""
    columns = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    columns.add_column("", width=1)
    columns.add_column("#", justify="right", width=3)
    columns.add_column("step", ratio=1, overflow="fold")
    columns.add_column("change", width=7, no_wrap=True)
    columns.add_column("value", width=5, no_wrap=True, justify="right")
    columns.add_column("0" + "1".rjust(BAR - 1), width=BAR, no_wrap=True)
    if first:
        columns.add_row("", "", Text(f"… {counted(first, 'row')} before", style="dim"), "", "", "")
    for number, row in enumerate(rows[first:], first):
        change = "" if isnan(row.advantage) else signed(row.advantage)
        columns.add_row(
            Text("" if not row.critical else "◆" if row.confirmed else "?"),
            Text(str(number) if number else ""),
            Text(one_line(row.text, TEXT)),
            Text(change, style=STYLES.get(change[:1], "")),
            Text("" if isnan(row.value) else f"{row.value:.2f}"),
            bar(row.value, row.lower, row.upper),
            style="bold" if row.critical and row.confirmed else "",
        )
    return columns


def bar(value: float, lower: float, upper: float) -> Text:
    """Such as `   ├──●────┤`; a value without an interval is the mark alone."""
    if isnan(value):
        return Text("")
    cells = [" "] * BAR
    if not isnan(lower) and upper > lower:
        begin, end = cell(lower), cell(upper)
        cells[begin : end + 1] = "─" * (end + 1 - begin)
        cells[begin], cells[end] = "├", "┤"
    cells[cell(value)] = "●"
    return Text("".join(cells))


def cell(value: float) -> int:
    return min(BAR - 1, max(0, round(value * (BAR - 1))))
