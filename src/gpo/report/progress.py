"""Progress of a run on a terminal, and its results as tables that fit in 80 columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from gpo.report.clean import one_line, visible
from gpo.report.results import INTERVALS, NAME, Results, accuracy_rows, not_trained, origin, token_rows
from gpo.storage.directory import Progress

PLAIN_SECONDS = 10.0  # between two lines of the same stage where there is no terminal


@dataclass
class _Stage:
    """What this process saw of a stage."""

    name: str
    first: int  # done when it began
    began: float
    tokens: int = 0
    seconds: float = 0.0  # of sampling
    printed: float = float("-inf")
    finished: str = ""  # the amount that was printed as all
    bar: TaskID | None = None


class ProgressDisplay:
    """Shows each `Progress` that it is called with: bars on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        name = one_line(progress.stage if progress.arm is None else f"{progress.stage} {progress.arm}", NAME)
        key = progress.stage, (progress.arm or "").partition(" ")[0]  # an arm's rounds ("gpo 2") share a bar
        stage = self.stages.get(key)
        if stage is None or stage.name != name:
            stage = self.stages[key] = _Stage(name, progress.done, now, bar=None if stage is None else stage.bar)
        stage.tokens += progress.tokens
        stage.seconds += progress.seconds
        done, total = progress.done, progress.total
        amount = f"{short(done)}/{short(total)} {progress.unit}"
        speed = f"{short(stage.tokens / stage.seconds)} tok/s" if stage.tokens and stage.seconds else ""
        new = done - stage.first
        seconds = now - stage.began
        left = clock(seconds) if done >= total else f"{clock(seconds / new * (total - done))} left" if new > 0 else ""
        if not self.console.is_terminal:
            if amount != stage.finished and (done >= total or now - stage.printed >= PLAIN_SECONDS):
                stage.printed, stage.finished = now, amount if done >= total else ""
                self.console.print(f"{name}: {amount} {speed} {left}".rstrip(), highlight=False, markup=False)
            return
        if stage.bar is None:
            stage.bar = self.bars.add_task(name, amount=amount, speed=speed, left=left)
        self.bars.update(
            stage.bar, description=name, completed=done, total=max(1, total), amount=amount, speed=speed, left=left
        )


def short(number: float) -> str:
    """Such as 950, 12.3k or 4.56M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= 10 * size or (size == 1e6 and number >= size):
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def print_results(console: Console, results: Results) -> None:
    """The tables of a run; cells are broken so that four models fit in 80 columns."""
    console.print()
    console.print(origin(results), highlight=False, markup=False)
    if results.models:
        console.print(rich_table(*accuracy_rows(results)))
        console.print(INTERVALS, style="dim", highlight=False, markup=False)
    for arm in results.arms:
        if arm.untrained and not results.models:
            console.print(f"{one_line(arm.name, NAME)}: {not_trained(arm)}", highlight=False, markup=False)
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
