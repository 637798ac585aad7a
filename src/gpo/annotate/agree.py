"""`gpo agreement RUN`: people's marks against the searches of a run, as a table, a plot and JSON."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from gpo.annotate.agreement import Study, attentive, study
from gpo.annotate.marks import Mark, Marks
from gpo.annotate.reading import read_marks, read_mistakes
from gpo.errors import DataError
from gpo.report.clean import counted, one_line
from gpo.report.console import Console, say
from gpo.report.results import NAME
from gpo.statistics import Interval
from gpo.storage.directory import RunDirectory
from gpo.storage.files import refuse_folder, refuse_linked_folders, write_json, write_rows
from gpo.types import DEFAULT_RUN

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Raises:
        ConfigError: this is no run directory.
        DataError: there are no marks on searched trajectories.
    """
    parser = argparse.ArgumentParser(
        prog="gpo agreement", description="How often people chose the step that each search of a run chose."
    )
    parser.add_argument("run", nargs="?", default=DEFAULT_RUN, help=f"a run directory ({DEFAULT_RUN})")
    parser.add_argument("--marks", type=Path, help="JSON lines of annotations in place of those of gpo annotate")
    parser.add_argument("--mistakes", type=Path, help="a file of BIG-Bench-Mistake whose traces the run has searched")
    parser.add_argument(
        "--export", type=Path, help="also write the marks that count as JSON lines, as --marks takes them"
    )
    options = parser.parse_args(arguments)
    files = RunDirectory(Path(options.run))
    files.config()
    if options.export:
        refuse_folder(options.export, "--export")
    marks, checks = gather(files, options.marks, options.mistakes)
    if options.export:
        kept, _ = attentive(marks, checks)
        write_rows(options.export, [mark for mark in kept if mark.kind != "skip"])
    found = study(files, marks, checks)
    refuse_linked_folders(files.path)
    write_json(files.path / "agreement.json", found)
    from gpo.report.plots import save

    save(figure(found), files.plots / "agreement.png")
    show(Console(), found)
    print(f"\nWritten: {files.path / 'agreement.json'}, {files.plots / 'agreement.png'}")
    return 0


def gather(files: RunDirectory, marks: Path | None, mistakes: Path | None) -> tuple[list[Mark], dict[str, int]]:
    """The marks to compare with, and the right steps of the attention checks among them."""
    if marks is not None:
        return read_marks(marks), {}
    if mistakes is not None:
        groups = files.rollouts.read()
        return read_mistakes(mistakes, [t for group in groups for t in group.trajectories]), {}
    path = files.path / "annotations.sqlite"
    if not path.exists():
        raise DataError(f"{files.path} has no annotations. Let people mark some: gpo annotate {files.path}")
    store = Marks(path)
    return store.all(), store.checks()


def percent(interval: Interval) -> str:
    """Such as 56 [44, 68]."""
    return f"{100 * interval.estimate:.0f} [{100 * interval.lower:.0f}, {100 * interval.upper:.0f}]"


def show(console: Console, found: Study) -> None:
    """The tables: all searches, then every solution by the first of them."""
    alpha = "not defined" if math.isnan(found.alpha) else f"{found.alpha:.2f}"
    of_whom = f"{counted(found.marks, 'mark')} of {counted(found.annotators, 'annotator')}"
    say(console, f"{of_whom}; Krippendorff's alpha {alpha}")
    if found.inattentive:
        names = ", ".join(one_line(name, NAME) for name in found.inattentive)
        say(console, f"Left out, attention checks failed: {names}")
    search = Column("search", overflow="fold")
    table = Table(search, "solutions", "chose its step, %", "one of its top 2, %", "chance, %", show_edge=False)
    for arm in found.arms:
        name = one_line(f"{arm.arm} ({arm.estimator})", NAME)
        shares = (percent(arm.share), percent(arm.top_two), f"{100 * arm.chance:.0f}")
        table.add_row(*map(Text, (name, str(len(arm.items)), *shares)))
    console.print(table)
    # Ids are long and differ at their ends: they are broken and not cut.
    solution = Column("solution", overflow="fold")
    table = Table(solution, "steps", "its step", "people", "chose it, %", "most chose", show_edge=False)
    for item in found.arms[0].items:
        critical, favourite = ("none" if step is None else str(step + 1) for step in (item.critical, item.favourite))
        name, share = one_line(item.item, 2 * NAME), percent(item.share)
        table.add_row(*map(Text, (name, str(item.steps), critical, str(item.people), share, favourite)))
    console.print(table)
    say(console, "Intervals are 95%; steps count from 1.", style="dim")


def figure(found: Study) -> Figure:
    """Share of people who chose the step of each search, by solution, beside chance."""
    from gpo.report.plots import new_figure, reach

    items = found.arms[0].items
    drawn = new_figure(8, 1.6 + 0.28 * len(items) * max(1, len(found.arms) / 2))
    axes = drawn.subplots()
    for number, arm in enumerate(found.arms):
        shares = {item.item: item.share for item in arm.items}
        rows = [(i, shares[item.item]) for i, item in enumerate(items) if item.item in shares]
        heights = [i + (number - (len(found.arms) - 1) / 2) * 0.2 for i, _ in rows]
        values, errors = [100 * share.estimate for _, share in rows], reach([share for _, share in rows])
        label = one_line(f"{arm.arm} ({arm.estimator})", NAME)
        axes.errorbar(values, heights, xerr=errors, fmt="osD^v"[number % 5], capsize=2, label=label)
    axes.plot([100 * item.chance for item in items], range(len(items)), "|", color="#666666", ms=10, label="chance")
    axes.set_yticks(range(len(items)), [one_line(item.item, NAME).replace("$", r"\$") for item in items], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(-3, 103)
    axes.set_xlabel("annotators who chose the critical step, % (95% intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower right")
    return drawn
