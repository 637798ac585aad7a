"""Progress of a run on a terminal, and its results as tables that fit in 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from gpo.report.clean import one_line, visible
from gpo.report.console import say
from gpo.report.results import INTERVALS, NAME, Results, accuracy_rows, not_trained, origin, token_rows
from gpo.report.speed import Speed
from gpo.storage.events import Partial, Progress

PLAIN_SECONDS = 10.0  # between two lines of the same stage where there is no terminal


@dataclass
class _Stage:
    """What this process saw of a stage."""

    name: str
    began: float
    tokens: int = 0  # of finished pieces
    seconds: float = 0.0  # of sampling, of finished pieces
    sampling: Speed = field(default_factory=Speed)  # tokens by seconds of sampling
    work: Speed = field(default_factory=Speed)  # what is done by seconds of the clock
    printed: float = float("-inf")
    finished: str = ""  # the amount that was printed as all
    bar: TaskID | None = None

    def __post_init__(self) -> None:
        self.sampling.note(0.0, 0.0)

    def note(self, progress: Progress, now: float) -> float:
        """Take in an event; how far the stage is, a part of the unfinished piece included."""
        tokens, seconds = self.tokens + progress.tokens, self.seconds + progress.seconds
        self.sampling.note(seconds, tokens)
        if isinstance(progress, Partial):
            share = min(1.0, progress.tokens / progress.expected) if progress.expected else 0.0
            done = progress.done + share * progress.piece
        else:
            self.tokens, self.seconds, done = tokens, seconds, float(progress.done)
        self.work.note(now, done)
        return done


class ProgressDisplay:
    """Shows each `Progress` that it is called with: bars on a terminal, now and then a line elsewhere.

    Speed and time left are those of the last minute. A `Partial` event moves the bar within a piece, so that the first
    piece has a time left too.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.now = now
        self.stages: dict[tuple[str, str], _Stage] = {}
        self.bars = Bars(
            TextColumn("{task.description:<17}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[amount]:>20}", markup=False),
            TextColumn("{task.fields[speed]:>11}"),
            TextColumn("{task.fields[left]:>9}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ProgressDisplay:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        now = self.now()
        name = one_line(progress.stage if progress.arm is None else f"{progress.stage} {progress.arm}", NAME)
        key = progress.stage, (progress.arm or "").partition(" ")[0]  # an arm's rounds ("gpo 2") share a bar
        stage = self.stages.get(key)
        if stage is None or stage.name != name:
            bar = None if stage is None else stage.bar
            stage = self.stages[key] = _Stage(name, now - progress.seconds, bar=bar)
            if isinstance(progress, Partial):
                stage.work.note(stage.began, progress.done)
        position = stage.note(progress, now)
        done, total = progress.done, progress.total
        begun = total > 0  # else nobody knows yet how much it is
        amount = f"{short(done)}/{short(total)} {progress.unit}" if begun else ""
        rate, seconds = stage.sampling.per_second, stage.work.left(total)
        speed = f"{short(rate)} tok/s" if rate else ""
        left = clock(now - stage.began) if done >= total > 0 else "" if seconds is None else f"{clock(seconds)} left"
        if not self.console.is_terminal:
            if begun and amount != stage.finished and (done >= total or now - stage.printed >= PLAIN_SECONDS):
                stage.printed, stage.finished = now, amount if done >= total else ""
                partial = isinstance(progress, Partial) and progress.tokens
                more = f" + {short(progress.tokens)} tokens" if partial else ""
                say(self.console, f"{name}: {amount}{more} {speed} {left}".rstrip())
            return
        if stage.bar is None:
            stage.bar = self.bars.add_task(name, amount=amount, speed=speed, left=left)
        self.bars.update(
            stage.bar, description=name, completed=position, total=max(1, total), amount=amount, speed=speed, left=left
        )


def short(number: float) -> str:
    """Such as 950, 12.3k or 4.56M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= 10 * size or (size == 1e6 and number >= size):
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours."""
    return f"{seconds / 3600:.1f} h" if seconds >= 6000 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def print_results(console: Console, results: Results) -> None:
    """The tables of a run; cells are broken so that four models fit in 80 columns."""
    console.print()
    say(console, origin(results))
    if results.models:
        console.print(rich_table(*accuracy_rows(results)))
        say(console, INTERVALS, style="dim")
    for arm in results.arms:
        if arm.untrained and not results.models:
            say(console, f"{one_line(arm.name, NAME)}: {not_trained(arm)}")
    header, rows = token_rows(results)
    console.print(rich_table(header[:7], [row[:7] for row in rows]))
    console.print(rich_table(["", *header[7:]], [[row[0], *row[7:]] for row in rows if any(row[7:])]))


def rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose intervals stand below their estimates. What steers a terminal is spelled out."""
    table = Table(show_edge=False, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(Text(visible(name)), justify="right" if i else "left", overflow="fold")
    for row in rows:
        bold = row[0].startswith("**")
        cells = [row[0].strip("*").replace("_", " "), *(cell.replace(" [", "\n[") for cell in row[1:])]
        table.add_row(*(Text(visible(cell)) for cell in cells), style="bold" if bold else None)
    return table
